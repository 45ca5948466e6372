"""Answers: extraction from a branch's text, by format.

Every extractor takes time linear in the text, and a client's own pattern runs under a time limit:
a hostile text costs milliseconds. Equality of answers is `canonical_key`.
"""

from __future__ import annotations

from collections.abc import Callable

from sglang_dynasor.certaindex.boxed import last_boxed
from sglang_dynasor.certaindex.canonical import canonical_key
from sglang_dynasor.certaindex.choice import last_choice
from sglang_dynasor.certaindex.code_block import last_code_block
from sglang_dynasor.certaindex.json_field import last_json_field
from sglang_dynasor.certaindex.patterns import (
    ANSWER_FORMATS,
    MAX_PATTERN_LENGTH,
    check_pattern,
    compiled_pattern,
)
from sglang_dynasor.certaindex.prose_number import last_number

__all__ = [
    "ANSWER_FORMATS",
    "MAX_PATTERN_LENGTH",
    "canonical_key",
    "check_pattern",
    "extract_answer",
]

# An answer stands at the end; a text that is longer is hostile or lost.
_MAX_READ_LENGTH = 100_000  # characters

_THOUGHT_START, _THOUGHT_END = "<think>", "</think>"


def extract_answer(
    text: str,
    answer_format: str = "boxed",
    pattern: str | None = None,
    time_limit_s: float = 0.05,
) -> str:
    """Return the answer that `text` gives, or "" where it gives none.

    Text after the last closing `</think>` goes first; only where it holds no answer does the
    whole text count (format text: never). A thought that is opened and never closed is a draft
    and counts for nothing; one that the prompt has opened can't be told from a conclusion. Of a
    longer text the last 100,000 characters are read (formats regex and text: all).
    `time_limit_s` (seconds) bounds a client's own regular expression; past it there is no answer.
    Raises ValueError as `check_pattern` does.
    """
    check_pattern(answer_format, pattern)
    thought, thought_end, conclusion = text.rpartition(_THOUGHT_END)
    conclusion = conclusion.partition(_THOUGHT_START)[0]
    if answer_format == "text":
        return conclusion.strip()
    answer = _extract(conclusion, answer_format, pattern or "", time_limit_s)
    if answer or not thought_end:
        return answer
    whole = thought + thought_end + conclusion
    return _extract(whole, answer_format, pattern or "", time_limit_s)


def _extract(text: str, answer_format: str, pattern: str, time_limit_s: float) -> str:
    if answer_format == "regex":
        return _last_pattern_match(text, pattern, time_limit_s)
    text = text[-_MAX_READ_LENGTH:]
    if answer_format == "json":
        return last_json_field(text, pattern.split("."))
    return _EXTRACTORS[answer_format](text)


def _last_pattern_match(text: str, pattern: str, time_limit_s: float) -> str:
    compiled = compiled_pattern(pattern)
    group = min(compiled.groups, 1)
    answer = ""
    try:
        for match in compiled.finditer(text, timeout=time_limit_s):
            answer = (match[group] or "").strip() or answer
    except TimeoutError:
        return ""
    return answer


_EXTRACTORS: dict[str, Callable[[str], str]] = {
    "boxed": last_boxed,
    "number": last_number,
    "choice": last_choice,
    "code": last_code_block,
}
