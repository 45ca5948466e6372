"""Reward, token certainty, and their combination with agreement."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import (
    CertaindexTracker,
    aggregate_reward,
    combine,
    keep_top_threshold,
    normalised_reward,
    path_agreement,
)

reproducible = settings(derandomize=True, deadline=None, max_examples=200)


def test_a_raw_reward_becomes_its_sigmoid() -> None:
    assert normalised_reward(0) == 0.5
    assert normalised_reward(2) == pytest.approx(0.880797, abs=1e-6)
    assert normalised_reward(-2) == pytest.approx(1 - normalised_reward(2))
    assert normalised_reward(1e9) == 1.0 and normalised_reward(-1e9) == pytest.approx(0)
    with pytest.raises(ValueError, match="NaN"):
        normalised_reward(math.nan)


def test_rewards_are_averaged_for_mcts_and_maximal_for_rebase() -> None:
    assert aggregate_reward([0.2, 0.8, 0.5], "mean") == pytest.approx(0.5)
    assert aggregate_reward([0.2, 0.8, 0.5], "max") == 0.8
    assert aggregate_reward([], "max") is None


@pytest.mark.parametrize("reward", [-0.1, 1.1, math.nan])
def test_a_reward_outside_its_range_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        aggregate_reward([reward], "mean")


def test_the_tracker_carries_the_reward_of_its_algorithm() -> None:
    tracker = CertaindexTracker(4, reward="max")
    assert tracker.evidence().reward is None
    for branch, reward in enumerate((0.3, 0.9, 0.1)):
        tracker.add(branch, "7", reward=reward)
    assert tracker.evidence().reward == 0.9


@pytest.mark.parametrize(
    ("counts", "reward", "certain"),
    [((3,), 0.4, True), ((2, 1), 0.9, False), ((3,), 0.39, False)],
)
def test_both_measures_must_meet_their_thresholds(
    counts: tuple[int, ...], reward: float, certain: bool
) -> None:
    """MCTS on GSM8K, paper table 3: agreement 0.99 and reward 0.4 after three iterations."""
    measures = {"agreement": path_agreement(counts), "reward": reward}
    assert combine(measures, {"agreement": 0.99, "reward": 0.4}).certain is certain


def test_a_measure_that_is_missing_is_not_met_and_without_thresholds_nothing_is_certain() -> None:
    combined = combine({"agreement": 1.0, "reward": None}, {"agreement": 0.7, "reward": 0.4})
    assert not combined.certain and combined.met == {"agreement": True, "reward": None}
    assert not combine({"agreement": 1.0}, {}).certain
    with pytest.raises(ValueError, match="threshold of agreement"):
        combine({}, {"agreement": 1.5})


@pytest.mark.parametrize(("fraction", "threshold"), [(0.1, 10), (0.9, 2), (1.0, 1), (0.25, 8)])
def test_the_kept_fraction_is_of_the_most_certain_branches(
    fraction: float, threshold: float
) -> None:
    assert keep_top_threshold(list(range(1, 11)), fraction) == threshold


@pytest.mark.parametrize("fraction", [0, 1.1])
def test_a_fraction_that_keeps_nothing_or_more_than_all_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="keep_top"):
        keep_top_threshold([1.0], fraction)


@reproducible
@given(st.lists(st.sampled_from(["a", "b", "c", "d", ""]), min_size=1, max_size=12), st.data())
def test_the_evidence_equals_recomputing_it(answers: list[str], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(answers))))
    tracker = CertaindexTracker(len(answers))
    for branch in order:
        tracker.add(branch, answers[branch])
    evidence = tracker.evidence()
    sequence = [answers[branch] for branch in order]
    groups = sorted(
        (-sequence.count(answer), answers.index(answer), answer) for answer in set(answers) - {""}
    )
    assert evidence.counts == tuple(-count for count, _, _ in groups)
    last = sequence[-1]
    run = len(sequence) - max((i + 1 for i, a in enumerate(sequence) if a != last), default=0)
    assert evidence.run == (run if last else 0)
    if groups:
        leader = groups[0][2]
        assert evidence.run_is_leaders == (last == leader)
        seen = list(dict.fromkeys(answer for answer in sequence if answer))
        assert evidence.leader_order == seen.index(leader) + 1
