from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.allocation import (
    AdaptiveGrants,
    BetaRule,
    DecidedRule,
    DeepConfRule,
    DynasorRule,
    EscRule,
    FixedGrants,
)
from sglang_dynasor.certaindex import canonical_key
from sglang_dynasor.offline import Contender, Sample, Samples, full_vote, replay
from sglang_dynasor.programs import Replayed, SelfConsistency, replay_nodes

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


def figures(run: Replayed) -> tuple[object, ...]:
    """Answer, stop reason, tokens, branches started and finished, rounds, and the longest path."""
    outcome = run.outcome
    spent = (run.tokens, run.started, run.finished, outcome.rounds, run.sequential_tokens)
    return outcome.answer, outcome.stop_reason, *spent


def test_concurrent_branches_finish_shortest_first_and_cancelled_ones_cost_what_they_spent() -> (
    None
):
    outcome = replay(FOUR, BetaRule(0.93), FixedGrants((4,)), "concurrent")
    assert figures(outcome) == ("a", "certain", 30 + 10 + 30 + 20, 4, 3, 1, 30)


def test_branches_of_equal_length_finish_by_index() -> None:
    samples = samples_of(("a", 10), ("a", 10), ("a", 10), ("b", 10), ("b", 20))
    outcome = replay(samples, BetaRule(0.93), FixedGrants((5,)), "concurrent")
    assert figures(outcome) == ("a", "certain", 50, 5, 3, 1, 10)


def test_sequential_branches_finish_in_order_and_none_is_cancelled() -> None:
    samples = samples_of(("a", 30), ("a", 10), ("a", 50), ("b", 20))
    outcome = replay(samples, BetaRule(0.93), FixedGrants((4,)), "sequential")
    assert figures(outcome) == ("a", "certain", 90, 3, 3, 1, 50)


def test_rounds_run_one_after_the_other() -> None:
    outcome = replay(FOUR, BetaRule(0.999), FixedGrants((2, 1)), "concurrent")
    assert figures(outcome) == ("a", "completed", 110, 4, 4, 3, 30 + 50 + 20)


def test_samples_without_answers_give_none() -> None:
    outcome = replay(samples_of(("", 5), ("", 7)), DecidedRule(min_branches=1), FixedGrants((2,)))
    assert figures(outcome)[:3] == ("", "completed", 12)
    assert full_vote(samples_of(("", 5), ("", 7))) == ""


@reproducible
@given(SAMPLES, GRANTS, ORDERS)
def test_a_decided_replay_gives_the_answer_of_the_full_vote(samples, grants, order) -> None:
    outcome = replay(samples, DecidedRule(min_branches=1), grants, order)
    assert outcome.outcome.answer == full_vote(samples)


@reproducible
@given(SAMPLES, GRANTS, ORDERS)
def test_a_replay_never_spends_more_than_all_samples(samples, grants, order) -> None:
    outcome = replay(samples, BetaRule(), grants, order)
    total = sum(sample.n_tokens for sample in samples)
    assert outcome.sequential_tokens <= outcome.tokens <= total
    assert outcome.finished <= outcome.started <= len(samples)
    if outcome.outcome.stop_reason == "completed":
        assert (outcome.tokens, outcome.finished) == (total, len(samples))
        assert outcome.outcome.answer == full_vote(samples)


def test_the_full_vote_breaks_ties_by_lowest_index() -> None:
    assert full_vote(samples_of(("b", 1), ("a", 1), ("a", 1), ("b", 1))) == "b"
    assert full_vote(samples_of(("0.5", 1), ("a", 1), ("1/2", 1))) == "0.5"


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        replay(FOUR, BetaRule(), FixedGrants((1,)), "random")


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="max_branches"):
        replay([], BetaRule(), FixedGrants((1,)))


def test_offers_wait_for_no_round() -> None:
    """The third branch starts when the first disagrees, not when the slow second has ended."""
    samples = samples_of(("a", 10), ("b", 100), ("b", 20), ("b", 20), ("b", 20))
    offered = replay(samples, DecidedRule(min_branches=1), FixedGrants((2,)), offers=True)
    assert (offered.outcome.answer, offered.steps, offered.sequential_tokens) == ("b", 70, 70)
    in_rounds = replay(samples, DecidedRule(min_branches=1), FixedGrants((2,)))
    assert in_rounds.steps == 120


CONTENDERS = st.sampled_from(
    [
        Contender(BetaRule(0.8), FixedGrants((1,))),
        Contender(DecidedRule(), AdaptiveGrants(DecidedRule())),
        Contender(DynasorRule(), AdaptiveGrants(DynasorRule()), offers=True),
        Contender(EscRule(window=3), FixedGrants((3,))),
        Contender(DeepConfRule(0.7), FixedGrants((4, 1)), weighted=True),
    ]
)
MEASURED = st.lists(
    st.builds(
        Sample,
        st.sampled_from(["a", "b", "0.5", "1/2", ""]),
        st.integers(0, 20),
        confidence=st.none() | st.floats(0.5, 20),
        pruned=st.booleans(),
    ),
    min_size=1,
    max_size=16,
)


@reproducible
@given(MEASURED, CONTENDERS)
def test_what_is_counted_once_for_all_contenders_is_what_each_would_count(
    samples: list[Sample], contender: Contender
) -> None:
    """Sequential replays share their evidence; the same program on one slot does not."""
    shared = Samples(samples)
    shared.replay(Contender(DecidedRule(min_branches=1), FixedGrants((1,))), "sequential")
    fast = shared.replay(contender, "sequential")
    program = SelfConsistency(contender.settings(len(samples)))
    slow = replay_nodes(program, lambda start: shared.nodes[start.node], slots=1)
    assert replace(fast, outcome=replace(fast.outcome, votes=())) == replace(
        slow, outcome=replace(slow.outcome, votes=())
    )


def test_branches_that_algebra_finds_equal_vote_together() -> None:
    samples = samples_of(("9", 5), ("x+1", 5), ("9", 5), ("1+x", 5), ("x+1", 5))
    same = {"1+x": "x+1"}
    known = Samples(samples, lambda answer: canonical_key(same.get(answer, answer)))
    run = known.replay(Contender(DecidedRule(), FixedGrants((5,))))
    assert (run.outcome.answer, full_vote(samples)) == ("x+1", "9")
