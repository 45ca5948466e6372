"""Probabilities behind the stop rules. Each depends on counts alone and is rounded to 1e-9."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import gammainc, gammaincinv

from sglang_dynasor.certaindex.entropy import AGREEMENT_DIGITS

_QUADRATURE_POINTS = 128


@lru_cache(maxsize=1 << 14)
def majority_posterior(leader: int, rival: int) -> float:
    """Return P(X > 1/2) of X ~ Beta(leader + 1, rival + 1), exactly (Adaptive-Consistency)."""
    # 1 - I_0.5(a + 1, b + 1) is a binomial tail of a + b + 1 fair coins: exact in integers.
    coins = leader + rival + 1
    against, ways = 0, 1
    for heads in range(rival + 1):
        against += ways
        ways = ways * (coins - heads) // (heads + 1)
    return round(1 - against / (1 << coins), AGREEMENT_DIGITS)


@lru_cache(maxsize=1 << 16)
def lead_survival(leader: int, rival: int, remaining: int) -> float:
    """Return the probability that the leader still leads once `remaining` branches have voted.

    Every branch left votes for the leader with a probability X ~ Beta(leader + 1, rival + 1) and
    for the rival otherwise, which is the worst case; an even final count is a loss. 1 means that
    nothing can change the vote.
    """
    if leader > rival + remaining:
        return 1.0
    # The branches left follow a beta-binomial; its terms, from all for the leader downwards:
    # C(leader + x, x) C(rival + rest, rest) / C(leader + rival + remaining + 1, remaining).
    term = math.exp(
        math.lgamma(leader + remaining + 1)
        - math.lgamma(leader + 1)
        - math.lgamma(leader + rival + remaining + 2)
        + math.lgamma(leader + rival + 2)
    )
    total = 0.0
    votes = remaining
    while votes >= 0 and leader + votes > rival + remaining - votes:
        total += term
        rest = remaining - votes
        term *= votes * (rival + rest + 1) / ((leader + votes) * (rest + 1)) if votes else 0.0
        votes -= 1
    return min(1.0, round(total, AGREEMENT_DIGITS))


@lru_cache(maxsize=1 << 14)
def largest_share_posterior(counts: tuple[int, ...]) -> float:
    """Return P(the first group has the largest share) under Dirichlet(counts + 1).

    A Dirichlet is independent gammas over their sum, so this is one integral:
    E[prod F_j(G)] with G ~ Gamma(counts[0] + 1) and F_j the distribution of Gamma(counts[j] + 1),
    by Gauss-Legendre quadrature over the quantiles of G, good to 1e-5 for up to 512 votes each.
    """
    nodes, weights = _quadrature(counts[0])
    sizes, groups = np.unique(counts[1:], return_counts=True)
    below = (gammainc(sizes[:, None] + 1, nodes) ** groups[:, None]).prod(axis=0)
    return round(float(weights @ below), AGREEMENT_DIGITS)


@lru_cache(maxsize=512)
def _quadrature(leader: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the mean over Gamma(leader + 1), even in its distribution function."""
    points, weights = _legendre()
    return gammaincinv(leader + 1, (points + 1) / 2), weights / 2


@lru_cache(maxsize=1)
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(_QUADRATURE_POINTS)
    return points, weights


@lru_cache(maxsize=1 << 14)
def log_likelihood_ratio(leader: int, rival: int, share: float) -> float:
    """Return log P(counts | leader has `share` of the two) - log P(counts | one half)."""
    ratio = leader * math.log(2 * share) + rival * math.log(2 * (1 - share))
    return round(ratio, AGREEMENT_DIGITS)


@lru_cache(maxsize=1 << 14)
def log_e_value(leader: int, rival: int) -> float:
    """Return the log of the bet against "the leader is no likelier than the rival".

    The bet mixes all shares above one half evenly: E = 2 int_(1/2)^1 (2p)^a (2(1-p))^b dp. It is a
    supermartingale under that hypothesis, so it exceeds 1/alpha at any time with a probability of
    at most alpha (Ville), and it falls with every vote of the rival.
    """
    above_half = majority_posterior(leader, rival)
    if above_half == 0:  # rounded: a leader so far behind has no evidence for it
        return -math.inf
    beta = math.lgamma(leader + 1) + math.lgamma(rival + 1) - math.lgamma(leader + rival + 2)
    value = (leader + rival + 1) * math.log(2) + beta + math.log(above_half)
    return round(value, AGREEMENT_DIGITS)
