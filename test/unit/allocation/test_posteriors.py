from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom

from sglang_dynasor.allocation.posteriors import (
    largest_share_posterior,
    lead_survival,
    log_e_value,
    majority_posterior,
)

reproducible = settings(derandomize=True, deadline=None, max_examples=200)


@reproducible
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 300))
def test_survival_is_the_beta_binomial_tail(leader: int, rival: int, remaining: int) -> None:
    needed = (rival + remaining - leader) // 2 + 1  # votes for the leader that beat the rest
    expected = betabinom.sf(needed - 1, remaining, leader + 1, rival + 1) if remaining else None
    if expected is None:
        expected = float(leader > rival)
    assert lead_survival(leader, rival, remaining) == pytest.approx(expected, abs=2e-9)


@pytest.mark.parametrize(
    ("leader", "rival", "remaining", "survival"),
    [(3, 0, 2, 1.0), (3, 0, 5, 0.9603), (3, 0, 13, 0.9471), (3, 0, 37, 0.9409), (4, 0, 36, 0.9728)],
)
def test_the_fewer_branches_are_left_the_surer_is_the_lead(
    leader: int, rival: int, remaining: int, survival: float
) -> None:
    assert lead_survival(leader, rival, remaining) == pytest.approx(survival, abs=1e-4)


def test_for_an_endless_vote_survival_becomes_the_majority_posterior() -> None:
    assert lead_survival(9, 4, 100_000) == pytest.approx(majority_posterior(9, 4), abs=1e-3)


@reproducible
@given(st.integers(0, 512), st.integers(0, 512))
def test_two_groups_have_the_beta_posterior(leader: int, rival: int) -> None:
    expected = majority_posterior(leader, rival)
    assert largest_share_posterior((leader, rival)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("votes", [0, 1, 7, 64, 512])
@pytest.mark.parametrize("groups", [2, 3, 16, 200])
def test_groups_of_equal_votes_share_the_posterior(votes: int, groups: int) -> None:
    assert largest_share_posterior((votes,) * groups) == pytest.approx(1 / groups, abs=1e-5)


def test_many_groups_have_the_posterior_of_simulated_shares() -> None:
    counts = (7, 3, 2, 1)
    shares = np.random.default_rng(3).dirichlet([count + 1 for count in counts], 200_000)
    simulated = (shares.argmax(axis=1) == 0).mean()
    assert largest_share_posterior(counts) == pytest.approx(simulated, abs=0.005)


def test_a_bet_against_a_true_hypothesis_rarely_ever_pays() -> None:
    """Ville: under equal shares the value exceeds 1/alpha at any time at most with alpha."""
    alpha, runs, length = 0.1, 2000, 200
    votes = np.random.default_rng(5).random((runs, length)) < 0.5
    leader = votes.cumsum(axis=1)
    rival = (~votes).cumsum(axis=1)
    bar = np.log(1 / alpha)
    exceeded = sum(
        any(log_e_value(int(a), int(b)) >= bar for a, b in zip(up, down, strict=True))
        for up, down in zip(leader, rival, strict=True)
    )
    assert 0 < exceeded / runs <= alpha


@reproducible
@given(st.integers(0, 100), st.integers(0, 100))
def test_every_vote_of_the_rival_costs_the_bet(behind: int, rival: int) -> None:
    leader = rival + behind
    assert log_e_value(leader, rival + 1) < log_e_value(leader, rival)
    assert log_e_value(leader + 1, rival) > log_e_value(leader, rival)
