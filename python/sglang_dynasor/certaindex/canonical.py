"""Canonical keys: when two answers are the same answer by their spelling."""

from __future__ import annotations

import re
from functools import lru_cache

from sglang_dynasor.certaindex.notation import as_latex, undressed, without_emphasis
from sglang_dynasor.certaindex.numbers import exact_number

# An answer is short; what is longer is code or prose, whose typography nobody varies.
_MAX_NORMALISED_LENGTH = 1000
_ELLIPSIS = re.compile(r"\.{3,}")
# The blank of "1, 234" is all that tells two numbers from one.
_SPACED_MARK = re.compile(r" ?(?!(?<=[0-9]), [0-9]{3}(?![0-9]))([^\w\s]) ?")
_LOOSE_COMMA = re.compile(" , ?")
# What stands behind may belong to an exponent without braces: e^{2}x is not e^2x.
_BRACED_SCRIPT = re.compile(r"([\^_])\{([A-Za-z0-9])\}(?![A-Za-z0-9])|(_)\{([0-9])\}(?![0-9])")
_LETTER_IN_PARENTHESES = re.compile(r"\(([A-Za-z])\)")
# In other words, of up to three letters, case may tell symbols, units or numerals apart.
_WORDS = {"yes", "no", "not", "odd", "all", "the", "are"}
_MIN_WORD_LENGTH = 4


def canonical_key(answer: str) -> str:
    r"""Return the key of the group that `answer` belongs to; equal keys mean the same answer.

    Numbers share the key of their exact rational value ("0.5", "1/2" and `\frac{1}{2}` give
    "1/2"); a percentage keeps its sign, so it equals no plain number. Any other answer is
    compared as text without LaTeX dress, Markdown emphasis, dollars, a leading "=", spacing around
    marks and final points and commas, with Unicode signs as LaTeX; words of four letters or more
    (yes and no too) also without case, which each may have at its start or throughout. Text
    of several lines (code) or above 1,000 characters is compared as it stands, but for blanks at
    the ends of lines. The key depends on nothing but the answer, a key is its own key, and ""
    means that there is no answer.
    """
    text = answer.strip()
    if "\n" in text or len(text) > _MAX_NORMALISED_LENGTH:
        return "\n".join(line.rstrip() for line in text.splitlines())
    return _short_key(text)


@lru_cache(maxsize=2048)  # branches that agree mostly spell alike
def _short_key(text: str) -> str:
    text = _without_ends(_ELLIPSIS.sub(r"\\ldots ", text))
    number = _rational_key(text)
    if number:
        return number
    text = _without_ends(without_emphasis(text))
    text = " ".join(as_latex(undressed(text)).split())
    text = _without_ends(_LOOSE_COMMA.sub(", ", text))
    number = _rational_key(text)
    if number:
        return number
    key = _text_key(text)
    return text if _rational_key(key) else key  # as "2e - 3" without its blanks


def _without_ends(text: str) -> str:
    return text.strip("$ ").lstrip("= ").rstrip("., ;").strip("$ ")


def _rational_key(text: str) -> str:
    """Return the key of an exact rational, or "" where the text is not one."""
    number = text.removesuffix("%")
    value = exact_number(number)
    return "" if value is None else f"{value}{text[len(number) :]}"


def _text_key(text: str) -> str:
    text = _BRACED_SCRIPT.sub(r"\1\2\3\4", _SPACED_MARK.sub(r"\1", text))
    letter = _LETTER_IN_PARENTHESES.fullmatch(text)
    if letter is not None:
        text = letter[1]
    return text.casefold() if all(map(_is_word, text.split(" "))) else text


def _is_word(text: str) -> bool:
    if not text.isalpha() or not (text.islower() or text.isupper() or text.istitle()):
        return False
    return len(text) >= _MIN_WORD_LENGTH or text.casefold() in _WORDS
