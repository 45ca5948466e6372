"""Token certainty of many branches at once: one row (slot) per branch, O(1) per token.

Sums are kept in fixed point: taking a token out of a window undoes adding it exactly, however long
the branch, and the same tokens give the same bits on every tensor-parallel rank.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang_dynasor.certaindex.token_certainty import CERTAINTY_GROUP_TOKENS, TokenCertainty

MEASURES = ("confidence", "entropy", "self_certainty")  # the columns of `CertaintyTable.add`
RECENT_TOKENS = 256
FIXED_POINT = 1 << 24  # steps per nat: finer than the float32 of the measurement
_MAX_NATS = float(1 << 14)
_NEVER = np.iinfo(np.int64).max
# Columns of the table: a cache line per branch, read and written once per token.
_TOKENS = 0
_GROUP = slice(1, 4)  # sums of the measures over the group
_GROUP_CONFIDENCE, _GROUP_ENTROPY, _ = range(1, 4)
_BRANCH = slice(4, 7)  # and over the whole branch
_LOWEST = 7  # sum of confidence in the group where it was lowest

Slots = NDArray[np.int64]


class CertaintyTable:
    """Folds the certainty of every running branch, vectorised over the batch and some steps.

    A *group* is the window of a branch's last `group_tokens` tokens; it counts once it is full.
    """

    def __init__(self, group_tokens: int = CERTAINTY_GROUP_TOKENS, initial_slots: int = 64) -> None:
        """Raises ValueError where `group_tokens` or `initial_slots` is below 1."""
        for name, value in (("group_tokens", group_tokens), ("initial_slots", initial_slots)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.group_tokens = group_tokens
        self.capacity = initial_slots
        self._steps = np.arange(RECENT_TOKENS)[:, None]
        self._free = list(reversed(range(initial_slots)))
        self._open = np.zeros(initial_slots, bool)
        self._rows = np.zeros((initial_slots, _LOWEST + 1), np.int64)
        self._ring = np.zeros((initial_slots, group_tokens, len(MEASURES)), np.int64)
        self._logprob = np.zeros((initial_slots, 2))  # sum, and of how many tokens
        self._recent = np.full((initial_slots, RECENT_TOKENS), -1, np.int32)

    def open(self) -> int:
        """Return the slot of a new branch; the table doubles where none is free."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._open[slot] = True
        self._rows[slot] = self._ring[slot] = self._logprob[slot] = 0
        self._rows[slot, _LOWEST] = _NEVER
        self._recent[slot] = -1
        return slot

    def close(self, slot: int) -> None:
        """Forget a branch; its slot may be given out again. Raises ValueError unless open."""
        self._check_open(slot)
        self._open[slot] = False
        self._free.append(slot)

    def add(
        self,
        slots: Slots,
        measures: NDArray[np.floating],
        tokens: NDArray[np.integer],
        logprob: NDArray[np.floating] | None = None,
    ) -> None:
        """Count the committed tokens of some steps in each of `slots`, which are open and differ.

        `slots` is [n], `measures` [steps, n, 3] in nats, columns as in `MEASURES`: DeepConf's
        -mean(log p) over the likeliest tokens, entropy, and KL from uniform; clipped to 0 and
        16,384, a NaN to 0. `tokens` are ids, [steps, n]. `logprob` of the sampled tokens,
        [steps, n], is only averaged. Raises ValueError for other shapes.
        """
        steps = len(tokens)
        if tokens.shape != (steps, len(slots)) or measures.shape != (*tokens.shape, len(MEASURES)):
            raise ValueError(
                f"{len(MEASURES)} measures and one token per step and slot: {len(slots)} slots, "
                f"measures {list(measures.shape)}, tokens {list(tokens.shape)}"
            )
        clipped = np.fmin(np.fmax(measures, 0), _MAX_NATS)  # fmax takes the number beside a NaN
        values = np.rint(clipped * float(FIXED_POINT)).astype(np.int64)
        at_once = min(self.group_tokens, RECENT_TOKENS)  # steps that overwrite nothing of their own
        for start in range(0, steps, at_once):
            end = start + at_once
            self._fold(slots, values[start:end], tokens[start:end])
        if logprob is not None:
            self._logprob[slots, 0] += logprob.sum(axis=0)
            self._logprob[slots, 1] += steps

    def _fold(self, slots: Slots, values: NDArray[np.int64], tokens: NDArray[np.integer]) -> None:
        steps = len(values)
        rows = self._rows[slots]
        counted = rows[:, _TOKENS] + self._steps[:steps]  # tokens before each, [steps, n]
        oldest = counted % self.group_tokens
        groups = (values - self._ring[slots, oldest]).cumsum(axis=0)
        groups += rows[:, _GROUP]
        unfilled = counted + 1 < self.group_tokens
        lowest = np.where(unfilled, _NEVER, groups[:, :, 0]).min(axis=0)
        rows[:, _LOWEST] = np.minimum(rows[:, _LOWEST], lowest)
        rows[:, _TOKENS] += steps
        rows[:, _GROUP] = groups[-1]
        rows[:, _BRANCH] += values.sum(axis=0)
        self._rows[slots] = rows
        self._ring[slots, oldest] = values
        self._recent[slots, counted % RECENT_TOKENS] = tokens

    def summary(self, slot: int) -> TokenCertainty | None:
        """Return the fold of an open branch, None before its first token.

        A branch shorter than a group is one group. Raises ValueError unless the slot is open.
        """
        self._check_open(slot)
        row = self._rows[slot]
        tokens = int(row[_TOKENS])
        if not tokens:
            return None
        in_group = min(tokens, self.group_tokens)
        tail = _nats(row[_GROUP_CONFIDENCE], in_group)
        mean, entropy, self_certainty = (_nats(total, tokens) for total in row[_BRANCH])
        full = tokens >= self.group_tokens
        return TokenCertainty(
            tokens=tokens,
            mean=mean,
            tail=tail,
            lowest_group=_nats(row[_LOWEST], in_group) if full else tail,
            entropy=entropy,
            self_certainty=self_certainty,
            logprob=_mean(self._logprob[slot]),
        )

    def tokens(self, slots: Slots) -> NDArray[np.int64]:
        """Return how many tokens each branch has committed."""
        return self._rows[slots, _TOKENS]

    def groups(self, slots: Slots) -> NDArray[np.int64]:
        """Return tokens, and the group's sums of confidence and of entropy, [n, 3].

        Compare the sums with `fixed_group`, where there are `group_tokens` tokens: not before that
        is the group full.
        """
        return self._rows[slots][:, : _GROUP_ENTROPY + 1]

    def fixed_group(self, nats: float) -> int:
        """Return what a group's sum is where its mean is `nats`: compared without rounding."""
        return round(nats * FIXED_POINT) * self.group_tokens

    def group_nats(self, fixed: int) -> float:
        """Return the mean that `fixed_group` was given."""
        return fixed / (self.group_tokens * FIXED_POINT)

    def last_tokens(self, slots: Slots) -> NDArray[np.int32]:
        """Return the ids of the last 256 tokens, newest first, [n, 256]; -1 where there is none."""
        ages = np.arange(1, RECENT_TOKENS + 1)
        return self._recent[slots[:, None], (self.tokens(slots)[:, None] - ages) % RECENT_TOKENS]

    def _check_open(self, slot: int) -> None:
        if not 0 <= slot < self.capacity or not self._open[slot]:
            raise ValueError(f"slot {slot} is not open")

    def _grow(self) -> None:
        old = self.capacity
        self.capacity = 2 * old
        self._free.extend(reversed(range(old, self.capacity)))
        for name in ("_open", "_rows", "_ring", "_logprob", "_recent"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, array]))  # `open` clears a row


def _mean(sums: NDArray[np.float64]) -> float | None:
    return float(sums[0] / sums[1]) if sums[1] and np.isfinite(sums[0]) else None


def _nats(total: np.int64, tokens: int) -> float:
    return int(total) / (tokens * FIXED_POINT)
