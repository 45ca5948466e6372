"""Per-token certainty folded into a few numbers per branch (DeepConf, arXiv 2508.15260).

A token's certainty is any per-token figure where higher means more certain, such as
-mean(log p) over the k likeliest tokens. A *group* is a sliding window of tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_GROUP_TOKENS = 2048
_BOTTOM_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class TokenCertainty:
    """Fold of one branch: means over all tokens, the last group, the lowest, the bottom 10%."""

    tokens: int
    mean: float
    tail: float
    lowest_group: float
    bottom: float


class TokenCertaintyFold:
    """Folds token certainties as they come; O(1) per token, a window of memory."""

    def __init__(self, group_tokens: int = DEFAULT_GROUP_TOKENS) -> None:
        """`group_tokens` is the window, in tokens. Raises ValueError below 1."""
        if group_tokens < 1:
            raise ValueError(f"group_tokens must be at least 1, not {group_tokens}")
        self._window: deque[float] = deque(maxlen=group_tokens)
        self._window_sum = 0.0
        self._sum = 0.0
        self._tokens = 0
        self._groups: list[float] = []

    def add(self, certainty: float) -> None:
        """Count the next token."""
        if len(self._window) == self._window.maxlen:
            self._window_sum -= self._window[0]
        self._window.append(certainty)
        self._window_sum += certainty
        self._sum += certainty
        self._tokens += 1
        if len(self._window) == self._window.maxlen:
            self._groups.append(self._window_sum / len(self._window))

    @property
    def group(self) -> float | None:
        """Certainty of the current group; None until it is full: only full groups may stop."""
        full = len(self._window) == self._window.maxlen
        return self._window_sum / len(self._window) if full else None

    def folded(self) -> TokenCertainty | None:
        """Return the fold; None before the first token. A branch below one group is one group."""
        if not self._tokens:
            return None
        tail = self._window_sum / len(self._window)
        groups = sorted(self._groups or [tail])
        bottom = groups[: max(1, math.ceil(_BOTTOM_SHARE * len(groups)))]
        return TokenCertainty(
            tokens=self._tokens,
            mean=self._sum / self._tokens,
            tail=tail,
            lowest_group=groups[0],
            bottom=sum(bottom) / len(bottom),
        )


def keep_top_threshold(lowest_groups: Sequence[float], keep_top_fraction: float) -> float:
    """Return the certainty that the `keep_top_fraction` (0 to 1] best warm-up branches reach.

    0.1 keeps the best tenth (DeepConf-low), 0.9 all but the worst tenth (DeepConf-high). Raises
    ValueError without branches or outside the range.
    """
    if not lowest_groups or not 0 < keep_top_fraction <= 1:
        raise ValueError(
            "keep_top_fraction must be above 0 and at most 1, with at least one warm-up branch"
        )
    ranked = sorted(lowest_groups, reverse=True)
    return ranked[math.ceil(round(keep_top_fraction * len(ranked), 9)) - 1]
