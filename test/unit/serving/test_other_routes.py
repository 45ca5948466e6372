"""Anthropic's messages carry the report, Ollama's and the responses API refuse programs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.entrypoints.anthropic.protocol import AnthropicMessagesResponse
from sglang.srt.entrypoints.openai.protocol import ChatCompletionResponse

from sglang_dynasor.serving.openai import with_report
from sglang_dynasor.serving.other_routes import (
    DynasorAnthropicServing,
    DynasorOllamaServing,
    DynasorServingResponses,
    add_report_event,
    refusal,
)

REPORT = {"program_id": "p", "stop_reason": "certain"}


class Request:
    """A request whose body has been read, as upstream's routes hand it on."""

    def __init__(self, body: Any) -> None:
        self._body = json.dumps(body).encode()

    async def body(self) -> bytes:
        return self._body

    async def json(self) -> Any:
        return json.loads(self._body)


def message_of(report: dict[str, Any] | None) -> Any:
    response = ChatCompletionResponse(
        id="p",
        model="m",
        choices=[
            {
                "index": 0,
                "message": {"role": "assistant", "content": "46"},
                "finish_reason": "stop",
            }
        ],
        usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    )
    meta = {} if report is None else {"dynasor": report}
    serving = DynasorAnthropicServing.__new__(DynasorAnthropicServing)
    return serving._convert_response(with_report(response, [{"meta_info": meta}]))


def test_a_message_carries_the_report() -> None:
    message = message_of(REPORT)
    assert isinstance(message, AnthropicMessagesResponse)
    body = message.model_dump(exclude_none=True)
    assert (body["type"], body["stop_reason"]) == ("message", "end_turn")
    assert body["content"] == [{"type": "text", "text": "46"}]
    assert body["usage"]["output_tokens"] == 4
    assert body["sglext"] == {"dynasor": REPORT}


def test_a_message_without_a_program_is_upstreams() -> None:
    assert type(message_of(None)) is AnthropicMessagesResponse


def events_of(reports: dict[int, dict[str, Any]]) -> list[str]:
    async def source() -> AsyncIterator[str]:
        yield 'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":4}}\n\n'
        yield 'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    async def collect() -> list[str]:
        request = SimpleNamespace(dynasor_reports=reports)
        return [event async for event in add_report_event(source(), request)]

    return asyncio.run(collect())


def test_a_stream_of_events_carries_the_report_with_its_last_counts() -> None:
    delta, stop = events_of({0: REPORT})
    name, _, data = delta.partition("\ndata: ")
    assert name == "event: message_delta"
    assert json.loads(data) == {
        "type": "message_delta",
        "usage": {"output_tokens": 4},
        "sglext": {"dynasor": REPORT},
    }
    assert stop == events_of({})[1]


@pytest.mark.parametrize(
    ("refused", "body"),
    [
        (True, {"dynasor": {"algorithm": "self_consistency"}}),
        (True, {"dynasor": {"program_id": "p", "token_certainty": True}}),
        (False, {"program_id": "p"}),
        (False, {"input": "what is dynasor?"}),
        (False, {"dynasor": None}),
        (False, ["dynasor"]),
    ],
)
def test_a_route_refuses_what_has_a_report_it_would_lose(refused: bool, body: Any) -> None:
    message = asyncio.run(refusal("/v1/responses", Request(body)))
    assert (message is not None) is refused
    if message is not None:
        assert "dynasor" in message and "/v1/chat/completions" in message


BODY = {"dynasor": {"algorithm": "self_consistency"}}


@pytest.mark.parametrize("method", ["handle_chat", "handle_generate"])
def test_ollamas_routes_refuse_in_their_own_shape(method: str) -> None:
    serving = DynasorOllamaServing.__new__(DynasorOllamaServing)
    reply = asyncio.run(getattr(serving, method)(None, Request(BODY)))
    assert reply.status_code == 400
    assert json.loads(reply.body)["error"].startswith("dynasor: ")


def test_the_responses_route_refuses_in_its_own_shape() -> None:
    serving = DynasorServingResponses.__new__(DynasorServingResponses)
    reply = asyncio.run(serving.create_responses(None, Request(BODY)))
    error = json.loads(reply.body)["error"]
    assert (reply.status_code, error["param"]) == (400, "dynasor")
    assert error["message"].startswith("dynasor: ")
