r"""Boxed answers: what a text puts into `\boxed{...}`."""

from __future__ import annotations

import re
from typing import NamedTuple

from sglang_dynasor.certaindex.canonical import canonical_key

_BARE_ARGUMENT = (
    r"-?[0-9]+(?:[.,/][0-9]+)*%?"
    r"|[A-Za-z](?![A-Za-z])(?=[ \t]*(?:[$.,;:)\]]|\\[)\]]|$))"
    r"|\\[dt]?frac(?:\{[^{}]{0,40}\}|[0-9]){2}|\\sqrt(?:\{[^{}]{0,40}\}|[0-9])|\\(?:pi|infty)\b"
)
_TOKEN = re.compile(
    r"(?P<box>\\{1,3}(?:boxed|fbox)(?![A-Za-z])"
    rf"(?:\s*+\{{|[ \t]{{0,4}}(?P<bare>{_BARE_ARGUMENT})))|\\.|[{{}}]",
    re.DOTALL | re.MULTILINE,
)
# Empty, or what a prompt writes into the box that it asks for.
_NO_CONTENT = re.compile(
    r"(?:[\s.\u2026]|\\[lc]?dots)*|(?:\\text\{)?(?i:(?:your |the |final )*answer(?: here)?)\}?"
)
_LIST_MARKER = re.compile(r"^[ \t]*\(?[0-9]{1,2}[.)][ \t]", re.MULTILINE)
_MAX_GAP = 120  # characters between two boxes of one list
_MAX_PREFILLED = 80  # characters up to the brace that closes a box opened in the prompt
_MAX_PREFILLED_WORDS = 3
_CLAUSE = re.compile(r"\b(?:is|are|we|so|the)\b", re.IGNORECASE)

_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_SENTENCE_END = re.compile(r"[.!?](?:[\s$*)\]}\\]|$)|[\u3002\uff01\uff1f]")
_EQUALS = re.compile(r"[\s$&{}()\\]*(?:=|\u2248)[\s$&{}()\\]*")
_CONNECTIVE = re.compile(r"and|or|und|oder|et|ou|with", re.IGNORECASE)
# What follows one of these corrects the box before it, or is concluded from it.
_REVISION = re.compile(
    r"\b(?:not|no|wrong|incorrect|wait|hmm|but|actually|instead|rather|correct(?:ion|ed)|mistake"
    r"|sorry|should|so|thus|hence|therefore|then|giv(?:es|ing)|get|yields|implies|means|making|total"
    r"|nein|falsch|sondern|also|daher|think)\b|\\(?:[Rr]ightarrow|implies|to|approx|iff|equiv)\b|=>",
    re.IGNORECASE,
)
_REJECTION = re.compile(
    r"\b(?:not|never|rather than|instead of|unlike|nicht)[\s$\\(:]*$", re.IGNORECASE
)


class _Box(NamedTuple):
    start: int  # of its command
    end: int
    content: str


def last_boxed(text: str) -> str:
    """Return the boxed answer of `text`, several of them joined by ", "; "" where there is none."""
    return ", ".join(boxed_answers(text))


def boxed_answers(text: str) -> list[str]:
    r"""Return the boxes that `text` answers with: the last one and those listed along with it.

    Boxes of one sentence or line are a list ("x = \boxed{3} and x = \boxed{5}") unless a word
    between them corrects or concludes; equal ones count once. A box that was cut off, is empty,
    asks for "your answer" or follows a "not" is none. Where there is no box, a short text up to an
    unmatched `}` is one: the prompt has opened it.
    """
    boxes, prefilled = _closed_boxes(text)
    if not boxes:
        return [prefilled] if prefilled else []
    answers = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if not _is_listed(text[box.end : answers[-1].start]):
            break
        answers.append(box)
    return list({canonical_key(box.content): box.content for box in reversed(answers)}.values())


def _closed_boxes(text: str) -> tuple[list[_Box], str]:
    boxes: list[_Box] = []
    prefilled = ""
    openers: list[tuple[int, int]] = []  # (start of the box's command or -1, start of its content)
    for token in _TOKEN.finditer(text):
        if token["bare"]:
            boxes.append(_Box(token.start(), token.end(), token["bare"]))
        elif token["box"]:
            openers.append((token.start(), token.end()))
        elif token[0] == "{":
            openers.append((-1, token.end()))
        elif token[0] == "}" and openers:
            start, content = openers.pop()
            if start > (boxes[-1].start if boxes else -1):
                boxes.append(_Box(start, token.end(), _one_line(text[content : token.start()])))
        elif token[0] == "}" and not prefilled:
            prefilled = _prefilled(text, token.start())
    return [box for box in boxes if _is_answer(text, box)], prefilled


def _one_line(content: str) -> str:
    return " ".join(content.split())  # LaTeX reads a line break as a blank


def _is_answer(text: str, box: _Box) -> bool:
    before = text[max(0, box.start - 20) : box.start]
    return not (_NO_CONTENT.fullmatch(box.content) or _REJECTION.search(before))


def _is_listed(gap: str) -> bool:
    gap = _LIST_MARKER.sub("", gap)
    if len(gap) > _MAX_GAP or _SENTENCE_END.search(gap) or _EQUALS.fullmatch(gap):
        return False
    if _REVISION.search(gap):
        return False
    words = _WORD.findall(_COMMAND.sub(" ", gap))
    return "\n" not in gap or all(map(_CONNECTIVE.fullmatch, words))


def _prefilled(text: str, end: int) -> str:
    content = text[:end].strip()
    if len(content) > _MAX_PREFILLED or "\n" in content or _SENTENCE_END.search(content):
        return ""
    if _CLAUSE.search(content):
        return ""
    return content if len(_WORD.findall(_COMMAND.sub(" ", content))) <= _MAX_PREFILLED_WORDS else ""
