from __future__ import annotations

import random
from dataclasses import fields
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.allocation import DecidedRule, Decision, FixedGrants, ThresholdRule
from sglang_dynasor.certaindex import Evidence
from sglang_dynasor.offline import Contender, CurvePoint, TraceProblem, TraceSample
from sglang_dynasor.offline.contenders import (
    Comparison,
    Figures,
    compare,
    contenders,
    merged,
)

ORDERS = ("sequential", "concurrent")
MEANS = ["accuracy", "harm", "gain", "disagreements", "tokens", "samples", "rounds"]
SAMPLES = st.lists(
    st.builds(TraceSample, st.sampled_from(["a", "b", "c", ""]), st.integers(1, 20)),
    min_size=6,
    max_size=8,
)


def problem(answers: str, name: str = "0", n_tokens: int = 10) -> TraceProblem:
    samples = tuple(TraceSample(answer.strip(), n_tokens) for answer in answers)
    return TraceProblem(name, "a", "model", samples)


def mixed_problems(number: int = 6, branches: int = 8) -> list[TraceProblem]:
    """Problems of falling agreement, with lengths that tell the two orders apart."""
    rng = random.Random(7)
    return [
        TraceProblem(
            str(index),
            "a",
            "model",
            tuple(
                TraceSample("a" if rng.random() > index / number else "b", rng.randint(5, 50))
                for _ in range(branches)
            ),
        )
        for index in range(number)
    ]


class Watching:
    """Stops nothing and keeps all it is shown."""

    name: ClassVar[str] = "watching"

    def __init__(self) -> None:
        self.seen: list[Evidence] = []

    def decide(self, evidence: Evidence) -> Decision | None:
        self.seen.append(evidence)
        return None

    def inactive(self, evidence: Evidence) -> str | None:
        return None

    def asked_after(self, evidence: Evidence) -> range:
        return range(1, evidence.remaining)


@pytest.mark.parametrize("order", ORDERS)
def test_every_rule_sees_the_same_shuffles(order) -> None:
    first, last = Watching(), Watching()
    grants = FixedGrants((4,))
    contending = {
        "first": Contender(first, grants),
        "stops": Contender(DecidedRule(), grants),
        "last": Contender(last, grants),
    }
    compare(mixed_problems(), contending, 8, 5, order)
    assert len(first.seen) == 6 * 5 * 8
    assert first.seen == last.seen


def test_shuffles_differ_by_seed_and_repeat_from_call_to_call() -> None:
    def seen(seeds: int) -> list[Evidence]:
        watching = Watching()
        contending = {"watching": Contender(watching, FixedGrants((1,)))}
        compare([problem("aabbccdd")], contending, 8, seeds, "sequential")
        return watching.seen

    assert seen(2) == seen(2)
    assert seen(2)[:8] == seen(1) != seen(2)[8:]


@pytest.mark.parametrize("order", ORDERS)
def test_the_fixed_vote_has_no_harm_no_gain_and_never_disagrees(order) -> None:
    fixed = compare(mixed_problems(), {}, 8, 5, order).row("fixed")
    assert (fixed["harm"], fixed["gain"], fixed["disagreements"]) == (0, 0, 0)
    assert (fixed["samples"], fixed["rounds"], fixed["tokens_saved"]) == (8, 1, 0)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(SAMPLES, min_size=1, max_size=3), st.sampled_from(ORDERS))
def test_decided_never_disagrees_with_the_full_vote(drawn, order) -> None:
    problems = [
        TraceProblem(str(index), "a", "model", tuple(samples))
        for index, samples in enumerate(drawn)
    ]
    comparison = compare(problems, {"decided": contenders(6)["decided"]}, 6, 3, order)
    figures = comparison.figures("decided")
    assert (figures.disagreements, figures.harm, figures.gain) == (0, 0, 0)
    assert figures.accuracy == comparison.figures("fixed").accuracy


ONE_BRANCH = Contender(ThresholdRule(0.0, at=1, min_branches=1), FixedGrants((1,)))


def test_harm_and_gain_count_only_where_one_of_the_two_votes_is_right() -> None:
    chosen = {"one": ONE_BRANCH}
    harmed, gained, neither = (
        compare([problem(answers)], chosen, 5, 200, "sequential").figures("one")
        for answers in ("aaabb", "aabbb", "ccbbb")
    )
    assert (harmed.gain, gained.harm, neither.harm, neither.gain) == (0, 0, 0, 0)
    assert harmed.harm == harmed.disagreements == pytest.approx(1 - harmed.accuracy)
    assert gained.gain == gained.disagreements == gained.accuracy
    for share in (harmed.harm, gained.gain, neither.disagreements):
        assert share == pytest.approx(0.4, abs=0.1)  # the one branch is of the minority


def test_labels_of_the_trace_go_before_the_spelling_of_the_gold_answer() -> None:
    samples = (TraceSample("b", 1, correct=True), TraceSample("b", 1, correct=True))
    labelled = TraceProblem("0", "a", "model", samples)
    assert compare([labelled], {}, 2, 1, "sequential").figures("fixed").accuracy == 1


def test_empty_answers_are_never_right() -> None:
    samples = (TraceSample("", 1, correct=True), TraceSample("", 1, correct=True))
    labelled = TraceProblem("0", "", "model", samples)
    assert compare([labelled], {}, 2, 1, "sequential").figures("fixed").accuracy == 0


