"""Doubt in the words of a probe: whole words, and never the answer itself."""

from __future__ import annotations

import pytest

from sglang_dynasor.certaindex.hedges import HEDGES, is_hedged


@pytest.mark.parametrize("word", HEDGES)
@pytest.mark.parametrize("spelled", [str.lower, str.upper, str.title])
def test_every_hedge_counts_as_a_whole_word(word: str, spelled: object) -> None:
    assert callable(spelled)
    assert is_hedged(f"42}} {spelled(word)}, maybe", "42")


@pytest.mark.parametrize(
    "text",
    [
        *("nonzero}", "\\text{north}}", "normal}", "a button}", "threshold}", "know}", "42}"),
        *("", "}", "waiter}", "butter}"),
    ],
)
def test_a_part_of_a_word_is_no_doubt(text: str) -> None:
    assert not is_hedged(text)


@pytest.mark.parametrize(
    ("text", "answer", "hedged"),
    [
        ("No}", "No", False),
        ("no}", "no", False),
        ("No} wait", "No", True),
        ("no, no}", "no, no", True),
        ("hold on}", "hold on", True),
    ],
)
def test_no_can_be_an_answer(text: str, answer: str, hedged: bool) -> None:
    assert is_hedged(text, answer) is hedged
