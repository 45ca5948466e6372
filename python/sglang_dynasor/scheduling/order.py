"""The order of the waiting queue: programs are ranked, their requests follow (DESIGN section 7).

Escalated programs come first, in the order in which their patience ended; then the policy's own:

- gang: programs that already run, then by arrival (the paper's and Parrot's App-FIFO);
- gang-sjf: programs that already run, then the least expected remaining work;
- value: the least expected remaining work per worth. Where all are worth the same that is shortest
  first, and where all cost the same too, the order of arrival, each gang together.

Requests beyond those their program needs now come after all others, by the same order. Everything
is counted in tokens of engine progress, so every tensor-parallel rank comes to the same order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeAlias

from sglang_dynasor.scheduling.program_entry import ProgramEntry
from sglang_dynasor.scheduling.program_table import ProgramTable

PolicyKey: TypeAlias = Callable[[ProgramTable, ProgramEntry], tuple[float, ...]]

_LEAST_WORTH = 1e-6
_ESCALATED, _ORDINARY = range(2)


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
        self._ranked: list[ProgramEntry] = []  # those that wait, as of the last pass
        self._patience: list[tuple[float, int, ProgramEntry]] = []  # heap of (escalate_at, push, _)
        self._pushes = 0

    def sort(self, queue: list[Any]) -> None:
        """Sort `queue` of `WaitingRequest` in place; no work at all where nothing has changed.

        It does not look into requests that the table knows: long queues do not fit into caches.
        """
        self._escalate()
        for _ in range(2):
            if not self._table.changed:
                return
            present = set(map(id, queue))
            known = [req for req in self._in_order() if id(req) in present]
            if len(known) == len(queue):
                queue[:] = known
                return
            present.difference_update(map(id, known))
            rest = [req for req in queue if id(req) in present]
            queue[:] = known + rest
            for req in rest:  # they came while no program was there
                self._table.enqueue(req)

    def _in_order(self) -> list[Any]:
        """Every request that waits, those beyond the needed ones last."""
        self._rank()
        requests: list[Any] = []
        late: list[Any] = []
        for entry in self._ranked:
            if entry.late:
                for rid, req in entry.waiting.items():
                    (late if rid in entry.late else requests).append(req)
            else:
                requests += entry.waiting.values()
        return requests + late

    def _rank(self) -> None:
        """Key the programs that changed; the others are in order already."""
        changed = self._table.changed
        ranked = [entry for entry in self._ranked if entry.arrival not in changed]
        for entry in changed.values():
            if entry.waiting:
                self._key(entry)
                ranked.append(entry)
        ranked.sort(key=attrgetter("order_key"))
        self._ranked = ranked
        changed.clear()

    def _key(self, entry: ProgramEntry) -> None:
        if entry.escalate_at is None:
            assert entry.waiting_since is not None
            need = max(1.0, self._table.remaining_tokens(entry))
            entry.escalate_at = entry.waiting_since + self._factor * need
            self._pushes += 1
            heapq.heappush(self._patience, (entry.escalate_at, self._pushes, entry))
        if entry.escalated:
            entry.order_key = (_ESCALATED, entry.escalate_at, entry.arrival)
        else:
            entry.order_key = (_ORDINARY, *self._policy_key(self._table, entry), entry.arrival)
        entry.late = frozenset(rid for rid in entry.surplus() if rid in entry.waiting)

    def _escalate(self) -> None:
        while self._patience and self._patience[0][0] <= self._table.progress:
            escalate_at, _, entry = heapq.heappop(self._patience)
            # A program that was served meanwhile waits by another entry of the heap.
            if entry.waiting and entry.escalate_at == escalate_at:
                entry.escalated = True
                self._table.changed[entry.arrival] = entry
