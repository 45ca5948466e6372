"""Offer and draw: which speculative nodes start while the machine has room.

A program offers nodes that may turn out to be needed, each with what it would add to P(the answer
is right). An offer is a number and no request: it costs nothing until it is drawn. The draw goes by
value per token over all programs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from sglang_dynasor.scheduling.program_entry import ProgramEntry, ProgramKey
from sglang_dynasor.scheduling.program_table import ProgramTable


class Offers:
    """The offers of all programs. `offered` counts them, `underway` the draws not seen yet."""

    def __init__(self, table: ProgramTable, max_offered: int) -> None:
        """`max_offered` bounds the offers that are remembered, over all programs."""
        self.offered = 0
        self.underway = 0
        self._table = table
        self._max_offered = max_offered
        self._offering: dict[int, ProgramEntry] = {}  # by arrival

    def take(self, entry: ProgramEntry, values: Sequence[float], draws_seen: int) -> None:
        """Take what a program offers now; draws it has not seen yet were of the first of these."""
        self.underway -= entry.underway
        entry.draws_seen = draws_seen
        self.underway += entry.underway
        room = self._max_offered - self.offered + len(entry.offers)
        self._set(entry, values[entry.underway :][: max(0, room)])

    def forget(self, entry: ProgramEntry) -> None:
        """A program has ended: nothing of it is offered or underway."""
        self.take(entry, (), entry.drawn)
        entry.drawn = entry.draws_seen = 0

    def withdraw(self) -> None:
        """Forget every offer, as on an abort of all requests."""
        for entry in list(self._offering.values()):
            self._set(entry, ())

    def draw(self, room: int) -> list[tuple[ProgramKey, int]]:
        """Draw up to `room` offered nodes, those underway taken off: (program, count), best first.

        Best is the most value per expected token.
        """
        room -= self.underway
        if room <= 0 or not self._offering:
            return []
        best = [(self._rank(entry), entry.arrival, entry) for entry in self._offering.values()]
        heapq.heapify(best)
        counts: dict[ProgramKey, int] = {}
        while best and room > 0:
            _, arrival, entry = heapq.heappop(best)
            assert entry.key is not None
            counts[entry.key] = counts.get(entry.key, 0) + 1
            self._draw_first(entry)
            room -= 1
            if entry.offers:
                heapq.heappush(best, (self._rank(entry), arrival, entry))
        return list(counts.items())

    def _draw_first(self, entry: ProgramEntry) -> None:
        self.underway -= entry.underway
        entry.drawn += 1
        self.underway += entry.underway
        self._set(entry, entry.offers[1:])

    def _rank(self, entry: ProgramEntry) -> float:
        return -entry.offers[0] / self._table.node_tokens(entry)

    def _set(self, entry: ProgramEntry, values: Sequence[float]) -> None:
        self.offered += len(values) - len(entry.offers)
        entry.offers = values
        if values:
            self._offering[entry.arrival] = entry
        else:
            self._offering.pop(entry.arrival, None)
