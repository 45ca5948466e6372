"""Anthropic's messages carry the report; routes that have no place for it refuse programs.

Upstream: `anthropic/serving.py`, `ollama/serving.py` and `openai/serving_responses.py`, all under
`sglang/srt/entrypoints/`. The first takes a chat completion for its own response.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from sglang.srt.entrypoints.anthropic.protocol import AnthropicMessagesResponse
from sglang.srt.entrypoints.anthropic.serving import AnthropicServing
from sglang.srt.entrypoints.ollama.serving import OllamaServing
from sglang.srt.entrypoints.openai.serving_responses import OpenAIServingResponses

from sglang_dynasor.managers.certainty_report import streamed_reports
from sglang_dynasor.managers.edge_checks import names_program
from sglang_dynasor.managers.program_messages import CARRIER
from sglang_dynasor.serving.openai import ProgramChatResponse, merge_reports


class ProgramMessage(AnthropicMessagesResponse):
    """A message with the program's report, where the OpenAI routes have it too."""

    sglext: dict[str, Any]


class DynasorAnthropicServing(AnthropicServing):
    """Messages of programs."""

    def _convert_response(self, response: Any) -> Any:
        message = super()._convert_response(response)
        if not isinstance(response, ProgramChatResponse):
            return message
        return ProgramMessage.model_construct(
            **dict(message), sglext={CARRIER: response.sglext.dynasor}
        )

    def _generate_anthropic_stream(
        self, adapted_request: Any, processed_request: Any, anthropic_request: Any, raw_request: Any
    ) -> AsyncIterator[str]:
        events = super()._generate_anthropic_stream(
            adapted_request, processed_request, anthropic_request, raw_request
        )
        if not names_program(adapted_request, raw_request):
            return events
        return add_report_event(events, adapted_request)


async def add_report_event(events: AsyncIterator[str], request: Any) -> AsyncIterator[str]:
    """The same stream with the report in the event that has the final counts."""
    async for event in events:
        report = None
        if event.startswith("event: message_delta"):
            report = merge_reports(streamed_reports(request))
        if report is not None:
            name, _, data = event.partition("data: ")
            content = json.dumps({**json.loads(data), "sglext": {CARRIER: report}})
            event = f"{name}data: {content}\n\n"
        yield event


async def refusal(route: str, request: Request | None) -> str | None:
    """Why a route that would lose a program's report refuses this body, or None.

    A bare `program_id` is welcome: it has no report worth losing.
    """
    if request is None or CARRIER.encode() not in await request.body():
        return None
    body = await request.json()
    if not isinstance(body, dict) or body.get(CARRIER) is None:
        return None
    return (
        f"{CARRIER}: {route} has no place for a program's report; "
        "use /v1/chat/completions, /v1/completions, /v1/messages or /generate"
    )


class DynasorOllamaServing(OllamaServing):
    """Ollama's routes, for plain requests and those of client-driven programs."""

    async def handle_chat(self, request: Any, raw_request: Request) -> Any:
        if message := await refusal("/api/chat", raw_request):
            return JSONResponse({"error": message}, HTTPStatus.BAD_REQUEST)
        return await super().handle_chat(request, raw_request)

    async def handle_generate(self, request: Any, raw_request: Request) -> Any:
        if message := await refusal("/api/generate", raw_request):
            return JSONResponse({"error": message}, HTTPStatus.BAD_REQUEST)
        return await super().handle_generate(request, raw_request)


class DynasorServingResponses(OpenAIServingResponses):
    """OpenAI's responses, for plain requests and those of client-driven programs."""

    async def create_responses(self, request: Any, raw_request: Request | None = None) -> Any:
        if message := await refusal("/v1/responses", raw_request):
            return self.create_error_response(message, param=CARRIER)
        return await super().create_responses(request, raw_request)
