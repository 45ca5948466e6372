"""Canonical keys: when two answers are the same answer."""

from __future__ import annotations

import re
from functools import lru_cache

from sglang_dynasor.certaindex.numbers import exact_number

# An answer is short; what is longer is code or prose, whose typography nobody varies.
_MAX_NORMALISED_LENGTH = 1000
_TEX_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm)?|math(?:bf|it|rm)|mbox|operatorname|boxed|fbox) ?\{([^{}]*)\}"
)
# Behind another backslash it is the end of a matrix row and what follows it.
_TEX_INVISIBLE = re.compile(
    r"\\(?:left|right)(?![A-Za-z])|(?<!\\)\\[!()\[\]$]|(?<=[0-9])\\,(?=[0-9]{3})"
)
_TEX_SPACE = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~")
_TEX_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_TEX_SHORT_FRACTION = re.compile(r"\\frac ?([0-9])([0-9])")
_SPACED_MARK = re.compile(r" ?([^\w\s]) ?")
_LETTER_IN_PARENTHESES = re.compile(r"\(([A-Za-z])\)")


def canonical_key(answer: str) -> str:
    """Return the key of the group that `answer` belongs to; equal keys mean the same answer.

    Numbers share the key of their exact rational value ("0.5", "1/2" and r"\\frac{1}{2}" give
    "1/2"); a percentage keeps its sign, so it equals no plain number. Any other answer is
    compared as text without LaTeX dress, spacing around marks and a final period; a single
    word also without case. Text of several lines (code) or above 1,000 characters is compared
    as it stands, but for blanks at the ends of lines. The key depends on nothing but the answer,
    and "" means that there is no answer.
    """
    text = answer.strip()
    if "\n" in text or len(text) > _MAX_NORMALISED_LENGTH:
        return "\n".join(line.rstrip() for line in text.splitlines())
    return _short_key(text)


@lru_cache(maxsize=2048)  # branches that agree mostly spell alike
def _short_key(text: str) -> str:
    text = _without_ends(" ".join(text.replace("\u2212", "-").split()))
    number = _rational_key(text)
    if number or not ("\\" in text or "{" in text):
        return number or _text_key(text)
    text = _without_ends(_without_tex_dress(text))
    return _rational_key(text) or _text_key(text)


def _without_ends(text: str) -> str:
    return text.strip("$ ").rstrip(". ").strip("$ ")


def _without_tex_dress(text: str) -> str:
    for _ in range(2):  # \text{\textbf{C}}: two layers occur, deeper ones only on purpose
        text = _TEX_WRAPPER.sub(r"\1", text)
    text = _TEX_INVISIBLE.sub("", text)
    text = _TEX_SPACE.sub(" ", text).replace("\\%", "%").replace("{,}", ",")
    text = _TEX_FRACTION.sub(r"\\frac", text)
    text = _TEX_SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    return " ".join(text.split())


def _rational_key(text: str) -> str:
    """Return the key of an exact rational, or "" where the text is not one."""
    number = text.removesuffix("%")
    value = exact_number(number)
    return "" if value is None else f"{value}{text[len(number) :]}"


def _text_key(text: str) -> str:
    text = _SPACED_MARK.sub(r"\1", text)
    letter = _LETTER_IN_PARENTHESES.fullmatch(text)
    if letter is not None:
        text = letter[1]
    return text.casefold() if text.isalpha() else text
