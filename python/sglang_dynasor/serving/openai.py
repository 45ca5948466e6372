"""OpenAI responses that carry `sglext.dynasor`.

Upstream: `sglang/srt/entrypoints/openai/serving_chat.py` and `serving_completions.py`. Program
fields of the request need nothing here: the tokenizer manager reads the body itself. `SglExt` drops
fields it does not declare, so the finished response is completed as a plain dict.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import ORJSONResponse
from pydantic import BaseModel
from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion

from sglang_dynasor.managers.certainty_report import SUMMARY, VALUES, streamed_reports
from sglang_dynasor.managers.program_messages import CARRIER

_DONE = "data: [DONE]\n\n"


def add_report(response: Any, outputs: list[dict[str, Any]]) -> Any:
    """Put the program's report into a response; one without a program passes through untouched."""
    report = merge_reports([output["meta_info"].get(CARRIER) for output in outputs])
    if report is None or not isinstance(response, BaseModel):
        return response
    content = response.model_dump()
    content["sglext"] = {**(content.get("sglext") or {}), CARRIER: report}
    return ORJSONResponse(content)


def merge_reports(reports: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """One report for all choices: with several, what belongs to one goes into `choices`."""
    first = reports[0] if reports else None
    if first is None or len(reports) == 1:
        return first
    shared = {name: value for name, value in first.items() if name not in (SUMMARY, VALUES)}
    choices = [
        {"index": index, **{name: report[name] for name in (SUMMARY, VALUES) if name in report}}
        for index, report in enumerate(reports)
        if report is not None
    ]
    return {**shared, "choices": choices} if any(len(item) > 1 for item in choices) else shared


async def add_report_chunk(chunks: AsyncIterator[str], adapted_request: Any) -> AsyncIterator[str]:
    """Send the report in a chunk without choices, the last one before the end of the stream."""
    template: dict[str, Any] = {}
    async for chunk in chunks:
        if not template and chunk.startswith("data: {"):
            template = json.loads(chunk.removeprefix("data: "))
        if chunk == _DONE and template and "error" not in template:
            report = merge_reports(streamed_reports(adapted_request))
            if report is not None:
                kept = {key: template.get(key) for key in ("id", "object", "created", "model")}
                content: dict[str, Any] = {**kept, "choices": [], "sglext": {CARRIER: report}}
                yield f"data: {json.dumps(content)}\n\n"
        yield chunk


class DynasorServingChat(OpenAIServingChat):
    """Chat completions of programs."""

    def _build_chat_response(self, request: Any, ret: list[dict[str, Any]], created: int) -> Any:
        return add_report(super()._build_chat_response(request, ret, created), ret)

    def _generate_chat_stream(
        self, adapted_request: Any, request: Any, raw_request: Any
    ) -> AsyncIterator[str]:
        chunks = super()._generate_chat_stream(adapted_request, request, raw_request)
        return add_report_chunk(chunks, adapted_request)


class DynasorServingCompletion(OpenAIServingCompletion):
    """Text completions of programs."""

    def _build_completion_response(
        self, request: Any, ret: list[dict[str, Any]], created: int
    ) -> Any:
        return add_report(super()._build_completion_response(request, ret, created), ret)

    def _generate_completion_stream(
        self, adapted_request: Any, request: Any, raw_request: Any
    ) -> AsyncIterator[str]:
        chunks = super()._generate_completion_stream(adapted_request, request, raw_request)
        return add_report_chunk(chunks, adapted_request)
