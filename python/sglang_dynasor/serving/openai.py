"""OpenAI responses that carry `sglext.dynasor`.

Upstream: `sglang/srt/entrypoints/openai/serving_chat.py` and `serving_completions.py`. Program
fields of the request need nothing here: the tokenizer manager reads the body itself. `SglExt` drops
fields it does not declare, so the finished response is completed as a plain dict.
"""

from __future__ import annotations

from typing import Any

from fastapi.responses import ORJSONResponse
from pydantic import BaseModel
from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion

from sglang_dynasor.managers.program_messages import CARRIER


def add_report(response: Any, outputs: list[dict[str, Any]]) -> Any:
    """Put the program's report into a response; one without a program passes through untouched."""
    report = outputs[0]["meta_info"].get(CARRIER)
    if report is None or not isinstance(response, BaseModel):
        return response
    content = response.model_dump()
    content["sglext"] = {**(content.get("sglext") or {}), CARRIER: report}
    return ORJSONResponse(content)


class DynasorServingChat(OpenAIServingChat):
    """Chat completions of programs."""

    def _build_chat_response(self, request: Any, ret: list[dict[str, Any]], created: int) -> Any:
        return add_report(super()._build_chat_response(request, ret, created), ret)


class DynasorServingCompletion(OpenAIServingCompletion):
    """Text completions of programs."""

    def _build_completion_response(
        self, request: Any, ret: list[dict[str, Any]], created: int
    ) -> Any:
        return add_report(super()._build_completion_response(request, ret, created), ret)
