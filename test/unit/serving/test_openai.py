"""The report in OpenAI responses and streams, and the bodies of refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
    CompletionResponse,
    SglExt,
)

from sglang_dynasor.errors import RequestError
from sglang_dynasor.serving.openai import (
    DynasorServingChat,
    DynasorServingCompletion,
    ProgramCompletionResponse,
    merge_reports,
    report_last,
    with_report,
)

DONE = "data: [DONE]\n\n"
REPORT = {"program_id": "p", "stop_reason": "deadline", "votes": [{"answer": "é", "count": 2}]}


def chat_response(finish_reason: str = "stop", sglext: SglExt | None = None) -> Any:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "46"},
        "finish_reason": finish_reason,
    }
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    response = ChatCompletionResponse(id="p", model="m", choices=[choice], usage=usage)
    response.sglext = sglext
    return response


def outputs(*reports: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [{"meta_info": {} if report is None else {"dynasor": report}} for report in reports]


def test_one_choice_has_its_certainty_in_the_report_and_several_have_it_by_choice() -> None:
    certain = {"certainty": {"tokens": 1}, "token_certainty": {"entropy": [0.5]}}
    one = {"program_id": "p", **certain}
    assert merge_reports([None]) is None
    assert merge_reports([]) is None
    assert merge_reports([one]) == one
    assert merge_reports([one, one]) == {
        "program_id": "p",
        "choices": [{"index": 0, **certain}, {"index": 1, **certain}],
    }
    plain = {"program_id": "p"}
    assert merge_reports([plain, plain]) == plain


def test_a_response_with_a_report_is_still_one_of_upstreams() -> None:
    plain = json.loads(chat_response().model_dump_json())
    response = with_report(chat_response(), outputs(REPORT))
    assert isinstance(response, ChatCompletionResponse)
    assert json.loads(response.model_dump_json(by_alias=True)) == {
        **plain,
        "sglext": {"dynasor": REPORT},
        "created": response.created,
    }


def test_upstreams_own_extensions_stay_beside_the_report() -> None:
    response = with_report(chat_response(sglext=SglExt(input_ids=[1, 2])), outputs(REPORT))
    assert response.model_dump()["sglext"] == {"input_ids": [1, 2], "dynasor": REPORT}


def test_text_completions_stay_text_completions() -> None:
    choice = {"index": 0, "text": "46", "finish_reason": "abort"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    given = CompletionResponse(id="p", model="m", choices=[choice], usage=usage)
    response = with_report(given, outputs(REPORT), ProgramCompletionResponse)
    assert isinstance(response, CompletionResponse)
    dumped = response.model_dump()
    assert dumped["sglext"] == {"dynasor": REPORT}
    assert dumped["choices"][0]["finish_reason"] == "length"


def test_without_a_report_nothing_is_touched() -> None:
    response = chat_response("abort")
    assert with_report(response, outputs(None)) is response
    assert response.choices[0].finish_reason == "abort"
    refusal = object()
    assert with_report(refusal, outputs(REPORT)) is refusal


@pytest.mark.parametrize(("given", "shown"), [("abort", "length"), ("stop", "stop")])
def test_a_program_that_was_cut_short_ends_by_a_reason_that_openai_knows(
    given: str, shown: str
) -> None:
    response = with_report(chat_response(given), outputs(REPORT))
    assert response.choices[0].finish_reason == shown
    assert response.sglext.dynasor["stop_reason"] == "deadline"


def chunk(content: str = "", index: int = 0, finish_reason: str | None = None) -> str:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish_reason}
    body = {"id": "c", "created": 5, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"


USAGE = 'data: {"id":"c","created":5,"model":"m","choices":[],"usage":{"total_tokens":3}}\n\n'


def streamed(chunks: list[str], **reports: dict[str, Any]) -> list[str]:
    request = SimpleNamespace(dynasor_reports={int(key[1:]): item for key, item in reports.items()})

    async def source() -> AsyncIterator[str]:
        for item in chunks:
            yield item

    async def collect() -> list[str]:
        return [item async for item in report_last(source(), request)]

    return asyncio.run(collect())


def parsed(event: str) -> dict[str, Any]:
    return json.loads(event.removeprefix("data: "))


@pytest.mark.parametrize("tail", [[DONE], [USAGE, DONE]])
def test_the_report_is_in_the_last_chunk_that_has_a_choice(tail: list[str]) -> None:
    chunks = [chunk("4"), chunk("6"), chunk(finish_reason="stop"), *tail]
    told = streamed(chunks, _0=REPORT)
    assert told[:2] == chunks[:2] and told[3:] == tail
    assert parsed(told[2]) == {**parsed(chunks[2]), "sglext": {"dynasor": REPORT}}
    assert ChatCompletionStreamResponse.model_validate_json(told[2].removeprefix("data: "))


def test_with_several_choices_the_one_that_ends_last_carries_all_reports() -> None:
    first, second = ({"program_id": "p", "certainty": {"tokens": n}} for n in (1, 2))
    chunks = [chunk(finish_reason="stop"), chunk("6", 1), chunk(index=1, finish_reason="stop")]
    told = streamed([*chunks, DONE], _0=first, _1=second)
    assert told[:2] == chunks[:2]
    assert parsed(told[2])["sglext"]["dynasor"]["choices"] == [
        {"index": 0, "certainty": {"tokens": 1}},
        {"index": 1, "certainty": {"tokens": 2}},
    ]


def test_a_chunk_behind_the_end_of_a_choice_carries_it_where_there_is_one() -> None:
    hidden = 'data: {"id":"c","choices":[{"index":0,"delta":{"hidden_states":[1]}}]}\n\n'
    told = streamed([chunk(finish_reason="stop"), hidden, DONE], _0=REPORT)
    assert parsed(told[1])["sglext"] == {"dynasor": REPORT}
    assert "sglext" not in parsed(told[0])


def test_no_chunk_waits_before_a_choice_has_ended() -> None:
    async def source() -> AsyncIterator[str]:
        yield chunk('"finish_reason":"stop"')  # a text may say so
        raise AssertionError("the next chunk was asked for first")

    async def first() -> str:
        async for item in report_last(source(), SimpleNamespace(dynasor_reports={0: REPORT})):
            return item
        raise AssertionError("no chunk")

    assert asyncio.run(first()) == chunk('"finish_reason":"stop"')


def test_an_aborted_stream_ends_by_a_reason_that_openai_knows() -> None:
    told = streamed([chunk(finish_reason="abort"), DONE], _0=REPORT)
    assert parsed(told[0])["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "chunks", [[chunk("4"), chunk(finish_reason="stop"), USAGE, DONE], [DONE], []]
)
def test_a_stream_without_a_report_passes_untouched(chunks: list[str]) -> None:
    assert streamed(chunks) == chunks


def test_a_failed_stream_gets_no_report() -> None:
    chunks = ['data: {"error":{"message":"no"}}\n\n', DONE]
    assert streamed(chunks, _0=REPORT) == chunks


def refusal_of(serving: type, error: Exception) -> Any:
    handler = serving.__new__(serving)
    try:
        raise error
    except ValueError as caught:
        return handler.create_error_response(str(caught))


@pytest.mark.parametrize("serving", [DynasorServingChat, DynasorServingCompletion])
@pytest.mark.parametrize(
    ("status", "retry_after"), [(400, None), (409, None), (503, "1"), (429, None)]
)
def test_a_refusal_has_the_field_and_the_status_it_names(
    serving: type, status: int, retry_after: str | None
) -> None:
    reply = refusal_of(serving, RequestError("program_id: runs", "program_id", status))
    body = json.loads(reply.body)
    assert (reply.status_code, body["code"], body["param"]) == (status, status, "program_id")
    assert body["message"] == "program_id: runs"
    assert reply.headers.get("retry-after") == retry_after


def test_errors_of_upstream_keep_their_bodies() -> None:
    reply = refusal_of(DynasorServingChat, ValueError("too long"))
    body = json.loads(reply.body)
    assert (reply.status_code, body["message"], body["param"]) == (400, "too long", None)
