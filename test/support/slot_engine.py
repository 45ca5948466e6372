"""An engine of a few slots, without model or clock: the real table and order decide who runs.

Each step admits from the head of the queue while slots are free, and every running request
generates one token. A request ends after a number of tokens that was fixed beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sglang_dynasor.scheduling import ProgramKey, ProgramOrder, ProgramTable


@dataclass
class FakeRequest:
    rid: str
    length: int = 1
    arrival: int = 0
    origin_input_ids: list[int] = field(default_factory=lambda: [1] * 8)
    generated: int = 0


class SlotEngine:
    """`policy` None keeps the queue as it came."""

    def __init__(
        self, slots: int, policy: str | None = "gang-sjf", starvation_factor: float = 1e9
    ) -> None:
        self.table = ProgramTable()
        self.order = policy and ProgramOrder(self.table, policy, starvation_factor)
        self.queue: list[FakeRequest] = []
        self.running: list[FakeRequest] = []
        self.slots = slots
        self.steps = 0
        self.admitted: list[str] = []
        self.finished_at: dict[str, int] = {}

    def send(self, program: str | None, lengths: list[int], max_branches: int = 0) -> list[str]:
        """Requests of a program, or plain ones, each of so many tokens; returns their ids."""
        rids = []
        for length in lengths:
            arrival = self.table.next_arrival()
            rid = f"{program or 'plain'}::{arrival}"
            if program is not None:
                self.table.add(ProgramKey("", program), rid, max_branches=max_branches)
            request = FakeRequest(rid, length, arrival)
            self.table.enqueue(request)
            self.queue.append(request)
            rids.append(rid)
        return rids

    def step(self) -> None:
        if self.order:
            self.order.sort(self.queue)
        while self.queue and len(self.running) < self.slots:
            request = self.queue.pop(0)
            self.table.admit(request.rid)
            self.admitted.append(request.rid)
            self.running.append(request)
        self.steps += 1
        self.table.advance(len(self.running))
        for request in list(self.running):
            request.generated += 1
            if request.generated == request.length:
                self.running.remove(request)
                self.finished_at[request.rid] = self.steps
                self.table.retire(request.rid, request.length, completed=True)

    def drain(self) -> None:
        while self.queue or self.running:
            self.step()

    def end_of(self, rids: list[str]) -> int:
        return max(self.finished_at[rid] for rid in rids)
