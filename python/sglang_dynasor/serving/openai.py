"""OpenAI responses that carry `sglext.dynasor`, and refusals that name the field.

Upstream: `sglang/srt/entrypoints/openai/serving_chat.py` and `serving_completions.py`. Program
fields of the request need nothing here: the tokenizer manager reads the body itself.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from pydantic import model_serializer
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionResponse,
    CompletionResponse,
    SglExt,
)
from sglang.srt.entrypoints.openai.serving_base import OpenAIServingBase
from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion

from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.certainty_report import SUMMARY, VALUES, streamed_reports
from sglang_dynasor.managers.edge_checks import names_program
from sglang_dynasor.managers.program_messages import CARRIER
from sglang_dynasor.managers.program_news import take_news

_RETRY_AFTER_S = 1
_NEWS_INTERVAL_S = 0.5


class ProgramExt(SglExt):
    """Upstream's extensions with the program's report beside them."""

    dynasor: dict[str, Any]

    @model_serializer(mode="wrap")
    def _only_what_is_set(self, handler: Any) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class ProgramChatResponse(ChatCompletionResponse):
    """A chat completion with a report; upstream's other layers take it for one of theirs."""

    sglext: ProgramExt


class ProgramCompletionResponse(CompletionResponse):
    """A text completion with a report."""

    sglext: ProgramExt


def with_report(
    response: Any, outputs: list[dict[str, Any]], kind: type[Any] = ProgramChatResponse
) -> Any:
    """The same response with the program's report; without a program the response itself."""
    report = merge_reports([output["meta_info"].get(CARRIER) for output in outputs])
    if report is None or not isinstance(response, ChatCompletionResponse | CompletionResponse):
        return response
    for choice in response.choices:
        if choice.finish_reason == "abort":  # OpenAI has no such value; the report has the reason
            choice.finish_reason = "length"
    others = dict(response.sglext) if response.sglext else {}
    return kind.model_construct(
        **{**dict(response), "sglext": ProgramExt.model_construct(**others, dynasor=report)}
    )


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


async def with_news(chunks: AsyncIterator[str], adapted_request: Any) -> AsyncIterator[str]:
    """The same stream with comments on the program between its chunks, as they come."""
    following = asyncio.ensure_future(anext(chunks, None))
    try:
        while True:
            done, _ = await asyncio.wait([following], timeout=_NEWS_INTERVAL_S)
            for comment in take_news(adapted_request):
                yield comment
            if not done:
                continue
            chunk = following.result()
            if chunk is None:
                return
            yield chunk
            following = asyncio.ensure_future(anext(chunks, None))
    finally:
        following.cancel()


async def report_last(chunks: AsyncIterator[str], adapted_request: Any) -> AsyncIterator[str]:
    """The same stream with the report in the last chunk that has a choice.

    None is the last before a choice has ended: from there on each waits for the one behind it.
    """
    ended = False
    held: str | None = None
    async for chunk in chunks:
        # Inside a text the quotes would be escaped.
        has_choice = '"choices":[{' in chunk
        ended = ended or '"finish_reason":"' in chunk
        if held is not None:
            yield held if has_choice else add_to_chunk(held, adapted_request)
            held = None
        if ended and has_choice:
            held = chunk.replace('"finish_reason":"abort"', '"finish_reason":"length"')
        else:
            yield chunk


def add_to_chunk(chunk: str, adapted_request: Any) -> str:
    """One event of a stream with the report of what was streamed, if there is one."""
    report = merge_reports(streamed_reports(adapted_request))
    if report is None:
        return chunk
    content = json.loads(chunk.removeprefix("data: "))
    content["sglext"] = {**(content.get("sglext") or {}), CARRIER: report}
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


class _NamesTheField(OpenAIServingBase):
    """Error bodies with the `param` and the status of the refusal that is being answered."""

    def create_error_response(
        self,
        message: str,
        err_type: str = "BadRequestError",
        status_code: int = 400,
        param: str | None = None,
    ) -> Any:
        error = sys.exc_info()[1]  # upstream hands on its text only
        if not isinstance(error, RequestError):
            return super().create_error_response(message, err_type, status_code, param)
        response = super().create_error_response(
            message, err_type, error.status_code, param or error.param
        )
        if error.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            response.headers["Retry-After"] = str(_RETRY_AFTER_S)
        return response


class DynasorServingChat(_NamesTheField, OpenAIServingChat):
    """Chat completions of programs."""

    def _build_chat_response(self, request: Any, ret: list[dict[str, Any]], created: int) -> Any:
        return with_report(super()._build_chat_response(request, ret, created), ret)

    def _generate_chat_stream(
        self, adapted_request: Any, request: Any, raw_request: Any
    ) -> AsyncIterator[str]:
        chunks = super()._generate_chat_stream(adapted_request, request, raw_request)
        if not names_program(adapted_request, raw_request):
            return chunks
        return with_news(report_last(chunks, adapted_request), adapted_request)


class DynasorServingCompletion(_NamesTheField, OpenAIServingCompletion):
    """Text completions of programs."""

    def _build_completion_response(
        self, request: Any, ret: list[dict[str, Any]], created: int
    ) -> Any:
        response = super()._build_completion_response(request, ret, created)
        return with_report(response, ret, ProgramCompletionResponse)

    def _generate_completion_stream(
        self, adapted_request: Any, request: Any, raw_request: Any
    ) -> AsyncIterator[str]:
        chunks = super()._generate_completion_stream(adapted_request, request, raw_request)
        if not names_program(adapted_request, raw_request):
            return chunks
        return with_news(report_last(chunks, adapted_request), adapted_request)