@pytest.mark.parametrize("order", ORDERS)
def test_merged_parts_equal_the_whole(order) -> None:
    problems, chosen = mixed_problems(), contenders(8)
    whole = compare(problems, chosen, 8, 3, order)
    parts = [problems[:2], problems[2:]]
    joined = merged([compare(p, chosen, 8, 3, order) for p in parts], [len(p) for p in parts])
    assert list(joined.per_problem) == list(whole.per_problem)
    for name, rows in whole.per_problem.items():
        np.testing.assert_array_equal(joined.per_problem[name], rows)
    assert joined.curve == [
        CurvePoint(point.k, pytest.approx(point.accuracy), pytest.approx(point.tokens))
        for point in whole.curve
    ]


def test_a_problem_with_too_few_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="problem short has 3 samples, fewer than max_branches 4"):
        compare([problem("aaaa"), problem("aaa", "short")], {}, 4, 1, "sequential")


def test_contenders_that_run_one_branch_at_a_time_are_the_same_in_both_orders() -> None:
    alone = {name: one for name, one in contenders(8).items() if one.one_at_a_time}
    assert {"adaptive_consistency", "threshold_every_step"} <= alone.keys()
    assert not {"threshold", "esc", "dynasor"} & alone.keys()
    sequential, concurrent = (compare(mixed_problems(), alone, 8, 5, order) for order in ORDERS)
    for name in alone:
        np.testing.assert_array_equal(sequential.per_problem[name], concurrent.per_problem[name])


def test_savings_are_against_all_branches_and_against_the_cheapest_vote_as_accurate() -> None:
    chosen = {"threshold": contenders(8)["threshold"]}
    row = compare([problem("aaaaaaaa")], chosen, 8, 3, "sequential").row("threshold")
    assert (row["tokens"], row["samples"]) == (50, 5)
    assert row["tokens_saved"] == 1 - 50 / 80
    assert row["tokens_saved_vs_equal"] == 1 - 50 / 10  # one branch is always right, too


def test_a_rule_more_accurate_than_every_fixed_vote_is_held_against_the_largest() -> None:
    names = [field.name for field in fields(Figures)]
    fixed = [[0.5 if name == "accuracy" else 80.0 for name in names]]
    rule = [[0.9 if name == "accuracy" else 20.0 for name in names]]
    curve = [CurvePoint(1, 0.6, 10), CurvePoint(8, 0.5, 80)]
    comparison = Comparison({"fixed": np.array(fixed), "rule": np.array(rule)}, curve)
    assert comparison.row("rule")["tokens_saved_vs_equal"] == 1 - 20 / 80


def test_the_interval_contains_the_mean() -> None:
    comparison = compare(mixed_problems(12), {"one": ONE_BRANCH}, 8, 5, "sequential")
    row = comparison.row("one")
    for field, (low, high) in comparison.interval("one").items():
        assert low <= row[field] <= high
        assert low < high


def test_the_interval_is_a_point_where_all_problems_are_alike() -> None:
    problems = [problem("aaaaaaaa", str(index)) for index in range(4)]
    alike = compare(problems, {"dynasor": contenders(8)["dynasor"]}, 8, 1, "sequential")
    for field, interval in alike.interval("dynasor").items():
        assert interval == (pytest.approx(alike.row("dynasor")[field]),) * 2


@pytest.mark.parametrize("order", ORDERS)
def test_deepconf_stops_when_the_confident_agree(order) -> None:
    """After its warm-up of 16, which the unsure votes do not weigh down."""

    def measured(answer: str, lowest: float) -> TraceSample:
        return TraceSample(answer, 10, certainty={"lowest_group": lowest})

    samples = (*[measured("a", 9.0)] * 12, *[measured("b", 0.1)] * 12)
    problems = [TraceProblem("0", "a", "model", samples)]
    row = compare(problems, {"deepconf": contenders(24)["deepconf"]}, 24, 20, order).row("deepconf")
    assert row["accuracy"] == 1.0 and row["samples"] == 16.0


@pytest.mark.parametrize("order", ORDERS)
def test_deepconf_stops_nothing_where_certainty_was_not_recorded(order) -> None:
    contending = {"deepconf": contenders(8)["deepconf"]}
    row = compare([problem("aaaaaaaa")], contending, 8, 2, order).row("deepconf")
    assert (row["samples"], row["disagreements"]) == (8, 0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("others", [0, 1])
def test_a_problem_of_empty_generations_is_replayed_like_any_other(order: str, others: int) -> None:
    empty = TraceProblem("none", "a", "m", (TraceSample("", 0),) * 6)
    answered = TraceProblem("some", "a", "m", (TraceSample("a", 5),) * 6)
    chosen = {name: contenders(6)[name] for name in ("dynasor", "decided")}
    comparison = compare([empty] + [answered] * others, chosen, 6, 3, order)
    for name in ("fixed", *chosen):
        figures = [*comparison.row(name).values(), *sum(comparison.interval(name).values(), ())]
        assert np.isfinite(figures).all()
    assert comparison.row("fixed")["tokens_saved"] == 0.0
    assert (comparison.row("decided")["tokens_saved"] > 0) == bool(others)
