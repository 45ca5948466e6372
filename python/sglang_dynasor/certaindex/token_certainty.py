"""Per-token certainty folded into a few numbers per branch (DeepConf, arXiv 2508.15260).

A token's confidence is -mean(log p) over the k likeliest tokens, in nats: higher means more
certain. A *group* is a sliding window of tokens.
"""

from __future__ import annotations

import math
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
