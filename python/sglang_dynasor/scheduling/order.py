"""The order of the waiting queue: programs are ranked, their requests follow (DESIGN section 7).

Escalated programs come first, in the order in which their patience ended; then the policy's own:

- gang: programs that already run, then by arrival (the paper's and Parrot's App-FIFO);
- gang-sjf: programs that already run, then the least expected remaining work;
- value: the least expected remaining work per worth. Where all are worth the same that is shortest
  first, and where all cost the same too, the order of arrival, each gang together.

Requests beyond those their program needs now come after all others. Everything is counted in
tokens of engine progress, so every tensor-parallel rank comes to the same order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Protocol, TypeAlias

from sglang_dynasor.scheduling.program_table import ProgramEntry, ProgramTable

PolicyKey: TypeAlias = Callable[[ProgramTable, ProgramEntry], tuple[float, ...]]

_LEAST_WORTH = 1e-6
_LATE = 1 << 32  # above every rank


class WaitingRequest(Protocol):
    """What the order reads of a waiting request: upstream's Req, and our number of arrival."""

    rid: str
    origin_input_ids: Sequence[int]
    arrival: int


def _gang(table: ProgramTable, entry: ProgramEntry) -> tuple[float, ...]:
    return (not entry.started,)


def _gang_sjf(table: ProgramTable, entry: ProgramEntry) -> tuple[float, ...]:
    return (not entry.started, table.remaining_tokens(entry))


def _value(table: ProgramTable, entry: ProgramEntry) -> tuple[float, ...]:
    return (table.remaining_tokens(entry) / max(entry.worth, _LEAST_WORTH),)


POLICY_KEYS: dict[str, PolicyKey] = {"gang": _gang, "gang-sjf": _gang_sjf, "value": _value}


class ProgramOrder:
    """Keeps the waiting programs of a table ranked; only programs that changed are keyed again.

    A program is escalated once the engine has computed `starvation_factor` tokens for each token of
    the program's own expected work since its wait began. It stays so until nothing of it waits.
    """

    def __init__(self, table: ProgramTable, policy: str, starvation_factor: float) -> None:
        self._table = table
        self._policy_key = POLICY_KEYS[policy]
        self._factor = starvation_factor
        self._waiting: dict[int, ProgramEntry] = {}  # by arrival
        self._patience: list[tuple[float, int]] = []  # heap of (escalate_at, arrival)

    def sort(self, queue: list[Any]) -> None:
        """Sort `queue` of `WaitingRequest` in place; no work at all where nothing has changed."""
        table = self._table
        self._escalate()
        if not table.changed:
            return
        entries = [
            table.waiting_entry(req.rid, req.arrival, len(req.origin_input_ids)) for req in queue
        ]
        self._rank()
        ranks = {
            req.rid: entry.rank + _LATE if req.rid in entry.late else entry.rank
            for req, entry in zip(queue, entries, strict=True)
        }
        queue.sort(key=lambda req: ranks[req.rid])

    def _rank(self) -> None:
        """Key the programs that changed, and number all that wait."""
        for arrival, entry in self._table.changed.items():
            if entry.waiting:
                self._waiting[arrival] = entry
                self._key(entry)
            else:
                self._waiting.pop(arrival, None)
        self._table.changed.clear()
        for rank, entry in enumerate(sorted(self._waiting.values(), key=attrgetter("order_key"))):
            entry.rank = rank

    def _key(self, entry: ProgramEntry) -> None:
        if entry.escalate_at is None:
            assert entry.waiting_since is not None
            need = max(1.0, self._table.remaining_tokens(entry))
            entry.escalate_at = entry.waiting_since + self._factor * need
            heapq.heappush(self._patience, (entry.escalate_at, entry.arrival))
        if entry.escalated:
            entry.order_key = (0, entry.escalate_at, entry.arrival)
        else:
            entry.order_key = (1, *self._policy_key(self._table, entry), entry.arrival)
        entry.late = frozenset(rid for rid in entry.surplus() if rid in entry.waiting)

    def _escalate(self) -> None:
        while self._patience and self._patience[0][0] <= self._table.progress:
            escalate_at, arrival = heapq.heappop(self._patience)
            entry = self._waiting.get(arrival)
            # A program that was served meanwhile waits by another entry of the heap.
            if entry is not None and entry.waiting and entry.escalate_at == escalate_at:
                entry.escalated = True
                self._table.changed[arrival] = entry
