"""Which branches stop now, from their tokens alone: no text is read, nothing waits.

- pruned: DeepConf online (arXiv 2508.15260), the group's confidence is below the bar.
- loop: the branch repeats itself exactly, and would until its length limit.
- certain: entropy collapse, the model no longer chooses between tokens. It may only be copying
  text, so this rule is off unless asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from sglang_dynasor.allocation.confidence_bar import ConfidenceBar
from sglang_dynasor.certaindex.certainty_table import RECENT_TOKENS, CertaintyTable, Slots

TokenStop: TypeAlias = Literal["pruned", "loop", "certain"]

LOOP_CHECK_TOKENS = 16
LOOP_MIN_REPEATS = 4
LOOP_MIN_TOKENS = 64
_MAX_PERIOD = RECENT_TOKENS // LOOP_MIN_REPEATS
# Of these it is known whether they fell below the bar. How a branch would have gone on that was
# stopped for another reason nobody knows, and one in a loop is surer of itself than any other.
_COUNTED = ("completed", "length", "pruned")
_NO_BAR = np.iinfo(np.int64).min
MAX_PROFILES = 1024


@dataclass(frozen=True, slots=True)
class BranchRule:
    """What may stop one branch; scalars only, for they travel with its request.

    `keep_top` (0 to 1, both excluded) prunes below the running bar of `profile`, `bar` (nats)
    below a fixed, calibrated one; give at most one. Without either the branch can't be pruned, but
    still counts into the bar of its profile. `loop` ends exact repetition; `entropy_floor` (nats,
    above 0) ends a branch whose group has less mean entropy.
    """

    profile: str = ""
    keep_top: float | None = None
    bar: float | None = None
    loop: bool = False
    entropy_floor: float | None = None

    def __post_init__(self) -> None:
        if self.keep_top is not None and self.bar is not None:
            raise ValueError("keep_top and bar: give one, the running or the fixed bar")
        if self.keep_top is not None and not 0 < self.keep_top < 1:
            raise ValueError(f"keep_top must be above 0 and below 1, not {self.keep_top}")
        for name in ("bar", "entropy_floor"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e4:
                raise ValueError(f"{name} must be above 0 and below 10,000 nats, not {value}")


class BranchRules:
    """Opens branches with their rules in a `CertaintyTable`, and says which of them stop.

    The way of a branch: `open`, then for each batch `table.add` and `stopped`, then `close` with
    the branch's stop reason. All counts and comparisons are of integers: the same tokens and
    confidences, in the same order of calls, give the same decisions in every process.
    """

    def __init__(self, table: CertaintyTable) -> None:
        self.table = table
        self._bars: dict[str, ConfidenceBar] = {}  # by profile, least recently used first
        self._rules: dict[int, BranchRule] = {}  # of slots that may stop or move a bar
        self._stopping: dict[int, float] = {}  # the bar each was under, nats
        self._bar = np.full(table.capacity, _NO_BAR)
        self._floor = np.full(table.capacity, _NO_BAR)
        self._loop = np.zeros(table.capacity, bool)

    @property
    def armed(self) -> bool:
        """Whether some open branch has a rule, so that each of its tokens must be looked at."""
        return bool(self._rules)

    def open(self, rule: BranchRule | None = None) -> int:
        """Return the slot of a new branch; without a rule it is only measured."""
        slot = self.table.open()
        if self.table.capacity > len(self._loop):
            for name in ("_bar", "_floor", "_loop"):
                array = getattr(self, name)
                setattr(self, name, np.resize(array, self.table.capacity))
        self._disarm(slot)
        if rule is not None:
            self._rules[slot] = rule
            self._loop[slot] = rule.loop
            if rule.entropy_floor is not None:
                self._floor[slot] = self.table.fixed_group(rule.entropy_floor)
            if rule.bar is not None:
                self._bar[slot] = self.table.fixed_group(rule.bar)
            elif rule.keep_top is not None:
                self._bar[slot] = self._running_bar(rule.profile, rule.keep_top)
        return slot

    def close(self, slot: int, stop_reason: str) -> None:
        """Forget a branch; `stop_reason` is a branch's (completed, length, cancelled, ...).

        A branch that ended by itself or was pruned moves its profile's bar, at once for every
        branch that runs. Raises ValueError unless the slot is open.
        """
        summary = self.table.summary(slot)
        self.table.close(slot)
        bar = self._stopping.pop(slot, 0.0)
        rule = self._rules.pop(slot, None)
        if rule is None or summary is None or stop_reason not in _COUNTED:
            return
        if summary.tokens < self.table.group_tokens:
            return  # without a full group it could not have been pruned either
        if stop_reason == "pruned":
            self._bar_of(rule.profile).add_pruned(bar)
        else:
            self._bar_of(rule.profile).add(summary.lowest_group)
        bars: dict[float, int] = {}
        for other, running in self._rules.items():
            keep_top = running.keep_top
            if keep_top is None or running.profile != rule.profile or other in self._stopping:
                continue
            if keep_top not in bars:
                bars[keep_top] = self._running_bar(rule.profile, keep_top)
            self._bar[other] = bars[keep_top]

    def stopped(self, slots: Slots) -> list[tuple[int, TokenStop]]:
        """Return which of the branches stop, and why; call it once after each `table.add`.

        A branch that was named is not named again: it may commit tokens until it has ended.
        """
        if not self.armed:
            return []
        stops: dict[int, TokenStop] = {}
        # The last word wins: repetition collapses entropy too, and says more.
        tokens, confidence, entropy = self.table.groups(slots).T
        full = tokens >= self.table.group_tokens
        certain = full & (entropy < self._floor[slots])
        stops.update((int(slot), "certain") for slot in slots[certain])
        pruned = full & (confidence < self._bar[slots])
        stops.update((int(slot), "pruned") for slot in slots[pruned])
        checked = slots[self._loop[slots] & (tokens % LOOP_CHECK_TOKENS == 0)]
        if checked.size:
            loops = checked[repeats(self.table.last_tokens(checked))]
            stops.update((int(slot), "loop") for slot in loops)
        for slot in stops:
            self._stopping[slot] = self.table.group_nats(int(self._bar[slot]))
            self._disarm(slot)
        return sorted(stops.items())

    def bar(self, profile: str, keep_top: float) -> float | None:
        """Return the running bar of a profile in nats, None where it has too few branches yet."""
        known = self._bars.get(profile)
        return None if known is None else known.bar(keep_top)

    def _running_bar(self, profile: str, keep_top: float) -> int:
        bar = self.bar(profile, keep_top)
        return _NO_BAR if bar is None else self.table.fixed_group(bar)

    def _bar_of(self, profile: str) -> ConfidenceBar:
        bar = self._bars.pop(profile, None) or ConfidenceBar()
        self._bars[profile] = bar
        if len(self._bars) > MAX_PROFILES:  # clients name profiles: they must not fill the memory
            del self._bars[next(iter(self._bars))]
        return bar

    def _disarm(self, slot: int) -> None:
        self._bar[slot] = self._floor[slot] = _NO_BAR
        self._loop[slot] = False


def repeats(newest_first: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Say which rows end in a loop: at least 4 times the same period, and at least 64 tokens.

    [n, 256] token ids, newest first, -1 before the first; periods of 1 to 64 tokens are found.
    """
    newest = newest_first[:, None, :LOOP_CHECK_TOKENS]
    earlier = sliding_window_view(newest_first, LOOP_CHECK_TOKENS, axis=1)[:, 1 : _MAX_PERIOD + 1]
    found = np.zeros(len(newest_first), bool)
    # A loop must hold for the newest tokens; few periods pass that and are compared in full.
    for row, index in zip(*np.nonzero((earlier == newest).all(axis=2)), strict=True):
        period = int(index) + 1
        length = max(LOOP_MIN_TOKENS, LOOP_MIN_REPEATS * period)
        tail = newest_first[row, :length]
        found[row] |= bool(tail[-1] >= 0 and np.array_equal(tail[:-period], tail[period:]))
    return found
