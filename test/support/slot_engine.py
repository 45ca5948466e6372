"""An engine of a few slots, without model or clock: the real ProgramScheduler decides who runs.

Each step admits from the head of the queue while slots are free, and every running request
generates one token. A request ends after a number of tokens that was fixed beforehand; the step
after that shows its row once more, as the overlap schedule does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sglang_dynasor.scheduling import Directives, Load, ProgramKey, ProgramScheduler


@dataclass(eq=False)
class FakeRequest:
    rid: str
    length: int = 1
    origin_input_ids: list[int] = field(default_factory=lambda: [1] * 8)
    output_ids: list[int] = field(default_factory=list)
    cancelled: bool = False

    @property
    def finished(self) -> bool:
        return self.cancelled or len(self.output_ids) >= self.length


class SlotEngine:
    """`policy` None keeps the queue as it came; `settings` are ProgramScheduler's others."""

    def __init__(
        self,
        slots: int,
        policy: str | None = "gang-sjf",
        starvation_factor: float = 1e9,
        **settings: Any,
    ) -> None:
        self.programs = ProgramScheduler(policy, starvation_factor=starvation_factor, **settings)
        self.queue: list[FakeRequest] = []
        self.running: list[FakeRequest] = []
        self.slots = slots
        self.steps = 0
        self.sent = 0
        self.admitted: list[str] = []
        self.cancelled: list[str] = []
        self.finished_at: dict[str, int] = {}
        self._shown_again: list[FakeRequest] = []

    def send(
        self, program: str | None, lengths: list[int], expected: int = 0, prompt: int = 8
    ) -> list[FakeRequest]:
        """Requests of a program, or plain ones, each of so many tokens."""
        requests = []
        for length in lengths:
            self.sent += 1
            rid = f"{program or 'plain'}::{self.sent}"
            request = FakeRequest(rid, length, [1] * prompt)
            key = None if program is None else ProgramKey("", program)
            self.programs.arrived(request, key, expected)
            self.programs.queued(request)
            self.queue.append(request)
            requests.append(request)
        return requests

    def order(self) -> list[str]:
        """The programs of the waiting queue, sorted."""
        self.programs.order(self.queue)
        return [request.rid.split("::")[0] for request in self.queue]

    def step(self) -> Directives:
        directives = self._admit()
        self.end(directives.cancel)
        self.steps += 1
        rows = [*self.running, *self._shown_again]
        self._shown_again = []
        self.programs.advance(len(self.running))
        for request in rows:
            if not request.finished:
                request.output_ids.append(7)
            if not request.finished:
                self.programs.prefilled(request)
            else:
                self._finish(request)
        return directives

    def end(self, requests: list[Any]) -> None:
        """Cancel requests: those that wait vanish, running ones show up once more."""
        for request in requests:
            self.cancelled.append(request.rid)
            request.cancelled = True
            if request in self.queue:
                self.queue.remove(request)
                self.programs.gone(request)

    def drain(self) -> None:
        while self.queue or self.running or self._shown_again:
            self.step()

    def end_of(self, requests: list[FakeRequest]) -> int:
        return max(self.finished_at[request.rid] for request in requests)

    def _admit(self) -> Directives:
        self.programs.order(self.queue)
        self.programs.hold(self.queue)
        new = self.queue[: max(0, self.slots - len(self.running))]
        del self.queue[: len(new)]
        self.programs.release(self.queue)
        self.running += new
        self.admitted += [request.rid for request in new]
        self.programs.admitted(self.running)
        is_full = len(self.running) >= self.slots
        return self.programs.after_pass(Load(len(self.running), len(self.queue), is_full))

    def _finish(self, request: FakeRequest) -> None:
        if request in self.running:
            self.running.remove(request)
            self._shown_again.append(request)
            self.finished_at[request.rid] = self.steps
        self.programs.finished(request, completed=not request.cancelled)
