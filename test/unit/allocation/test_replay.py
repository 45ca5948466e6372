from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.allocation import (
    BetaRule,
    DecidedRule,
    Decision,
    FixedGrants,
    Outcome,
    Sample,
    full_vote,
    replay,
)

reproducible = settings(derandomize=True, deadline=None, max_examples=300)
SAMPLES = st.lists(
    st.builds(Sample, st.sampled_from(["a", "b", "c", ""]), st.integers(0, 20)),
    min_size=1,
    max_size=16,
)
GRANTS = st.lists(st.integers(1, 8), min_size=1, max_size=4).map(FixedGrants)
ORDERS = st.sampled_from(["sequential", "concurrent"])


def samples_of(*pairs: tuple[str, int]) -> list[Sample]:
    return [Sample(answer, n_tokens) for answer, n_tokens in pairs]


FOUR = samples_of(("a", 30), ("a", 10), ("b", 50), ("a", 20))
STOP = Decision("certain", "beta", 0.9375, 1.0, (3,), 3)


def test_concurrent_branches_finish_shortest_first_and_cancelled_ones_cost_what_they_spent() -> (
    None
):
    outcome = replay(FOUR, BetaRule(0.93), FixedGrants((4,)), "concurrent")
    assert outcome == Outcome("a", STOP, 30 + 10 + 30 + 20, 4, 3, 1, 30)


def test_branches_of_equal_length_finish_by_index() -> None:
    samples = samples_of(("a", 10), ("a", 10), ("a", 10), ("b", 10), ("b", 20))
    outcome = replay(samples, BetaRule(0.93), FixedGrants((5,)), "concurrent")
    assert outcome == Outcome("a", STOP, 50, 5, 3, 1, 10)


def test_sequential_branches_finish_in_order_and_none_is_cancelled() -> None:
    samples = samples_of(("a", 30), ("a", 10), ("a", 50), ("b", 20))
    outcome = replay(samples, BetaRule(0.93), FixedGrants((4,)), "sequential")
    assert outcome == Outcome("a", STOP, 90, 3, 3, 1, 50)


def test_rounds_run_one_after_the_other() -> None:
    outcome = replay(FOUR, BetaRule(0.999), FixedGrants((2, 1)), "concurrent")
    assert outcome == Outcome("a", None, 110, 4, 4, 3, 30 + 50 + 20)


def test_samples_without_answers_give_none() -> None:
    outcome = replay(samples_of(("", 5), ("", 7)), DecidedRule(min_branches=1), FixedGrants((2,)))
    assert (outcome.answer, outcome.decision, outcome.tokens) == ("", None, 12)
    assert full_vote(samples_of(("", 5), ("", 7))) == ""


@reproducible
@given(SAMPLES, GRANTS, ORDERS)
def test_a_decided_replay_gives_the_answer_of_the_full_vote(samples, grants, order) -> None:
    outcome = replay(samples, DecidedRule(min_branches=1), grants, order)
    assert outcome.answer == full_vote(samples)


@reproducible
@given(SAMPLES, GRANTS, ORDERS)
def test_a_replay_never_spends_more_than_all_samples(samples, grants, order) -> None:
    outcome = replay(samples, BetaRule(), grants, order)
    total = sum(sample.n_tokens for sample in samples)
    assert outcome.critical_path_tokens <= outcome.tokens <= total
    assert outcome.branches_finished <= outcome.branches_started <= len(samples)
    if outcome.decision is None:
        assert (outcome.tokens, outcome.branches_finished) == (total, len(samples))
        assert outcome.answer == full_vote(samples)


def test_the_full_vote_breaks_ties_by_lowest_index() -> None:
    assert full_vote(samples_of(("b", 1), ("a", 1), ("a", 1), ("b", 1))) == "b"
    assert full_vote(samples_of(("0.5", 1), ("a", 1), ("1/2", 1))) == "0.5"


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        replay(FOUR, BetaRule(), FixedGrants((1,)), "random")


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="max_branches"):
        replay([], BetaRule(), FixedGrants((1,)))
