"""Per-token certainty folded into a few numbers per branch (DeepConf, arXiv 2508.15260).

A token's confidence is -mean(log p) over the k likeliest tokens, in nats: higher means more
certain. A *group* is a sliding window of tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

# DeepConf takes 2,048, which is longer than a whole branch of a short answer.
CERTAINTY_GROUP_TOKENS = 16
CERTAINTY_TOP_K = 20  # likeliest tokens in a confidence, as in DeepConf


@dataclass(frozen=True, slots=True)
class TokenCertainty:
    """Fold of one branch: confidence over all tokens, in the last group and in the lowest.

    `entropy` and `self_certainty` (KL from uniform) are means in nats, `logprob` is that of the
    sampled tokens; None where it was not measured.
    """

    tokens: int
    mean: float
    tail: float
    lowest_group: float
    entropy: float | None = None
    self_certainty: float | None = None
    logprob: float | None = None


class TokenCertaintyFold:
    """Folds token certainties as they come; O(1) per token, a window of memory."""

    def __init__(self, group_tokens: int = CERTAINTY_GROUP_TOKENS) -> None:
        """`group_tokens` is the window, in tokens. Raises ValueError below 1."""
        if group_tokens < 1:
            raise ValueError(f"group_tokens must be at least 1, not {group_tokens}")
        self._window: deque[float] = deque(maxlen=group_tokens)
        self._window_sum = 0.0
        self._sum = 0.0
        self._tokens = 0
        self._lowest = math.inf

    def add(self, certainty: float) -> None:
        """Count the next token."""
        if len(self._window) == self._window.maxlen:
            self._window_sum -= self._window[0]
        self._window.append(certainty)
        self._window_sum += certainty
        self._sum += certainty
        self._tokens += 1
        if len(self._window) == self._window.maxlen:
            self._lowest = min(self._lowest, self._window_sum / len(self._window))

    def folded(self) -> TokenCertainty | None:
        """Return the fold; None before the first token. A branch below one group is one group."""
        if not self._tokens:
            return None
        tail = self._window_sum / len(self._window)
        return TokenCertainty(
            tokens=self._tokens,
            mean=self._sum / self._tokens,
            tail=tail,
            lowest_group=min(self._lowest, tail),
        )


def keep_top_threshold(lowest_groups: Sequence[float], keep_top: float) -> float:
    """Return the confidence that the `keep_top` (0 to 1] most confident branches reach.

    0.1 keeps the best tenth (DeepConf-low), 0.9 all but the worst tenth (DeepConf-high). Raises
    ValueError without branches or outside the range.
    """
    if not lowest_groups or not 0 < keep_top <= 1:
        raise ValueError(
            f"keep_top must be above 0 and at most 1, with at least one branch: {keep_top} of "
            f"{len(lowest_groups)}"
        )
    ranked = sorted(lowest_groups, reverse=True)
    return ranked[math.ceil(round(keep_top * len(ranked), 9)) - 1]
