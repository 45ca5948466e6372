"""Probabilities behind the stop rules. Each depends on counts alone and is rounded to 1e-9."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import gammainc

from sglang_dynasor.certaindex.entropy import AGREEMENT_DIGITS

# The integral's step and its reach to either side, in standard deviations, and what the
# exponential tail needs besides.
_STEP, _REACH, _LEFT_TAIL = 0.25, 7.2, 13.0


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
    E[prod F_j(G)] with G ~ Gamma(counts[0] + 1) and F_j the distribution of Gamma(counts[j] + 1).
    Over log G the integrand falls off on both sides, so that even steps converge exponentially:
    good to 1e-5 for up to 512 votes each.
    """
    shape = counts[0] + 1
    deviation = 1 / math.sqrt(shape)  # of log G, about
    step = _STEP * deviation
    # Relative to log of the mean; to the left the density falls only as exp(shape * logs).
    logs = np.arange(-_REACH * deviation - _LEFT_TAIL / shape, _REACH * deviation, step)
    scale = math.lgamma(shape) - shape * math.log(shape) + shape
    density = np.exp(shape * (logs - np.expm1(logs)) - scale)
    sizes, groups = np.unique(counts[1:], return_counts=True)
    below = gammainc(sizes[:, None] + 1, shape * np.exp(logs)) ** groups[:, None]
    return round(float(density @ below.prod(axis=0)) * step, AGREEMENT_DIGITS)


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
