"""Words with which a model doubts the answer it is just giving (paper 2.1, after a probe)."""

from __future__ import annotations

import re

# The words of the released code, whole: it also found "no" in "nonzero", "hold" in "threshold".
HEDGES = ("wait", "hold", "but", "okay", "no", "hmm")
_HEDGE = re.compile(rf"\b(?:{'|'.join(HEDGES)})\b", re.IGNORECASE)
_WORD = re.compile(r"\w+")


def is_hedged(text: str, answer: str = "") -> bool:
    """Whether `text`, what a probe has generated, holds a word of doubt.

    One that is the whole answer is none: "No" answers a question.
    """
    words = _WORD.findall(answer)
    doubts = len(_HEDGE.findall(text))
    if len(words) == 1 and _HEDGE.fullmatch(words[0]):
        doubts -= len(_HEDGE.findall(answer))
    return doubts > 0
