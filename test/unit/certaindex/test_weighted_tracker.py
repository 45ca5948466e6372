"""Votes by confidence: which answer leads, and when nothing but counts is left."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import CertaindexTracker, Vote, WeightedTracker

reproducible = settings(derandomize=True, deadline=None, max_examples=200)
ballots = st.lists(
    st.tuples(st.sampled_from(["1", "2", "3", ""]), st.floats(0, 20)), min_size=1, max_size=12
)
Ballots = list[tuple[str, float]]


def tracker_of(votes: Ballots, keep_top: float | None = None) -> WeightedTracker:
    tracker = WeightedTracker(len(votes), keep_top=keep_top)
    for branch, (answer, confidence) in enumerate(votes):
        tracker.add(branch, answer, confidence)
    return tracker


@reproducible
@given(ballots, st.none() | st.floats(0.05, 0.95), st.data())
def test_the_vote_equals_recomputing_it_in_any_order_of_finishing(
    votes: Ballots, keep_top: float | None, data: st.DataObject
) -> None:
    tracker = WeightedTracker(len(votes), keep_top=keep_top)
    for branch in data.draw(st.permutations(range(len(votes)))):
        tracker.add(branch, *votes[branch])
    answered = sorted((w for answer, w in votes if answer), reverse=True)
    kept = len(answered) if keep_top is None else math.ceil(round(keep_top * len(answered), 9))
    bar = answered[kept - 1] if answered else 0.0
    expected = []
    for answer in {answer for answer, _ in votes} - {""}:
        weights = [w for other, w in votes if other == answer]
        first = next(branch for branch, (other, _) in enumerate(votes) if other == answer)
        weight = math.fsum(w for w in weights if w >= bar)
        expected.append(Vote(answer, len(weights), weight, first))
    expected.sort(key=lambda vote: (-round(vote.weight, 9), -vote.count, vote.first_branch))
    assert tracker.votes() == expected
    assert tracker.leader == (expected[0] if expected else None)
    evidence = tracker.evidence()
    assert evidence.total_weight == math.fsum(vote.weight for vote in expected)
    assert evidence.leader_weight == (expected[0].weight if expected else 0.0)
    assert not evidence.unit_votes


@reproducible
@given(st.lists(st.sampled_from(["1", "2", "3", ""]), min_size=1, max_size=12))
def test_equal_confidence_is_the_majority_vote(answers: list[str]) -> None:
    majority = CertaindexTracker(len(answers))
    for branch, answer in enumerate(answers):
        majority.add(branch, answer)
    for confidence in (2.0, 0.0):  # 0: nothing was measured
        weighted = tracker_of([(answer, confidence) for answer in answers])
        assert [vote.answer for vote in weighted.votes()] == [v.answer for v in majority.votes()]


def test_few_confident_branches_outweigh_many() -> None:
    votes = [("many", 1.0), ("many", 1.0), ("many", 1.0), ("few", 9.0)]
    assert tracker_of(votes).votes() == [Vote("few", 1, 9.0, 3), Vote("many", 3, 3.0, 0)]


@pytest.mark.parametrize(("keep_top", "leader"), [(0.1, "best"), (0.9, "rest")])
def test_the_most_confident_are_kept_and_not_the_least(keep_top: float, leader: str) -> None:
    votes = [("rest", 5.0)] * 9 + [("best", 6.0)]
    tracker = tracker_of(votes, keep_top)
    assert tracker.leader is not None and tracker.leader.answer == leader
    kept = {vote.answer: vote.weight for vote in tracker.votes()}
    assert kept["best"] == 6.0 and (kept["rest"] > 0) == (keep_top == 0.9)


def test_ties_go_to_more_branches_and_then_to_the_lowest() -> None:
    votes = [("a", 4.0), ("b", 2.0), ("b", 2.0), ("c", 4.0)]
    assert [vote.answer for vote in tracker_of(votes).votes()] == ["b", "a", "c"]
