"""Token certainty of many branches at once: one row (slot) per branch, O(1) per token.

Sums are kept in fixed point: taking a token out of a window undoes adding it exactly, however long
the branch, and the same tokens give the same bits on every tensor-parallel rank.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sglang_dynasor.certaindex.token_certainty import CERTAINTY_GROUP_TOKENS, TokenCertainty

RECENT_TOKENS = 256
FIXED_POINT = 1 << 24  # steps per nat: finer than the float32 of the measurement
_MAX_NATS = float(1 << 14)
_NEVER = np.iinfo(np.int64).max

Slots = NDArray[np.int64]


class CertaintyTable:
    """Folds the certainty of every running branch, vectorised over the batch.

    A *group* is the window of a branch's last `group_tokens` tokens; it counts once it is full.
    """

    def __init__(self, group_tokens: int = CERTAINTY_GROUP_TOKENS, initial_slots: int = 64) -> None:
        """Raises ValueError where `group_tokens` or `initial_slots` is below 1."""
        for name, value in (("group_tokens", group_tokens), ("initial_slots", initial_slots)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.group_tokens = group_tokens
        self.capacity = initial_slots
        self._free = list(reversed(range(initial_slots)))
        self._open = np.zeros(initial_slots, bool)
        self._tokens = np.zeros(initial_slots, np.int64)
        self._confidence = _SlidingSums(initial_slots, group_tokens)
        self._entropy = _SlidingSums(initial_slots, group_tokens)
        self._lowest = np.full(initial_slots, _NEVER)
        # Sums of what not every caller measures, and of how many tokens.
        self._self_certainty = np.zeros((initial_slots, 2))
        self._logprob = np.zeros((initial_slots, 2))
        self._recent = np.full((initial_slots, RECENT_TOKENS), -1, np.int32)

    def open(self) -> int:
        """Return the slot of a new branch; the table doubles where none is free."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._open[slot] = True
        self._tokens[slot] = 0
        self._confidence.clear(slot)
        self._entropy.clear(slot)
        self._lowest[slot] = _NEVER
        self._self_certainty[slot] = self._logprob[slot] = 0
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
        confidence: NDArray[np.floating],
        entropy: NDArray[np.floating],
        tokens: NDArray[np.integer],
        self_certainty: NDArray[np.floating] | None = None,
        logprob: NDArray[np.floating] | None = None,
    ) -> None:
        """Count one committed token in each of `slots`, which are open and differ; all are [n].

        `confidence` is DeepConf's -mean(log p) over the likeliest tokens and `entropy` in nats,
        both clipped to 0 and 16,384, a NaN to 0; `tokens` are ids. `self_certainty` (KL from
        uniform, nats) and `logprob` of the sampled token are only averaged. Raises ValueError for
        lengths that differ.
        """
        n = len(slots)
        if not n == len(confidence) == len(entropy) == len(tokens):
            raise ValueError(
                f"one confidence, entropy and token per slot: {n} slots, {len(confidence)}, "
                f"{len(entropy)} and {len(tokens)}"
            )
        counted = self._tokens[slots]
        at = slots * self.group_tokens + counted % self.group_tokens
        groups = self._confidence.add(slots, at, confidence)
        self._entropy.add(slots, at, entropy)
        self._recent[slots, counted % RECENT_TOKENS] = tokens
        counted += 1
        self._tokens[slots] = counted
        groups[counted < self.group_tokens] = _NEVER
        self._lowest[slots] = np.minimum(self._lowest[slots], groups)
        if self_certainty is not None:
            _count(self._self_certainty, slots, self_certainty)
        if logprob is not None:
            _count(self._logprob, slots, logprob)

    def summary(self, slot: int) -> TokenCertainty | None:
        """Return the fold of an open branch, None before its first token.

        A branch shorter than a group is one group. Raises ValueError unless the slot is open.
        """
        self._check_open(slot)
        tokens = int(self._tokens[slot])
        if not tokens:
            return None
        in_group = min(tokens, self.group_tokens)
        tail = _nats(self._confidence.window[slot], in_group)
        full = tokens >= self.group_tokens
        return TokenCertainty(
            tokens=tokens,
            mean=_nats(self._confidence.total[slot], tokens),
            tail=tail,
            lowest_group=_nats(self._lowest[slot], in_group) if full else tail,
            entropy=_nats(self._entropy.total[slot], tokens),
            self_certainty=_mean(self._self_certainty[slot]),
            logprob=_mean(self._logprob[slot]),
        )

    def tokens(self, slots: Slots) -> NDArray[np.int64]:
        """Return how many tokens each branch has committed."""
        return self._tokens[slots]

    def group_below(self, slots: Slots, bars: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say whose group is full and its confidence below the bar of `fixed_group`."""
        return self._full(slots) & (self._confidence.window[slots] < bars)

    def group_entropy_below(self, slots: Slots, floors: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say whose group is full and its mean entropy below the floor of `fixed_group`."""
        return self._full(slots) & (self._entropy.window[slots] < floors)

    def fixed_group(self, nats: float) -> int:
        """Return what a group's sum is where its mean is `nats`: compared without rounding."""
        return round(nats * FIXED_POINT) * self.group_tokens

    def group_nats(self, fixed: int) -> float:
        """Return the mean that `fixed_group` was given."""
        return fixed / (self.group_tokens * FIXED_POINT)

    def last_tokens(self, slots: Slots) -> NDArray[np.int32]:
        """Return the ids of the last 256 tokens, newest first, [n, 256]; -1 where there is none."""
        ages = np.arange(1, RECENT_TOKENS + 1)
        return self._recent[slots[:, None], (self._tokens[slots][:, None] - ages) % RECENT_TOKENS]

    def _full(self, slots: Slots) -> NDArray[np.bool_]:
        return self._tokens[slots] >= self.group_tokens

    def _check_open(self, slot: int) -> None:
        if not 0 <= slot < self.capacity or not self._open[slot]:
            raise ValueError(f"slot {slot} is not open")

    def _grow(self) -> None:
        old = self.capacity
        self.capacity = 2 * old
        self._free.extend(reversed(range(old, self.capacity)))
        self._confidence.grow()
        self._entropy.grow()
        for name in ("_open", "_tokens", "_lowest", "_self_certainty", "_logprob", "_recent"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, array]))  # `open` clears a row


