from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paper_policies import (
    AllocationPolicy,
    AllocationStop,
    Curves,
    Even,
    Length,
    StepCurve,
    Threshold,
    fit_curves,
    fit_envelope,
    oracle_steps,
    replay_policy,
)
from sglang_dynasor.allocation import FixedGrants, ThresholdRule
from sglang_dynasor.certaindex import CertaindexTracker, Evidence
from sglang_dynasor.offline import Sample, Samples, full_vote, replay

reproducible = settings(derandomize=True, deadline=None, max_examples=300)
SAMPLES = st.lists(
    st.builds(Sample, st.sampled_from(["a", "b", "c", ""]), st.integers(0, 20)),
    min_size=1,
    max_size=20,
)
POINTS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), st.integers(1, 20)), min_size=1
)
PROBLEMS = st.lists(st.lists(st.sampled_from("abc"), min_size=9, max_size=9), min_size=1)
CURVE = StepCurve((0.2, 0.6, 1.0), (9, 4, 1))


class Ran(NamedTuple):
    """What a policy did: `path` is the sum over rounds of the longest branch."""

    answer: str
    stop_reason: str
    tokens: int
    branches: int
    rounds: int
    path: int


def run_policy(samples: list[Sample], policy: AllocationPolicy) -> Ran:
    run = replay_policy(Samples(samples), policy)
    outcome = run.outcome
    spent = (run.tokens, run.finished, outcome.rounds, run.sequential_tokens)
    return Ran(outcome.answer, outcome.stop_reason, *spent)


def samples_of(answers: str, n_tokens: int = 10) -> list[Sample]:
    return [Sample(answer.strip(), n_tokens) for answer in answers]


def evidence_of(answers: str, remaining: int = 100) -> Evidence:
    tracker = CertaindexTracker(len(answers) + remaining)
    for branch, answer in enumerate(answers):
        tracker.add(branch, answer.strip())
    return tracker.evidence()


@pytest.mark.parametrize(
    ("policy", "evidence", "spent_tokens", "step"),
    [
        (Even(8), evidence_of(""), 0, 8),
        (Even(8), evidence_of("", remaining=3), 0, 3),
        (Even(8), evidence_of("aaaaaaaa"), 80, "budget"),
        (Length(5, 300), evidence_of(""), 0, 5),
        (Length(5, 300), evidence_of("abcde", remaining=7), 301, 7),
        (Length(5, 300), evidence_of("abcde", remaining=7), 300, "certain"),
        (Threshold(), evidence_of("", remaining=20), 0, 5),
        (Threshold(), evidence_of("aaaaa", remaining=15), 50, "certain"),
        (Threshold(), evidence_of("aaaab", remaining=15), 50, 15),
        (Threshold(0.4), evidence_of("aaabc", remaining=15), 50, "certain"),
        (Threshold(0.0), evidence_of("     ", remaining=15), 50, 15),
        (Threshold(0.75, at=16), evidence_of("aaaaaaaabbbbbbbb"), 0, "certain"),
        (Threshold(every=3), evidence_of("aaaab", remaining=15), 50, 3),
        (Threshold(every=3), evidence_of("aaaab", remaining=2), 50, 2),
        (Threshold(every=1), evidence_of("aaaab"), 50, 1),
        (Threshold(every=1), evidence_of("aaaaab"), 60, "certain"),
        (Curves({5: CURVE}), evidence_of(""), 0, 5),
        (Curves({5: CURVE}), evidence_of("abcde"), 50, 4),
        (Curves({5: CURVE}), evidence_of("abcde", remaining=2), 50, 2),
        (Curves({5: CURVE}), evidence_of("aaabb"), 50, "certain"),
        (Curves({5: CURVE}), evidence_of("abcdefghi"), 90, "budget"),
        (Curves({2: CURVE, 3: CURVE}), evidence_of("ab"), 20, 1),
        (Curves({2: CURVE, 3: CURVE}), evidence_of("abc"), 30, 6),
        (Curves({2: CURVE, 3: CURVE}), evidence_of("aab"), 30, 1),
        (Curves({2: CURVE, 8: CURVE}), evidence_of("aa"), 20, "certain"),
    ],
)
def test_a_policy_answers_the_evidence(
    policy: AllocationPolicy, evidence: Evidence, spent_tokens: int, step: int | str
) -> None:
    assert policy.next_step(evidence, spent_tokens) == step


