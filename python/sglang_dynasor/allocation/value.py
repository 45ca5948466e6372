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

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.special import betaln, gammaln

from sglang_dynasor.certaindex.tracker import Evidence


def branch_values(
    evidence: Evidence,
    mean_tokens: float,
    prior: float = 1.0,
    p_mode_right: float = 1.0,
    *,
    after: int = 0,
    limit: int | None = None,
) -> tuple[float, ...]:
    """Return, for each remaining branch in turn, the gain in P(the vote is right) per token.

    Never negative and never rising: a branch that only helps together with later ones (three are
    needed to overtake a lead of two) carries the mean of that block. This is the concave majorant
    of the gain, and what whoever draws the best batch for its tokens should compare.

    `mean_tokens` (above 0) is what a branch is expected to generate. A profile may give `prior`
    (above 0: r, the smaller the more one-sided its problems) and `p_mode_right` (0 to 1), how often
    the most frequent answer is right at this certaindex; without it, 1, right means that the vote
    is the population's. Only the branches behind the next `after`, which run anyway, and at most
    `limit` of them are valued. Raises ValueError where one is out of range.
    """
    if not (mean_tokens > 0 and prior > 0):
        raise ValueError(f"mean_tokens and prior must be above 0, not {mean_tokens}, {prior}")
    if not 0 <= p_mode_right <= 1:
        raise ValueError(f"p_mode_right must be between 0 and 1, not {p_mode_right}")
    leader, rival, *_ = (*evidence.counts, 0, 0)
    count = max(0, evidence.remaining - after)
    if limit is not None:
        count = min(count, limit)
    gains = _gains(leader, rival, evidence.finished, after, count, float(prior))
    return tuple([gain * p_mode_right / mean_tokens for gain in gains])


def expected_gain(evidence: Evidence, branches: int, prior: float = 1.0) -> float:
    """Return what this many more branches (0 to `remaining`) add to P(the vote is right)."""
    leader, rival, *_ = (*evidence.counts, 0, 0)
    return _expected_gain(leader, rival, evidence.finished, branches, float(prior))


@lru_cache(maxsize=1 << 14)
def _expected_gain(leader: int, rival: int, finished: int, branches: int, prior: float) -> float:
    ties = _tie_gains(leader, rival, branches, prior)
    gained = np.concatenate(([0.0], np.cumsum(ties)))  # once so many have joined the duel
    return float(gained @ _joining(branches, _share(leader, rival, finished)))


@lru_cache(maxsize=1024)
def _gains(
    leader: int, rival: int, finished: int, after: int, count: int, prior: float
) -> tuple[float, ...]:
    """Gain of each of `count` branches behind `after`, as the slopes of the concave majorant."""
    if not count:
        return ()
    share = _share(leader, rival, finished)
    ties = _tie_gains(leader, rival, after + count, prior)
    # The mean over how many of the first `after` join, then one branch more at a time.
    means = np.convolve(ties, _joining(after, share)[::-1], mode="valid")[:count]
    gains = []
    for _ in range(count):  # de Casteljau: the binomial means of the T_i, without factorials
        gains.append(share * float(means[0]))
        means = np.convolve(means, (share, 1 - share), mode="valid")
    return _concave_slopes(gains)


def _share(leader: int, rival: int, finished: int) -> float:
    """How many of the branches join the duel."""
    return (leader + rival + 1) / (finished + 1)


@lru_cache(maxsize=1024)
def _joining(branches: int, share: float) -> np.ndarray:
    """Binomial probabilities that 0 to `branches` of them join."""
    joined = np.arange(branches + 1)
    if share == 1:
        return (joined == branches).astype(float)
    logs = joined * np.log(share) + (branches - joined) * np.log1p(-share)
    return np.exp(_log_ways(branches, joined) + logs)


def _tie_gains(leader: int, rival: int, remaining: int, prior: float) -> np.ndarray:
    """T_i of the module's text for i from 0 to `remaining` - 1."""
    ties = np.zeros(remaining)
    votes = np.arange(leader - rival, remaining, 2)
    if len(votes):
        for_leader = np.arange(len(votes))
        each = leader + prior + for_leader
        logs = _log_ways(votes, for_leader) - each * np.log(4) - np.log(each)
        ties[votes] = np.exp(logs - betaln(leader + prior, rival + prior))
    return ties


def _log_ways(of: int | np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return gammaln(np.add(of, 1)) - gammaln(chosen + 1) - gammaln(of - chosen + 1)


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