class _SlidingSums:
    """Per slot the sum of the last `length` values and of all, in fixed point."""

    def __init__(self, slots: int, length: int) -> None:
        self._length = length
        self._ring = np.zeros(slots * length, np.int64)
        self.window = np.zeros(slots, np.int64)
        self.total = np.zeros(slots, np.int64)

    def add(self, slots: Slots, at: NDArray[np.int64], nats: ArrayLike) -> NDArray[np.int64]:
        """Put the values where the oldest are, and return the sums of the windows."""
        clipped = np.fmin(np.fmax(nats, 0), _MAX_NATS)  # fmax takes the number beside a NaN
        values = np.rint(clipped * float(FIXED_POINT)).astype(np.int64)
        windows: NDArray[np.int64] = self.window[slots] + (values - self._ring[at])
        self._ring[at] = values
        self.window[slots] = windows
        self.total[slots] += values
        return windows

    def clear(self, slot: int) -> None:
        self._ring[slot * self._length : (slot + 1) * self._length] = 0
        self.window[slot] = self.total[slot] = 0

    def grow(self) -> None:
        for name in ("_ring", "window", "total"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, array]))


def _count(sums: NDArray[np.float64], slots: Slots, values: NDArray[np.floating]) -> None:
    sums[slots, 0] += values
    sums[slots, 1] += 1


def _mean(sums: NDArray[np.float64]) -> float | None:
    return float(sums[0] / sums[1]) if sums[1] and np.isfinite(sums[0]) else None


def _nats(total: np.int64, tokens: int) -> float:
    return int(total) / (tokens * FIXED_POINT)
