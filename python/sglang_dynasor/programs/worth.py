"""What the branches that are needed now are worth, for the order among programs."""

from __future__ import annotations

from functools import lru_cache

from sglang_dynasor.allocation import expected_gain
from sglang_dynasor.certaindex import CertaindexTracker, Evidence


def worth_of(evidence: Evidence, needed: int) -> float:
    """What the needed branches add next to all branches of a program of which nothing is known.

    Where they only help together with later ones, their part of what all add.
    """
    if not evidence.remaining:
        return 0.0
    part = expected_gain(evidence, evidence.remaining) * needed / evidence.remaining
    maximum = evidence.finished + evidence.remaining
    return min(1.0, max(expected_gain(evidence, needed), part) / _first_gain(maximum))


@lru_cache
def _first_gain(max_branches: int) -> float:
    nothing = CertaindexTracker(max_branches).evidence()
    return expected_gain(nothing, max_branches)
