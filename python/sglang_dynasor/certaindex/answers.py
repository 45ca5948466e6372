"""Answers: extraction from a branch's text, by format.

Every extractor takes time linear in the text, and a client's own pattern runs under a time limit:
a hostile text costs milliseconds. Equality of answers is `canonical_key`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from sglang_dynasor.certaindex.canonical import canonical_key
from sglang_dynasor.certaindex.patterns import (
    ANSWER_FORMATS,
    MAX_PATTERN_LENGTH,
    check_pattern,
    compiled_pattern,
)

__all__ = [
    "ANSWER_FORMATS",
    "MAX_PATTERN_LENGTH",
    "canonical_key",
    "check_pattern",
    "extract_answer",
]

# Each attempt may read the whole text; answers sit in the last few objects.
_MAX_JSON_ATTEMPTS = 64
_THOUGHT_END = "</think>"

_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*+\{|\\.|[{}]", re.DOTALL)
_OBJECT_OR_BRACE = re.compile(r'\{\s*+"|[{}]')
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)"
_LAST_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])[-+\u2212])?"
    r"(?:\\[dtc]?frac\{[-+]?[0-9]+\}\{[-+]?[0-9]+\}"
    rf"|(?:(?<!\w)(?<!\w\.){_DECIMAL}|(?<![\w.])\.[0-9]+)(?: ?/ ?(?:{_DECIMAL}|\.[0-9]+))?)"
)
_TEX_TEXT = r"(?:\\(?:text|textbf|textrm|mathrm|mathbf)\{)?"
_GAP = r"[^\w\n\\]{0,8}+"
_STATED_LETTER = (
    rf"{_GAP}(?:(?i:is|would be|should be)\b)?{_GAP}(?:(?i:option|choice)\b)?{_GAP}"
    rf"{_TEX_TEXT}\(?(?:([A-J])(?![\w'\u2019])|(?<=\()([a-j])(?=\)))"
)
# Most explicit form first; within a form the last occurrence is the answer.
_CHOICE_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"\\(?:boxed|fbox)\s{{0,4}}\{{[\s(]{{0,4}}{_TEX_TEXT}[\s(]{{0,4}}([A-Ja-j])(?![\w'])",
        rf"(?i:\banswer\b){_STATED_LETTER}",
        rf"(?i:\b(?:choice|option)\b){_STATED_LETTER}",
        r"\(([A-J])\)",
        r"(?<![\w.'\u2019])([A-J])(?:[.)*]|\s*+$)",
    )
)


def extract_answer(
    text: str,
    answer_format: str = "boxed",
    pattern: str | None = None,
    time_limit_s: float = 0.05,
) -> str:
    """Return the answer that `text` gives, or "" where it gives none.

    Text after the last closing `</think>` goes first; only where it holds no answer does the
    whole text count (format text: never). `time_limit_s` (seconds) bounds a client's own regular
    expression; past it there is no answer. Raises ValueError as `check_pattern` does.
    """
    check_pattern(answer_format, pattern)
    _, thought_end, conclusion = text.rpartition(_THOUGHT_END)
    if answer_format == "text":
        return conclusion.strip()
    answer = _extract(conclusion, answer_format, pattern or "", time_limit_s)
    if answer or not thought_end:
        return answer
    return _extract(text, answer_format, pattern or "", time_limit_s)


def _extract(text: str, answer_format: str, pattern: str, time_limit_s: float) -> str:
    if answer_format == "regex":
        return _last_pattern_match(text, pattern, time_limit_s)
    if answer_format == "json":
        return _last_json_field(text, pattern.split("."))
    return _EXTRACTORS[answer_format](text)


def _last_boxed(text: str) -> str:
    start, end = 0, 0
    openers: list[tuple[bool, int]] = []  # (is a box, where its content starts)
    for token in _BOX_OR_BRACE.finditer(text):
        if token[0] == "}":
            is_box, content = openers.pop() if openers else (False, 0)
            if is_box and token.start() > content > start:
                start, end = content, token.start()
        elif token[0][-1] == "{" and token[0] != "\\{":
            openers.append((len(token[0]) > 1, token.end()))
    return " ".join(text[start:end].split())  # LaTeX reads a line break as a blank


def _last_number(text: str) -> str:
    number = ""
    for match in _LAST_NUMBER.finditer(text):
        number = match[0]
    return number


def _last_choice(text: str) -> str:
    for form in _CHOICE_FORMS:
        letters = [next(filter(None, match.groups())) for match in form.finditer(text)]
        if letters:
            return letters[-1].upper()
    return ""


def _last_code_block(text: str) -> str:
    code = ""
    block: list[str] | None = None
    for line in text.splitlines():
        fence = line.strip()
        if not fence.startswith("```"):
            if block is not None:
                block.append(line)
        elif block is not None and fence.strip("`") == "":
            code, block = "\n".join(block), None
        else:
            block = []
    return code.strip("\n")


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


def _last_json_field(text: str, path: list[str]) -> str:
    # Digits stay as written: a number's spelling is the answer's spelling.
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)
    open_braces: list[tuple[bool, int]] = []  # (may open an object, where)
    closed_braces: list[tuple[bool, int]] = []  # by where they close: an object after its parts
    for token in _OBJECT_OR_BRACE.finditer(text):
        if token[0] != "}":
            open_braces.append((len(token[0]) > 1, token.start()))
        elif open_braces:
            closed_braces.append(open_braces.pop())
    # A brace inside a JSON string can leave the object's own brace without a partner.
    candidates = [*reversed(closed_braces), *reversed(open_braces)]
    objects = [start for may_open_object, start in candidates if may_open_object]
    for start in objects[:_MAX_JSON_ATTEMPTS]:
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            return value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return ""


_EXTRACTORS: dict[str, Callable[[str], str]] = {
    "boxed": _last_boxed,
    "number": _last_number,
    "choice": _last_choice,
    "code": _last_code_block,
}
