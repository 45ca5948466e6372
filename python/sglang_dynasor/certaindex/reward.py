"""Certaindex from a reward model (paper sections 3.1 and B.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, TypeAlias

RewardAggregate: TypeAlias = Literal["mean", "max"]
REWARD_OF_ALGORITHM: dict[str, RewardAggregate] = {"mcts": "mean", "rebase": "max"}


def normalised_reward(logit: float) -> float:
    """Return sigmoid(`logit`), 0 to 1: what a raw reward-model logit means.

    Raises ValueError for NaN.
    """
    if math.isnan(logit):
        raise ValueError("reward must be a number, not NaN")
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(max(logit, -700.0))
    return power / (1 + power)


class RewardTracker:
    """One program's normalised reward while its paths finish."""

    def __init__(self, aggregate: RewardAggregate) -> None:
        """Raises ValueError for an unknown aggregate."""
        if aggregate not in ("mean", "max"):
            raise ValueError(f"reward must be mean or max, not {aggregate!r}")
        self._aggregate = aggregate
        self._sum = 0.0
        self._max = 0.0
        self._paths = 0

    def add(self, reward: float) -> None:
        """Count the reward of one path. Raises ValueError outside 0 to 1."""
        if not 0 <= reward <= 1:
            raise ValueError(f"reward must be between 0 and 1, not {reward}")
        self._paths += 1
        self._sum += reward
        self._max = max(self._max, reward)

    @property
    def value(self) -> float | None:
        """The aggregate, 0 to 1; None before the first reward."""
        if not self._paths:
            return None
        return self._max if self._aggregate == "max" else self._sum / self._paths


def aggregate_reward(rewards: Iterable[float], aggregate: RewardAggregate) -> float | None:
    """Return the aggregate of all rewards at once; None without any."""
    tracker = RewardTracker(aggregate)
    for reward in rewards:
        tracker.add(reward)
    return tracker.value
