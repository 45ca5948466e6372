"""The order of the waiting queue: programs are ranked, their requests follow (DESIGN section 8).

Escalated programs come first, in the order in which their patience ended; then the policy's own:

- gang: programs that already run, then by arrival (the paper's and Parrot's App-FIFO);
- gang-sjf: programs that already run, then the least expected remaining work;
- value: the least expected remaining work per worth. Where all are worth the same that is shortest
  first, and where all cost the same too, the order of arrival, each gang together.

Requests beyond those their program needs now come after all others, by the same order. Everything
is counted in tokens of engine progress, so every tensor-parallel rank comes to the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TypeAlias

from sglang_dynasor.scheduling.program_entry import ProgramEntry, Request
from sglang_dynasor.scheduling.program_table import ProgramTable

PolicyKey: TypeAlias = Callable[[ProgramTable, ProgramEntry], tuple[float, ...]]

_LEAST_WORTH = 1e-6
_ESCALATED, _ORDINARY = range(2)


def _gang(table: ProgramTable, entry: ProgramEntry) -> tuple[float, ...]:
    return (not entry.started,)


def _gang_sjf(table: ProgramTable, entry: ProgramEntry) -> tuple[float, ...]:
    return (not entry.started, table.remaining_tokens(entry))


def _value(table: ProgramTable, entry: ProgramEntry) -> tuple[float, ...]:
    return (table.remaining_tokens(entry) / max(entry.demand.worth, _LEAST_WORTH),)


POLICY_KEYS: dict[str, PolicyKey] = {"gang": _gang, "gang-sjf": _gang_sjf, "value": _value}


class ProgramOrder:
    """Keeps programs with waiting requests ranked; only those that changed are keyed again.

    A program is escalated once the engine has computed, since its wait began, the work of all that
    were there then and `starvation_factor` tokens for each token of the program's own: nobody waits
    much longer than in the order of arrival, and however long the queue, the policy decides within
    that. It stays escalated until nothing of it waits.
    """

    def __init__(self, table: ProgramTable, policy: str, starvation_factor: float) -> None:
        self._table = table
        self._policy_key = POLICY_KEYS[policy]
        self._factor = starvation_factor
        self._ranked: dict[int, ProgramEntry] = {}  # those that wait, by arrival, ranked last time
        self._changed: dict[int, ProgramEntry] = {}  # of these, the ones to key anew
        self._next_escalation = math.inf  # no entry is due before this progress
        self._backlog = 0.0  # expected tokens of all that are there, each as it first waited
        self.follows_all = False  # whether every request that waits has been told of

    def update(self, entry: ProgramEntry) -> None:
        """The place of `entry` may be another than before; one that waits for nothing has none."""
        if entry.waiting:
            self._ranked[entry.arrival] = self._changed[entry.arrival] = entry
        else:
            self._ranked.pop(entry.arrival, None)
            self._changed.pop(entry.arrival, None)
        if entry.is_over:
            self._backlog -= entry.need
            entry.need = 0.0

    def follow(self, entries: Iterable[ProgramEntry]) -> None:
        """Take up everything that waits; what comes later is told by `update`."""
        for entry in entries:
            self.update(entry)
        self.follows_all = True

    def clear(self) -> None:
        """Follow nothing any more; patience starts anew with the next program."""
        for entry in self._ranked.values():
            entry.escalate_at, entry.escalated = None, False
        self._ranked.clear()
        self._changed.clear()
        self._next_escalation = math.inf
        self.follows_all = False

    def sort(self, queue: list[Request]) -> None:
        """Sort `queue` in place; no work at all where nothing has changed.

        Requests that are not followed, or follow nothing, come last in the order they had.
        """
        self._escalate()
        if not self._changed:
            return
        present = set(queue)
        ordered = [req for req in self._in_order() if req in present]
        if len(ordered) < len(queue):
            present.difference_update(ordered)
            ordered += [req for req in queue if req in present]
        queue[:] = ordered

    def _in_order(self) -> list[Request]:
        """Every request that waits, those beyond the needed ones last."""
        for entry in self._changed.values():
            self._key(entry)
        self._changed.clear()
        ranked = sorted(self._ranked.values(), key=attrgetter("order_key"))
        self._ranked = {entry.arrival: entry for entry in ranked}
        requests: list[Request] = []
        late: list[Request] = []
        for entry in ranked:
            if entry.late:
                for req in entry.waiting:
                    (late if req in entry.late else requests).append(req)
            else:
                requests += entry.waiting
        return requests + late

    def _key(self, entry: ProgramEntry) -> None:
        if entry.escalate_at is None:
            assert entry.waiting_since is not None
            need = max(1.0, self._table.remaining_tokens(entry))
            others = self._backlog - entry.need
            if not entry.need:
                entry.need = need
                self._backlog += need
            entry.escalate_at = entry.waiting_since + others + self._factor * need
            self._next_escalation = min(self._next_escalation, entry.escalate_at)
        if entry.escalated:
            entry.order_key = (_ESCALATED, entry.escalate_at, entry.arrival)
        else:
            entry.order_key = (_ORDINARY, *self._policy_key(self._table, entry), entry.arrival)
        entry.late = frozenset(req for req in entry.surplus() if req in entry.waiting)

    def _escalate(self) -> None:
        if self._table.progress < self._next_escalation:
            return
        self._next_escalation = math.inf
        for entry in self._ranked.values():
            if entry.escalated or entry.escalate_at is None:
                continue
            if entry.escalate_at <= self._table.progress:
                entry.escalated = True
                self._changed[entry.arrival] = entry
            else:
                self._next_escalation = min(self._next_escalation, entry.escalate_at)
