"""The embedded model's turns, for `sgl.user` and `sgl.assistant`.

sgl.lang renders turns on the client and picks a template by the model's path; a model it does not
know gets a generic one. The same turns as the model's own `chat_template.jinja`.
"""

from __future__ import annotations

from typing import Any

from sglang.lang.chat_template import (
    ChatTemplate,
    register_chat_template,
    register_chat_template_matching_function,
)

from sglang_dynasor.models import TINY_REASONER
from sglang_dynasor.models.character_tokenizer import ASSISTANT, BOS, EOS, USER


class _TinyReasonerTemplate(ChatTemplate):
    def get_prefix_and_suffix(
        self, role: str, hist_messages: list[dict[str, Any]]
    ) -> tuple[str, str]:
        prefix, suffix = super().get_prefix_and_suffix(role, hist_messages)
        return prefix if hist_messages else BOS + prefix, suffix


def register() -> None:
    """Make the template known to sgl.lang, by name and for the embedded model's folder."""
    turns = {"user": (USER, ""), "assistant": (ASSISTANT, EOS)}
    register_chat_template(_TinyReasonerTemplate(TINY_REASONER, "", turns, (EOS,)))
    register_chat_template_matching_function(
        lambda path: TINY_REASONER if TINY_REASONER in str(path) else None
    )
