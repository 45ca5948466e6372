"""Votes of running branches count where finished ones have confirmed their answer."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dynasor.allocation.running_votes import CONFIRMED_FROM, with_running_votes
from sglang_dynasor.certaindex import CertaindexTracker, Evidence

MOST = 32


def evidence_of(answers: str) -> Evidence:
    tracker = CertaindexTracker(MOST)
    for branch, answer in enumerate(answers):
        tracker.add(branch, answer)
    return tracker.evidence()


@pytest.mark.parametrize(
    ("finished", "running", "counts", "remaining"),
    [
        ("aaaa", {"a": 3}, (7,), 25),
        ("aaaab", {"a": 3, "b": 5}, (7, 1), 24),  # nobody has confirmed b
        ("aaaaabbbb", {"a": 1, "b": 1}, (6, 5), 21),
        ("aaaa", {"c": 3, "a": 1}, (5,), 27),
        ("aaaa", {"a": 28}, (32,), 1),  # one at least may still change
    ],
)
def test_running_branches_confirm_what_four_have_finished_with(
    finished: str, running: dict[str, int], counts: tuple[int, ...], remaining: int
) -> None:
    found = with_running_votes(evidence_of(finished), Counter(finished), running)
    assert found is not None
    assert (found.counts, found.remaining) == (counts, remaining)


@pytest.mark.parametrize(
    ("finished", "running"),
    [
        ("aaa", {"a": 9}),  # too few have finished
        ("aaaa", {"b": 9}),
        ("aaaabbbb", {"a": 9}),  # a does not strictly lead
        ("aaaaabbbb", {"b": 9}),  # the one with most votes is behind among the finished
        ("", {"a": 9}),
    ],
)
def test_nothing_is_confirmed_otherwise(finished: str, running: dict[str, int]) -> None:
    assert with_running_votes(evidence_of(finished), Counter(finished), running) is None


@given(st.text("abc", max_size=16), st.dictionaries(st.sampled_from("abcd"), st.integers(0, 5)))
def test_confirmed_votes_only_move_branches_from_remaining_to_finished(
    finished: str, running: dict[str, int]
) -> None:
    before = evidence_of(finished)
    found = with_running_votes(before, Counter(finished), running)
    if found is None:
        return
    assert found.finished - before.finished == sum(found.counts) - sum(before.counts)
    assert found.finished + found.remaining in (MOST, MOST + 1)
    assert found.counts == tuple(sorted(found.counts, reverse=True))
    assert max(Counter(finished).values()) >= CONFIRMED_FROM
    assert 0 <= found.certaindex <= 1
