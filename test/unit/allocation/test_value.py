from __future__ import annotations

import math
import time
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import beta, betainc
from scipy.stats import binom

from sglang_dynasor.allocation.value import branch_values
from sglang_dynasor.certaindex import Evidence, path_agreement

reproducible = settings(derandomize=True, deadline=None, max_examples=100)
COUNTS = st.lists(st.integers(1, 12), max_size=4).map(lambda counts: sorted(counts, reverse=True))


def evidence_of(*counts: int, remaining: int, empty: int = 0) -> Evidence:
    certaindex = path_agreement((*counts, *[1] * empty))
    return Evidence(counts, sum(counts) + empty, remaining, certaindex, True, empty)


@pytest.mark.parametrize(
    ("evidence", "values"),
    [
        (evidence_of(remaining=3), (1 / 4, 1 / 32, 1 / 32)),
        (evidence_of(1, remaining=2), (1 / 32, 1 / 32)),
        # The first breaks the tie; one more can at most restore it.
        (evidence_of(1, 1, remaining=2), (3 / 16, 0.0)),
        (evidence_of(5, remaining=5), (0.0,) * 5),
        (evidence_of(5, 2, remaining=3), (0.0,) * 3),
        (evidence_of(4, 1, remaining=0), ()),
        # Every other branch is expected to give no answer.
        (evidence_of(empty=1, remaining=1), (1 / 8,)),
    ],
)
def test_values_match_those_found_by_hand(evidence: Evidence, values: tuple[float, ...]) -> None:
    assert branch_values(evidence, mean_tokens=1) == pytest.approx(values)


@reproducible
@given(COUNTS, st.integers(0, 3), st.integers(1, 12), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_summed_values_are_the_least_concave_curve_above_the_expected_gain(
    counts, empty, remaining, prior
) -> None:
    evidence = evidence_of(*counts, empty=empty, remaining=remaining)
    summed = list(accumulate(branch_values(evidence, 1, prior), initial=0.0))
    gains = [expected_gain(evidence, branches, prior) for branches in range(remaining + 1)]
    assert all(value >= gain - 1e-9 for value, gain in zip(summed, gains, strict=True))
    # Least: each corner of the curve, and its end, lies on the expected gain.
    for at in range(1, remaining + 1):
        corner = at == remaining or math.isclose(
            summed[at] - summed[at - 1], summed[at + 1] - summed[at], rel_tol=1e-6, abs_tol=1e-12
        )
        if at == remaining or not corner:
            assert summed[at] == pytest.approx(gains[at], abs=1e-9)


@reproducible
@given(COUNTS, st.integers(0, 3), st.integers(0, 64), st.floats(0.1, 9), st.floats(0, 1))
def test_values_never_rise_and_are_zero_exactly_where_no_branch_can_change_the_vote(
    counts, empty, remaining, prior, p_mode_right
) -> None:
    evidence = evidence_of(*counts, empty=empty, remaining=remaining)
    values = branch_values(evidence, 100, prior)
    assert len(values) == remaining
    assert all(earlier >= later >= 0 for earlier, later in pairwise(values))
    leader, rival = (*counts, 0, 0)[:2]
    assert (sum(values) > 0) == (leader < rival + remaining)
    scaled = branch_values(evidence, 50, prior, p_mode_right)
    assert scaled == pytest.approx([2 * p_mode_right * value for value in values])


def test_close_races_are_worth_more_than_settled_and_scattered_ones() -> None:
    close, leading, settled, scattered = (
        branch_values(evidence_of(*counts, remaining=16), 1)[0]
        for counts in ((4, 4), (6, 2), (8,), (1,) * 8)
    )
    assert close > leading > settled > 0
    assert close > scattered


def test_asking_again_for_64_branches_takes_less_than_200_microseconds() -> None:
    evidence = evidence_of(3, 2, 1, remaining=64)
    branch_values(evidence, 100)
    fastest = math.inf
    for _ in range(20):
        started = time.perf_counter()
        branch_values(evidence, 100)
        fastest = min(fastest, time.perf_counter() - started)
    assert fastest < 200e-6


@pytest.mark.parametrize(
    "options",
    [
        {"mean_tokens": 0},
        {"mean_tokens": math.nan},
        {"mean_tokens": 9, "prior": 0},
        {"mean_tokens": 9, "p_mode_right": 1.1},
        {"mean_tokens": 9, "p_mode_right": math.nan},
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=list(options)[-1]):
        branch_values(evidence_of(2, 1, remaining=3), **options)


def expected_gain(evidence: Evidence, branches: int, prior: float) -> float:
    """The gain from its definition: P(the vote names the larger share) after and before."""
    leader, rival = (*evidence.counts, 0, 0)[:2]
    share = (leader + rival + 1) / (evidence.finished + 1)
    before = chance_right(leader, rival, 0, prior)
    return sum(
        binom.pmf(joined, branches, share) * (chance_right(leader, rival, joined, prior) - before)
        for joined in range(branches + 1)
    )


def chance_right(leader: int, rival: int, votes: int, prior: float) -> float:
    """Sum over the votes of the duel, each outcome's beta integral on the winner's side of 1/2."""
    a, b = leader + prior, rival + prior
    total = 0.0
    for wins in range(votes + 1):
        c, d = a + wins, b + votes - wins
        below = betainc(c, d, 0.5)
        right = 1 - below if c > d else below if c < d else 0.5
        total += math.comb(votes, wins) * beta(c, d) / beta(a, b) * right
    return total


def test_the_definition_above_agrees_with_plain_integration() -> None:
    def leader_wins(p: float) -> float:  # 3 votes against 2, and 4 more: with 2 of them
        return binom.sf(1, 4, p)

    def density(p: float) -> float:
        return p**3 * (1 - p) ** 2 / beta(4, 3)

    above, _ = quad(lambda p: density(p) * leader_wins(p), 0.5, 1)
    below, _ = quad(lambda p: density(p) * (1 - leader_wins(p)), 0, 0.5)
    assert chance_right(3, 2, 4, 1.0) == pytest.approx(above + below)
