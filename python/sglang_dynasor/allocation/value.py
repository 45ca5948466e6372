"""What one more branch is worth: the value curve behind offer and draw (DESIGN section 7).

The vote is a duel of the leader (a votes) with the runner-up (b votes), as in Adaptive-Consistency
(arXiv 2305.11860): the leader's share of the duel in the population is p ~ Beta(a + r, b + r), and
the vote is right about the population where its winner is the one with the larger share. With q =
P(p > 1/2) that is max(q, 1 - q), and because the prior favours nobody, the majority is always the
better guess: a branch can only help.

A branch helps only where it breaks a tie. Before one more vote q is the mean of its two possible
values (a posterior is a martingale), so max(q, 1 - q) gains on average only where those lie on
both sides of 1/2, and that is at equal votes. With c = votes of each + r, a vote there gains

    I_{1/2}(c, c + 1) - 1/2 = 4^-c / (c B(c, c)).

The tie comes after i votes, x of them for the leader, a + x = b + i - x, with the beta-binomial
probability C(i, x) B(c, c) / B(a + r, b + r). B(c, c) cancels:

    T_i = C(i, x) 4^-c / (c B(a + r, b + r)),    x = (i - (a - b)) / 2, and c = a + x + r,

and T_i = 0 where x is no whole number or below 0. Hence the value is exactly zero once the vote
is decided: with no more than a - b branches left, no tie can be broken.

Not every branch joins the duel: a share s = (a + b + 1) / (finished + 1) does, so that a program
whose answers all differ is not mistaken for a close race. Branch m gains s times the mean of T_i
over i ~ Binomial(m - 1, s).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from sglang_dynasor.certaindex.tracker import Evidence


def branch_values(
    evidence: Evidence, mean_tokens: float, prior: float = 1.0, p_mode_right: float = 1.0
) -> tuple[float, ...]:
    """Return, for each remaining branch in turn, the gain in P(the vote is right) per token.

    Never negative and never rising: a branch that only helps together with later ones (three are
    needed to overtake a lead of two) carries the mean of that block. This is the concave majorant
    of the gain, and what whoever draws the best batch for its tokens should compare.

    `mean_tokens` (above 0) is what a branch is expected to generate. A profile may give `prior`
    (above 0: r, the smaller the more one-sided its problems) and `p_mode_right` (0 to 1), how often
    the most frequent answer is right at this certaindex; without it, 1, right means that the vote
    is the population's. Raises ValueError where one is out of range.
    """
    if not (mean_tokens > 0 and prior > 0):
        raise ValueError(f"mean_tokens and prior must be above 0, not {mean_tokens}, {prior}")
    if not 0 <= p_mode_right <= 1:
        raise ValueError(f"p_mode_right must be between 0 and 1, not {p_mode_right}")
    leader, rival, *_ = (*evidence.counts, 0, 0)
    gains = _gains(leader, rival, evidence.finished, evidence.remaining, float(prior))
    return tuple([gain * p_mode_right / mean_tokens for gain in gains])


@lru_cache(maxsize=4096)
def _gains(
    leader: int, rival: int, finished: int, remaining: int, prior: float
) -> tuple[float, ...]:
    """Gain of each remaining branch, as the slopes of the concave majorant."""
    ties = _tie_gains(leader, rival, remaining, prior)
    share = (leader + rival + 1) / (finished + 1)
    gains = []
    for _ in range(remaining):  # de Casteljau: the binomial means of the T_i, without factorials
        gains.append(share * float(ties[0]))
        ties = np.convolve(ties, (share, 1 - share), mode="valid")
    return _concave_slopes(gains)


def _tie_gains(leader: int, rival: int, remaining: int, prior: float) -> np.ndarray:
    """T_i of the module's text for i from 0 to `remaining` - 1."""
    a, b = leader + prior, rival + prior
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    ties = np.zeros(remaining)
    for for_leader, votes in enumerate(range(leader - rival, remaining, 2)):
        each = a + for_leader
        log_ways = math.log(math.comb(votes, for_leader))
        ties[votes] = math.exp(log_ways - each * math.log(4) - math.log(each) - log_beta)
    return ties


def _concave_slopes(gains: Sequence[float]) -> tuple[float, ...]:
    """Slopes of the concave majorant of the summed gains: blocks that rise are averaged."""
    blocks: list[tuple[float, int]] = []
    for gain in gains:
        total, size = gain, 1
        while blocks and blocks[-1][0] / blocks[-1][1] < total / size:
            earlier, earlier_size = blocks.pop()
            total, size = total + earlier, size + earlier_size
        blocks.append((total, size))
    return tuple(slope for total, size in blocks for slope in [total / size] * size)