@pytest.mark.parametrize(
    ("policy", "outcome"),
    [
        (Even(3), Ran("a", "budget", 60, 3, 1, 30)),
        (Even(6), Ran("a", "completed", 130, 6, 1, 40)),
        (Length(2, 30), Ran("a", "certain", 30, 2, 1, 20)),
        (Length(2, 29), Ran("a", "completed", 130, 6, 2, 60)),
        (Threshold(0.7, at=2), Ran("a", "completed", 130, 6, 2, 60)),
        (Threshold(0.5, at=2, every=2), Ran("a", "certain", 100, 4, 2, 60)),
        (Threshold(0.6, at=2, every=1), Ran("a", "completed", 130, 6, 5, 120)),
        (Curves({2: CURVE}), Ran("a", "completed", 130, 6, 2, 60)),
        (Curves({4: CURVE}), Ran("a", "certain", 100, 4, 1, 40)),
    ],
)
def test_a_run_counts_tokens_rounds_and_the_critical_path(policy, outcome) -> None:
    samples = [
        Sample(answer, n_tokens)
        for answer, n_tokens in zip("abaacd", (10, 20, 30, 40, 10, 20), strict=True)
    ]
    assert run_policy(samples, policy) == outcome


def test_a_policy_of_ones_own_is_one_method() -> None:
    class UntilTwoAgree:
        def next_step(self, evidence: Evidence, spent_tokens: int) -> int | AllocationStop:
            return "certain" if max(evidence.counts, default=0) > 1 else 1

    assert run_policy(samples_of("abcbd"), UntilTwoAgree()) == Ran("b", "certain", 40, 4, 4, 40)


@pytest.mark.parametrize("size", [0, -1, 3])
def test_a_grant_beyond_what_remains_is_refused(size: int) -> None:
    class Grants:
        def next_step(self, evidence: Evidence, spent_tokens: int) -> int:
            return size

    with pytest.raises(ValueError, match="grant must be 1 to 2"):
        run_policy(samples_of("ab"), Grants())


@reproducible
@given(SAMPLES, st.floats(0, 1), st.integers(1, 8), st.integers(1, 6))
def test_asking_more_often_never_costs_branches(samples, threshold, at, every) -> None:
    static, k_step, single = (
        run_policy(samples, Threshold(threshold, at, k)) for k in (None, every, 1)
    )
    assert single.branches <= k_step.branches <= static.branches
    assert single.tokens <= k_step.tokens <= static.tokens <= sum(s.n_tokens for s in samples)


@reproducible
@given(SAMPLES, st.floats(0.01, 1), st.integers(1, 8))
def test_the_single_step_threshold_is_the_threshold_rule_one_branch_at_a_time(
    samples, threshold, at
) -> None:
    ours = run_policy(samples, Threshold(threshold, at, every=1))
    rule = ThresholdRule(threshold, at=at, min_branches=1)
    theirs = replay(samples, rule, FixedGrants((at, 1)), "sequential")
    assert (ours.answer, ours.tokens, ours.branches) == (
        theirs.outcome.answer,
        theirs.tokens,
        theirs.finished,
    )


@reproducible
@given(SAMPLES, st.sampled_from([Even(4), Length(3, 20), Threshold(), Curves({3: CURVE})]))
def test_a_run_stays_within_its_samples(samples, policy) -> None:
    outcome = run_policy(samples, policy)
    assert 1 <= outcome.rounds <= outcome.branches <= len(samples)
    assert outcome.path <= outcome.tokens
    assert outcome.answer == full_vote(samples[: outcome.branches])
    if outcome.stop_reason == "completed":
        assert outcome.branches == len(samples)


@pytest.mark.parametrize(
    ("answers", "steps"),
    [
        ("aab", 1),
        ("ab", 1),  # a tie goes to the lowest branch
        ("baa", 3),
        ("bbaaa", 5),
        ("abbaa", 4),  # right at first, then lost and won again
        (" a", 2),
        ("bbb", None),
        ("abb", None),
        ("ba", None),
    ],
)
def test_oracle_steps_are_where_the_vote_becomes_right_for_good(answers: str, steps) -> None:
    assert oracle_steps(samples_of(answers), "a") == steps


def test_the_envelope_is_the_skyline_of_its_points() -> None:
    points = [(0.2, 3), (0.2, 9), (0.4, 2), (0.6, 4), (1.0, 1)]
    curve = fit_envelope(points)
    assert curve == StepCurve((0.2, 0.4, 0.6, 1.0), (9, 4, 4, 1))
    assert [curve.branches(x) for x in (0.0, 0.2, 0.21, 0.6, 0.61, 1.0)] == [9, 9, 4, 4, 1, 1]
    assert StepCurve((0.5,), (3,)).branches(1.0) == 3


