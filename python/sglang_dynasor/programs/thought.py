"""Where a chain of thought stands: still thinking, or at a place where it must not be cut."""

from __future__ import annotations

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs.params import RequestTraits

# The sentence of the paper and of its released code, for chains without think tags.
PLAIN_PROBE_TEXT = (
    "... Oh, I suddenly got the answer to the whole problem, **Final Answer**\n\n\\[ \\boxed{"
)
_FENCE = "```"
_BROKEN_CHARACTER = "\ufffd"
# What opens and closes a tool call, in the formats of the common families.
_TOOL_CALLS = (
    ("<tool_call>", "</tool_call>"),
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>"),
    ("[TOOL_CALLS]", "[/TOOL_CALLS]"),
    ("<function=", "</function>"),
)


def is_thinking(text: str, prompt_opens: bool, think_end: str) -> bool:
    """Whether `text` ends inside a thought, which the prompt may have opened."""
    think_start = think_end.replace("/", "", 1)
    return (prompt_opens or think_start in text) and think_end not in text


def may_be_cut(text: str) -> bool:
    """Whether `text` may end here: not inside a character, a code block or a tool call."""
    if text.endswith(_BROKEN_CHARACTER) or text.count(_FENCE) % 2:
        return False
    return all(text.count(start) <= text.count(end) for start, end in _TOOL_CALLS)


def probe_text_for(config: DynasorConfig, request: RequestTraits) -> str:
    """What is forced onto a chain to have its answer: the end of its thought, and an open box."""
    if config.probe_text:
        return config.probe_text
    return f"{config.think_end}\n\n\\boxed{{" if request.opens_thought else PLAIN_PROBE_TEXT
