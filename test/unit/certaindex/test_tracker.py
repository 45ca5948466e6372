from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import CertaindexTracker, Evidence, Vote, path_agreement

reproducible = settings(derandomize=True, deadline=None, max_examples=300)
ANSWERS = st.sampled_from(["1", "2", "3", "4", ""])


def tracker_of(*answers: str, max_branches: int = 8) -> CertaindexTracker:
    tracker = CertaindexTracker(max_branches)
    for branch, answer in enumerate(answers):
        tracker.add(branch, answer)
    return tracker


@reproducible
@given(st.lists(ANSWERS, max_size=40), st.randoms(use_true_random=False))
def test_the_tracker_equals_recomputation_after_every_branch(answers: list[str], rng) -> None:
    tracker = CertaindexTracker(50)
    done: dict[int, str] = {}
    for branch in rng.sample(range(len(answers)), len(answers)):
        tracker.add(branch, answers[branch], weight=0.5)
        done[branch] = answers[branch]
        counts = Counter(answer for answer in done.values() if answer)
        empty = len(done) - counts.total()
        first = {answer: min(b for b in done if done[b] == answer) for answer in counts}
        votes = sorted(
            (Vote(answer, count, count / 2, first[answer]) for answer, count in counts.items()),
            key=lambda vote: (-vote.count, vote.first_branch),
        )
        assert tracker.votes() == votes
        assert tracker.leader == (votes[0] if votes else None)
        assert tracker.finished == len(done)
        assert tracker.certaindex == path_agreement([*counts.values(), *[1] * empty])
        evidence = tracker.evidence()
        assert evidence.counts == tuple(vote.count for vote in votes)
        assert (evidence.finished, evidence.remaining) == (len(done), 50 - len(done))
        assert (evidence.certaindex, evidence.empty) == (tracker.certaindex, empty)


def test_equal_answers_are_one_vote_spelled_as_the_lowest_branch_spelled_it() -> None:
    tracker = CertaindexTracker(4)
    tracker.add(2, "1/2", weight=0.25)
    tracker.add(0, "0.5")
    tracker.add(3, r"\frac{1}{2}", weight=2.0)
    assert tracker.votes() == [Vote("0.5", 3, 3.25, 0)]


def test_ties_go_to_the_lowest_branch_and_not_to_the_first_to_finish() -> None:
    tracker = CertaindexTracker(4)
    tracker.add(3, "late")
    tracker.add(1, "early")
    assert tracker.leader == Vote("early", 1, 1.0, 1)
    tracker.add(0, "late")
    tracker.add(2, "early")
    assert tracker.leader == Vote("late", 2, 2.0, 0)


def test_empty_answers_lower_the_certaindex_and_never_lead() -> None:
    tracker = tracker_of("", "", "7")
    assert tracker.leader == Vote("7", 1, 1.0, 2)
    assert tracker.certaindex == path_agreement((1, 1, 1)) == 0.0
    assert tracker_of("7", "7", "", "").certaindex == path_agreement((2, 1, 1))
    assert tracker_of("", "", "").leader is None


@pytest.mark.parametrize(
    ("finished", "wins"),
    [
        ({}, False),
        ({0: ""}, False),
        ({0: "a"}, True),
        ({1: "a"}, False),
        ({0: "a", 1: "b"}, True),
        ({0: "b", 1: "a", 2: "a"}, False),
        ({0: "a", 1: "b", 2: "a"}, True),
        ({0: "b", 1: "a", 2: "a", 3: "c", 4: "c", 5: "a"}, True),
        ({1: "a", 2: "a", 0: "c", 3: "b"}, False),
    ],
)
def test_the_leader_wins_ties_only_from_the_lowest_branch(
    finished: dict[int, str], wins: bool
) -> None:
    tracker = CertaindexTracker(8)
    for branch, answer in finished.items():
        tracker.add(branch, answer)
    assert tracker.evidence().leader_wins_ties is wins


@reproducible
@given(st.lists(ANSWERS, max_size=10), st.integers(0, 5))
def test_evidence_after_agreement_is_what_agreeing_branches_would_give(
    answers: list[str], m: int
) -> None:
    tracker = tracker_of(*answers, max_branches=15)
    predicted = tracker.evidence().after_agreement(m)
    answer = tracker.leader.answer if tracker.leader else "new"
    for branch in range(len(answers), len(answers) + m):
        tracker.add(branch, answer)
    assert predicted == tracker.evidence()


@pytest.mark.parametrize("m", [-1, 3])
def test_more_agreement_than_branches_remain_is_refused(m: int) -> None:
    evidence = Evidence((2,), 2, 2, 1.0, True, 0)
    with pytest.raises(ValueError, match="m must be between 0 and 2"):
        evidence.after_agreement(m)


@pytest.mark.parametrize("branch", [-1, 8])
def test_a_branch_out_of_range_is_refused(branch: int) -> None:
    with pytest.raises(ValueError, match="branch must be below 8"):
        tracker_of().add(branch, "1")


def test_a_branch_finishes_once() -> None:
    with pytest.raises(ValueError, match="branch 0 has already finished"):
        tracker_of("1").add(0, "1")


def test_a_program_has_at_least_one_branch() -> None:
    with pytest.raises(ValueError, match="max_branches"):
        CertaindexTracker(0)


def test_an_excluded_branch_tells_nothing_but_has_had_its_turn() -> None:
    tracker = tracker_of("7", "7", max_branches=5)
    before = tracker.evidence()
    tracker.exclude(3)
    evidence = tracker.evidence()
    assert (evidence.finished, evidence.remaining, tracker.ended) == (2, 2, 3)
    assert (evidence.certaindex, evidence.counts, evidence.empty) == (
        before.certaindex,
        before.counts,
        before.empty,
    )
    for again in (tracker.exclude, lambda branch: tracker.add(branch, "7")):
        with pytest.raises(ValueError, match="already finished"):
            again(3)


def test_a_leader_wins_ties_over_branches_that_were_excluded() -> None:
    tracker = CertaindexTracker(4)
    tracker.add(1, "7")
    assert not tracker.evidence().leader_wins_ties
    tracker.exclude(0)
    assert tracker.evidence().leader_wins_ties