@reproducible
@given(POINTS, st.floats(0, 1))
def test_the_envelope_is_the_lowest_falling_curve_above_all_points(points, certaindex) -> None:
    curve = fit_envelope(points)
    assert all(curve.branches(x) >= steps for x, steps in points)
    most = max(certaindex, *(x for x, _ in points)) == certaindex
    as_certain = [steps for x, steps in points if x >= certaindex]
    at_the_top = [steps for x, steps in points if x == max(points)[0]]
    assert curve.branches(certaindex) == max(at_the_top if most else as_certain)


@reproducible
@given(PROBLEMS, st.sets(st.integers(1, 9), min_size=1))
def test_fitted_curves_lose_no_right_vote_of_their_own_problems(problems, at) -> None:
    samples = [samples_of("".join(answers)) for answers in problems]
    if all(oracle_steps(one, "a") is None for one in samples):
        with pytest.raises(ValueError, match="points must not be empty"):
            fit_curves(samples, ["a"] * len(samples), sorted(at))
        return
    policy = fit_curves(samples, ["a"] * len(samples), sorted(at))
    for one in samples:
        assert full_vote(one) != "a" or run_policy(one, policy).answer == "a"


@reproducible
@given(PROBLEMS, st.integers(2, 8))
def test_an_initial_curve_never_costs_more_than_the_static_threshold_without_loss(
    problems, at
) -> None:
    """Table 4: both calibrated to lose no vote, a curve also cuts the problems in between."""
    samples = [samples_of("".join(answers)) for answers in problems]
    assume(any(oracle_steps(one, "a") is not None for one in samples))
    curve, static = no_loss(samples, ["a"] * len(samples), at)
    for one in samples:
        assert run_policy(one, curve).tokens <= run_policy(one, static).tokens


def test_the_policies_save_in_the_order_of_table_4() -> None:
    """The paper: -11.0% static, -11.9% curve, -12.7% single-step, -14.4% dynamic curve."""
    problems = population(seed=1, size=300)
    initial, static = no_loss(problems, ["a"] * len(problems), at=5)
    dynamic = fit_curves(problems, ["a"] * len(problems), range(5, 20))

    def tokens(policy: AllocationPolicy) -> int:
        return sum(run_policy(samples, policy).tokens for samples in problems)

    every_5, every_1 = (Threshold(static.threshold, 5, every=k) for k in (5, 1))
    assert tokens(Even(20)) > tokens(static) > tokens(initial) > tokens(dynamic)
    assert tokens(static) > tokens(every_5) > tokens(every_1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Even(0), "cap must be at least 1"),
        (lambda: Length(0, 10), "at must be at least 1"),
        (lambda: Length(5, 0), "max_tokens must be at least 1"),
        (lambda: Threshold(float("nan")), "threshold must be between 0 and 1"),
        (lambda: Threshold(at=0), "at must be at least 1"),
        (lambda: Threshold(every=0), "every must be at least 1"),
        (lambda: Curves({}), "curves must not be empty"),
        (lambda: Curves({0: CURVE}), "curves must be at least 1"),
        (lambda: fit_envelope([]), "points must not be empty"),
        (lambda: StepCurve((0.5,), (2, 1)), "as many steps as certaindex"),
        (lambda: StepCurve((0.5, 0.4), (2, 1)), "certaindex must rise"),
        (lambda: StepCurve((0.4, 0.5), (1, 2)), "steps must not rise"),
        (lambda: fit_curves([samples_of("ab")], ["a"], [3]), "steps must be between 1 and 2"),
        (lambda: run_policy([], Even(1)), "max_branches"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def no_loss(problems: list[list[Sample]], golds: list[str], at: int) -> tuple[Curves, Threshold]:
    """The initial curve, and the lowest threshold under which no right vote comes too early."""
    policy = fit_curves(problems, golds, [at])
    curve = policy.curves[at]
    safe = [x for x, steps in zip(curve.certaindex, curve.steps, strict=True) if steps <= at]
    static = Threshold(safe[0], at) if safe else Threshold(1.0, len(problems[0]))
    return policy, static


def population(seed: int, size: int) -> list[list[Sample]]:
    """Problems of every difficulty, 20 samples each: "a" is right, and harder ones are longer."""
    rng = random.Random(seed)
    problems = []
    for _ in range(size):
        right = rng.betavariate(3, 1)
        problems.append(
            [
                Sample(
                    "a" if rng.random() < right else rng.choice("bcde"),
                    round(100 * (2 - right) * rng.uniform(0.5, 1.5)),
                )
                for _ in range(20)
            ]
        )
    return problems
