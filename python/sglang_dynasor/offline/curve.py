"""The baseline to beat: a fixed number of branches for every problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang_dynasor.certaindex.canonical import canonical_key
from sglang_dynasor.offline.replay import Sample

_ACCURACY_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What `k` branches for every problem give: accuracy (0 to 1), mean tokens per problem."""

    k: int
    accuracy: float
    tokens: float


def fixed_curve(
    samples_by_problem: Sequence[Sequence[Sample]], golds: Sequence[str], max_k: int
) -> list[CurvePoint]:
    """Return the majority vote's accuracy and tokens for k = 1 to `max_k` branches.

    Each is a mean over all cyclic rotations of a problem's samples (k in a row, from each start):
    deterministic, and each sample counts equally often. A vote is right where its canonical key
    is the gold answer's. Raises ValueError where the lengths differ, there is no problem, or one
    has fewer than `max_k` samples.
    """
    if not samples_by_problem or len(samples_by_problem) != len(golds):
        raise ValueError(f"{len(samples_by_problem)} problems need as many, and some, gold answers")
    if not 1 <= max_k <= min(map(len, samples_by_problem)):
        raise ValueError(f"max_k must be between 1 and the fewest samples of a problem: {max_k}")
    accuracy = [0.0] * max_k
    tokens_per_branch = 0.0
    for samples, gold in zip(samples_by_problem, golds, strict=True):
        tokens_per_branch += sum(sample.n_tokens for sample in samples) / len(samples)
        keys = [canonical_key(sample.answer) for sample in samples]
        gold_key = canonical_key(gold)
        for start in range(len(keys)):
            leaders = vote_leaders([*keys[start:], *keys[:start]][:max_k])
            for index, leader in enumerate(leaders):
                accuracy[index] += (leader == gold_key) / len(keys)
    problems = len(golds)
    return [
        CurvePoint(k, accuracy[k - 1] / problems, k * tokens_per_branch / problems)
        for k in range(1, max_k + 1)
    ]


def share_saved(tokens: ArrayLike, baseline: ArrayLike) -> NDArray[np.float64]:
    """Return the share of the `baseline` tokens that was not spent, 0 where the baseline is 0.

    Of one shape, or of two that broadcast; below 0 where more was spent.
    """
    spent, total = np.asarray(tokens, np.float64), np.asarray(baseline, np.float64)
    ratio = np.ones(np.broadcast_shapes(spent.shape, total.shape))
    return 1 - np.divide(spent, total, out=ratio, where=total > 0)


def cheapest_equal(curve: Sequence[CurvePoint], accuracy: float) -> CurvePoint | None:
    """Return the point with fewest tokens that is at least as accurate, None where none is."""
    equal = [point for point in curve if point.accuracy >= accuracy - _ACCURACY_SLACK]
    return min(equal, key=lambda point: point.tokens, default=None)


def vote_leaders(keys: Sequence[str]) -> list[str | None]:
    """Return the winning key after each vote; ties to the earliest, empty keys win nothing."""
    counts: Counter[str] = Counter()
    first: dict[str, int] = {}
    leader: str | None = None
    leaders = []
    for index, key in enumerate(keys):
        if key:
            counts[key] += 1
            rank = (-counts[key], first.setdefault(key, index))
            if leader is None or rank < (-counts[leader], first[leader]):
                leader = key
        leaders.append(leader)
    return leaders
