"""The confidence a branch must keep, from every finished branch of its profile (DeepConf).

DeepConf (arXiv 2508.15260) lets the first 16 branches of each question run to the end before it
knows its bar. Here all questions of one profile share it: a new program waits for nothing.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Callable

BAR_MIN_BRANCHES = 16
_STEPS_PER_NAT = 256
_SHARE_DIGITS = 9
_SHARE_ERROR = 0.5 * 10**-_SHARE_DIGITS


class ConfidenceBar:
    """Running quantile of the lowest group confidence over all finished branches of a profile.

    Pruned branches count: among survivors alone the most confident tenth would be a tenth of a
    tenth the next time. How low a pruned branch would have gone nobody saw, only that it was below
    its bar. Its share therefore goes to the branches seen below that bar, as Kaplan and Meier
    (1958) do for data censored on the other side. So a bar that began too high comes down again.

    It counts in steps of 1/256 nat, rounded down: little memory however long it runs, no
    dependence on the order of branches, and never less kept than asked for.
    """

    def __init__(self) -> None:
        self._branches = 0
        self._seen: Counter[int] = Counter()
        self._pruned: Counter[int] = Counter()
        self._steps: list[int] = []  # of either, ascending

    def add(self, lowest_group: float) -> None:
        """Count a branch that ran to its end and had a full group, in nats.

        Raises ValueError for a value that is not finite.
        """
        self._count(self._seen, lowest_group, math.floor)

    def add_pruned(self, bar: float) -> None:
        """Count a branch that fell below `bar` nats and was stopped for it."""
        self._count(self._pruned, bar, math.ceil)

    def bar(self, keep_top: float) -> float | None:
        """Return the confidence that the `keep_top` most confident branches reach, in nats.

        0.1 keeps the most confident tenth. None below 16 branches and below 1 / `keep_top`: then
        nothing is pruned. Raises ValueError where `keep_top` is not between 0 and 1, both excluded.
        """
        if not 0 < keep_top < 1:
            raise ValueError(f"keep_top must be above 0 and below 1, not {keep_top}")
        if self._branches < max(BAR_MIN_BRANCHES, round(1 / keep_top, _SHARE_DIGITS)):
            return None
        below, not_above, step = 1.0, self._branches, 0
        enough = 1 - keep_top + _SHARE_ERROR
        for step in reversed(self._steps):
            seen = self._seen.get(step, 0)
            below *= 1 - seen / not_above
            not_above -= seen + self._pruned.get(step, 0)
            if below <= enough:
                break
        return step / _STEPS_PER_NAT  # the lowest, where what is below it was all pruned

    def _count(self, counts: Counter[int], nats: float, rounding: Callable[[float], int]) -> None:
        if not math.isfinite(nats):
            raise ValueError(f"lowest_group must be finite, not {nats}")
        step = rounding(nats * _STEPS_PER_NAT)
        if step not in self._seen and step not in self._pruned:
            insort(self._steps, step)
        counts[step] += 1
        self._branches += 1
