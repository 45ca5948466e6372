"""Who is given up when a request that is needed has no place, or KV runs out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang_dynasor.scheduling.program_entry import ProgramEntry, Request

# A cancelled request drains for two more steps: what runs must find KV for these.
_STEPS_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Load:
    """The engine after an admission pass.

    Requests that run and that wait; `is_full`: what waits finds no place or no KV; `kv_tokens` are
    free, or can be evicted.
    """

    running: int
    waiting: int
    is_full: bool = False
    kv_tokens: float = math.inf


class Room:
    """Programs with more requests in flight than they need."""

    def __init__(self, page_size: int) -> None:
        """`page_size` is the least KV a running request takes at once, tokens."""
        self._tokens_ahead = max(_STEPS_AHEAD, page_size)
        self._surplus: dict[int, ProgramEntry] = {}  # by arrival

    def update(self, entry: ProgramEntry) -> None:
        """Follow a program whose requests or needs have changed."""
        if entry.has_surplus:
            self._surplus[entry.arrival] = entry
        else:
            self._surplus.pop(entry.arrival, None)

    def give_up(self, load: Load, held: set[Request], leaving: int) -> list[Request]:
        """Running requests beyond the needed ones, youngest program first.

        One for each needed request that finds no place, and one where KV runs out: dropping what a
        program can spare costs nothing, what upstream retracts is computed again. Requests that are
        `held` want no place yet; `leaving` ones make some in a moment.
        """
        kv_is_low = load.kv_tokens < load.running * self._tokens_ahead
        if not self._surplus or not (load.is_full or kv_is_low):
            return []
        running: list[Request] = []
        not_needed = set(held)
        for entry in sorted(self._surplus.values(), key=lambda entry: -entry.arrival):
            surplus = entry.surplus()
            running += [req for req in surplus if req in entry.running]
            not_needed.update(req for req in surplus if req in entry.waiting)
        short = load.waiting - len(not_needed) if load.is_full else 0
        return running[: max(0, max(short, kv_is_low) - leaving)]
