"""The life of programs on the scheduler's side: order, holds, room, draws, ends and learning.

Whoever has an engine translates: what happens to a request is told here, in any engine and in any
simulator alike, and what follows from it is returned. Everything can be told twice; nothing is kept
of what has gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.scheduling.holds import PrefixHolds
from sglang_dynasor.scheduling.offers import Offers
from sglang_dynasor.scheduling.order import ProgramOrder
from sglang_dynasor.scheduling.probe_schedule import ProbeSchedule
from sglang_dynasor.scheduling.program_entry import (
    NO_DEMAND,
    EndedProgram,
    ProgramEntry,
    ProgramKey,
    Request,
)
from sglang_dynasor.scheduling.program_table import ProgramTable
from sglang_dynasor.scheduling.room import Load, Room

DEFAULT_MAX_OFFERED = 4096
DEFAULT_STARVATION_FACTOR = 32.0


@dataclass(frozen=True, slots=True)
class Directives:
    """What the engine is to do: end these requests, ask these programs for so many offers."""

    cancel: list[Any] = field(default_factory=list)
    draws: list[tuple[ProgramKey, int]] = field(default_factory=list)


class ProgramScheduler:
    """Follows every request from the queue to its end and decides for the programs among them."""

    def __init__(
        self,
        policy: str | None,
        *,
        starvation_factor: float = DEFAULT_STARVATION_FACTOR,
        speculative_places: int = 0,
        max_offered: int = DEFAULT_MAX_OFFERED,
        hold_tokens: int = 0,
        page_size: int = 1,
        places: int = 0,
    ) -> None:
        """`policy` is one of `POLICY_KEYS`, or None to keep the engine's own order.

        Offers are drawn while nothing waits and fewer than `speculative_places` requests run;
        `places` is how many may run at all.
        """
        self.probes = ProbeSchedule(places)
        self.table = ProgramTable()
        self._order = ProgramOrder(self.table, policy, starvation_factor) if policy else None
        self._holds = PrefixHolds(hold_tokens)
        self._offers = Offers(self.table, max_offered)
        self._places = speculative_places
        self._room = Room(page_size)
        self._cancelled_again: dict[Request, None] = {}
        self._answers: list[EndedProgram] = []
        self._whole_queue: list[Request] = []  # of this pass, where some are held
        self._ordered = False  # whether the queue stands in our order

    def __bool__(self) -> bool:
        """Whether any program is there."""
        return len(self.table) > 0

    def __contains__(self, req: Request) -> bool:
        return req in self.table

    @property
    def orders(self) -> bool:
        """Whether the waiting queue is ordered here; else the engine's own order stands."""
        return self._order is not None and len(self.table) > 0

    @property
    def offered(self) -> int:
        return self._offers.offered

    # The life of a request.

    def arrived(self, req: Request, key: ProgramKey | None, expected: int = 0) -> None:
        """The engine has accepted a request of program `key`, or a plain one (None).

        `expected` is how many requests a client said its program will send.
        """
        if req not in self.table:
            entry = self.table.arrive(req, key, expected)
            if key is not None:
                self._holds.arrive(entry, req)
            self._update(entry)

    def queued(self, req: Request) -> None:
        """A request waits in the queue: it is new, or has been retracted."""
        entry = self.table.wait(req)
        if entry is not None:
            if req in entry.leaving:
                self._cancelled_again[req] = None
            self._holds.wait(entry, req)
            self._update(entry)

    def prefilled(self, req: Request) -> None:
        """The prompt of a request is in the cache."""
        entry = self.table.entry_of(req)
        if entry is not None:
            self._holds.prefilled(entry, req)

    def finished(self, req: Request, completed: bool) -> None:
        """A request has ended; `completed`: by itself, so that its length can be learnt.

        Plain requests are learnt from while programs are there.
        """
        entry = self.table.entry_of(req)
        if entry is not None and completed and (entry.key is not None or self):
            self._holds.prefilled(entry, req)
            self.table.learn(entry, len(req.output_ids))
        self.gone(req)

    def gone(self, req: Request) -> None:
        """A request has left: refused, aborted or finished."""
        entry = self.table.leave(req)
        if entry is None:
            return
        self.probes.forget(req)
        self._holds.leave(entry, req)
        self._cancelled_again.pop(req, None)
        for ended in [ended for ended in entry.ends if req in ended.draining]:
            ended.draining.discard(req)
            ended.tokens[req.rid] = len(req.output_ids)
            self._answer_if_drained(entry, ended)
        self._update(entry)

    # The messages of a program.

    def demand(
        self, key: ProgramKey, demand: Demand, *, kind: str, prompt_tokens: int, draws_seen: int
    ) -> None:
        """Take what a program the engine runs needs now; the first one announces it.

        `draws_seen` is how many draws had reached the program when it said so.
        """
        entry = self.table.open(key, kind, prompt_tokens)
        entry.demand = demand
        self._offers.take(entry, demand.values, draws_seen)
        self._update(entry)

    def named(self, key: ProgramKey, rids: Collection[str]) -> list[Any]:
        """The requests of a program with these ids, those that are there."""
        entry = self.table.find(key)
        if entry is None:
            return []
        wanted = set(rids)
        return [req for req in entry.requests if req.rid in wanted]

    def cancel(self, key: ProgramKey, rids: Collection[str]) -> list[Any]:
        """Return those of a program's requests that are to be ended."""
        return self._cancel(self.named(key, rids))

    def end(self, key: ProgramKey, message_id: str, is_paused: bool = False) -> list[Any]:
        """Start to end a program and return its requests, which are to be ended.

        The answer follows with the last of them. A paused engine drains nothing: it answers at once
        with the tokens known now.
        """
        entry = self.table.find(key)
        requests = list(entry.requests) if entry else []
        tokens = {req.rid: len(req.output_ids) for req in requests}
        ended = EndedProgram(key, message_id, set(requests), tokens)
        if entry is None:
            self._answers.append(ended)
            return []
        entry.open, entry.ended, entry.demand = False, True, NO_DEMAND
        self._offers.forget(entry)
        entry.ends.append(ended)
        self._answer_if_drained(entry, ended, is_paused)
        self.table.drop_if_over(entry)
        self._cancel(requests)
        self._update(entry)
        return requests

    def paused(self) -> None:
        """The engine drains nothing from now on: programs being ended are answered as they are."""
        for entry in self.table.programs():
            for ended in list(entry.ends):
                self._answer_if_drained(entry, ended, is_paused=True)

    def withdraw_offers(self) -> None:
        """Forget every offer, as on an abort of all requests."""
        self._offers.withdraw()

    def answers(self) -> list[EndedProgram]:
        """Programs that have ended since the last call."""
        answers, self._answers = self._answers, []
        return answers

    # The steps of the engine.

    def order(self, queue: list[Any]) -> bool:
        """Sort the waiting queue in place; False where the engine's own order stands.

        Once the last program has gone the queue is again as it came.
        """
        if self._order is not None and self:
            if not self._order.follows_all:  # some came while no program was there
                self._order.follow(filter(None, map(self.table.entry_of, queue)))
            self._order.sort(queue)
        elif self._ordered:
            queue.sort(key=self.table.turn)
        self._ordered = self.orders
        return self._ordered

    def hold(self, queue: list[Any]) -> None:
        """Take out of `queue` the siblings that wait for a prefill, until `release`."""
        held = self._holds.held
        if held:
            self._whole_queue = list(queue)
            queue[:] = [req for req in queue if req not in held]

    def release(self, queue: list[Any]) -> None:
        """Put the held siblings back into their places; what came meanwhile is last."""
        if not self._whole_queue:
            return
        whole, self._whole_queue = self._whole_queue, []
        present = self._holds.held.union(queue)
        before = set(whole)
        late = [req for req in queue if req not in before]
        queue[:] = [req for req in whole if req in present] + late

    def admitted(self, requests: Iterable[Request]) -> None:
        """Requests of this pass's batch; those that ran before change nothing."""
        for req in requests:
            entry = self.table.admit(req)
            if entry is not None:
                self._update(entry)

    def advance(self, tokens: int) -> None:
        """A forward pass has computed `tokens` tokens."""
        self.table.advance(tokens)

    def after_pass(self, load: Load) -> Directives:
        """Decide what makes room, or fills it, after an admission pass."""
        surplus = self._room.give_up(load, self._holds.held, self.table.num_leaving)
        cancel = [*self._cancelled_again, *self._cancel(surplus)]
        self._cancelled_again.clear()
        draws = [] if load.waiting else self._offers.draw(self._places - load.running)
        return Directives(cancel, draws)

    def _cancel(self, requests: Iterable[Request]) -> list[Any]:
        """Note that these are to be ended: none of them is chosen again."""
        cancelled = []
        for req in requests:
            entry = self.table.cancel(req)
            if entry is not None:
                self.probes.forget(req)
                cancelled.append(req)
                self._update(entry)
        return cancelled

    def _answer_if_drained(
        self, entry: ProgramEntry, ended: EndedProgram, is_paused: bool = False
    ) -> None:
        if is_paused:
            ended.tokens |= {req.rid: len(req.output_ids) for req in ended.draining}
            ended.draining.clear()
        if not ended.draining:
            entry.ends.remove(ended)
            self._answers.append(ended)

    def _update(self, entry: ProgramEntry) -> None:
        """Let everything know that `entry` has changed."""
        if self._order is not None:
            self._order.update(entry)
            if not self:
                self._order.clear()
        self._room.update(entry)
