"""Which requests belong to which program, and how much work each program has left.

The truth about programs on the scheduler's side. Keys are (tenant, program_id): two tenants may
use the same id and never meet. All time is engine progress in tokens, never a clock: every
tensor-parallel rank keeps the same table.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from sglang_dynasor.scheduling.cost import TokenPrior, own_mean
from sglang_dynasor.scheduling.program_entry import (
    CLIENT,
    PLAIN,
    ProgramEntry,
    ProgramKey,
    Request,
)

# Programs without a request that are remembered: a client's loop comes back under the same id.
REMEMBERED_PROGRAMS = 4096
# A running request is never taken to be nearer its end than this share of the mean.
_LEAST_LEFT = 0.1


class _Remembered(NamedTuple):
    """What is kept of a client's program that has no request now."""

    arrival: int
    prompt_tokens: int
    finished: int
    finished_tokens: int
    expected: int


class ProgramTable:
    """Programs that are there, and plain requests; a program without requests goes unless open.

    `step` counts forward passes, `progress` the tokens they computed.
    """

    def __init__(self) -> None:
        self.prior = TokenPrior()
        self.step = 0
        self.progress = 0
        self.num_requests = 0  # of programs
        self.num_leaving = 0  # of these, the cancelled ones
        self._programs: dict[ProgramKey, ProgramEntry] = {}
        self._remembered: OrderedDict[ProgramKey, _Remembered] = OrderedDict()
        self._entry_of: dict[Request, ProgramEntry] = {}
        self._arrivals = 0
        self._queued = 0

    def __len__(self) -> int:
        """Programs, without the plain requests."""
        return len(self._programs)

    def __contains__(self, req: Request) -> bool:
        return req in self._entry_of

    def programs(self) -> Iterable[ProgramEntry]:
        return self._programs.values()

    def find(self, key: ProgramKey) -> ProgramEntry | None:
        return self._programs.get(key)

    def entry_of(self, req: Request) -> ProgramEntry | None:
        return self._entry_of.get(req)

    def runs(self, req: Request) -> bool:
        entry = self._entry_of.get(req)
        return entry is not None and req in entry.running

    def turn(self, req: Request) -> int:
        """The turn of a waiting request, had each gone as it came."""
        entry = self._entry_of.get(req)
        return entry.waiting.get(req, 0) if entry else 0

    def open(self, key: ProgramKey, kind: str, prompt_tokens: int) -> ProgramEntry:
        """Announce a program the engine runs; announced again it is the same program."""
        entry = self._entry(key, kind, prompt_tokens)
        entry.open, entry.kind, entry.prompt_tokens = True, kind, prompt_tokens
        return entry

    def arrive(self, req: Request, key: ProgramKey | None, expected: int = 0) -> ProgramEntry:
        """Register a request; its program appears with the first one."""
        tokens = len(req.origin_input_ids)
        if key is None:
            entry = ProgramEntry(None, self._next_arrival(), tokens, PLAIN)
        else:
            entry = self._entry(key, CLIENT, tokens)
            entry.expected = expected or entry.expected
            self.num_requests += 1
        entry.requests[req] = None
        self._entry_of[req] = entry
        return entry

    def wait(self, req: Request) -> ProgramEntry | None:
        """A request waits: it is new, or it was retracted. None for one that is not here."""
        entry = self._entry_of.get(req)
        if entry is None:
            return None
        entry.running.pop(req, None)
        self._queued += 1
        entry.waiting[req] = self._queued
        if entry.waiting_since is None:
            entry.waiting_since, entry.escalate_at = self.progress, None
        return entry

    def admit(self, req: Request) -> ProgramEntry | None:
        """A request leaves the waiting queue for the running batch. None for one that ran."""
        entry = self._entry_of.get(req)
        if entry is None or req not in entry.waiting:
            return None
        del entry.waiting[req]
        entry.running[req] = self.step
        if not entry.waiting:
            entry.end_wait()
        elif not entry.escalated:  # the program has just been served: its wait starts anew
            entry.waiting_since, entry.escalate_at = self.progress, None
        return entry

    def cancel(self, req: Request) -> ProgramEntry | None:
        """A request has been asked to end. None for one that has gone."""
        entry = self._entry_of.get(req)
        if entry is not None and req not in entry.leaving:
            entry.leaving.add(req)
            self.num_leaving += 1
        return entry

    def leave(self, req: Request) -> ProgramEntry | None:
        """A request is gone, and its program with the last one. None for one that left before."""
        entry = self._entry_of.pop(req, None)
        if entry is None:
            return None
        del entry.requests[req]
        entry.running.pop(req, None)
        entry.waiting.pop(req, None)
        if not entry.waiting:
            entry.end_wait()
        if req in entry.leaving:
            entry.leaving.discard(req)
            self.num_leaving -= 1
        if entry.key is not None:
            self.num_requests -= 1
        self.drop_if_over(entry)
        return entry

    def drop_if_over(self, entry: ProgramEntry) -> None:
        """Let a program go that has no requests and is not open."""
        if entry.key is None or not entry.is_over:
            return
        del self._programs[entry.key]
        if not entry.ended:
            self._remembered[entry.key] = _Remembered(
                entry.arrival,
                entry.prompt_tokens,
                entry.finished,
                entry.finished_tokens,
                entry.expected,
            )
            if len(self._remembered) > REMEMBERED_PROGRAMS:
                self._remembered.popitem(last=False)

    def learn(self, entry: ProgramEntry, tokens: int) -> None:
        """A request of `entry` has ended by itself, having generated `tokens`."""
        entry.finished += 1
        entry.finished_tokens += tokens
        self.prior.add(entry.kind, entry.prompt_tokens, tokens)

    def advance(self, tokens: int) -> None:
        """A forward pass has computed `tokens` tokens."""
        self.step += 1
        self.progress += tokens

    def node_tokens(self, entry: ProgramEntry) -> float:
        """Expected tokens of the next request: the program's own mean, shrunk toward the prior."""
        prior = self.prior.tokens(entry.kind, entry.prompt_tokens)
        return own_mean(entry.finished, entry.finished_tokens, prior)

    def remaining_tokens(self, entry: ProgramEntry) -> float:
        """Expected work until the program is done, tokens (paper: remaining knob x mean tokens).

        Waiting requests in full, running ones less what they have generated, and those it is still
        expected to send.
        """
        mean = self.node_tokens(entry)
        steps = self.step * len(entry.running) - sum(entry.running.values())
        left = max(mean * len(entry.running) - steps, _LEAST_LEFT * mean * len(entry.running))
        return mean * (len(entry.waiting) + entry.further) + left

    def _entry(self, key: ProgramKey, kind: str, prompt_tokens: int) -> ProgramEntry:
        entry = self._programs.get(key)
        if entry is None:
            entry = self._programs[key] = self._new_entry(key, kind, prompt_tokens)
        entry.ended = False
        return entry

    def _new_entry(self, key: ProgramKey, kind: str, prompt_tokens: int) -> ProgramEntry:
        known = self._remembered.pop(key, None)
        if known is None:
            return ProgramEntry(key, self._next_arrival(), prompt_tokens, kind)
        return ProgramEntry(
            key,
            known.arrival,
            known.prompt_tokens,
            kind,
            finished=known.finished,
            finished_tokens=known.finished_tokens,
            expected=known.expected,
        )

    def _next_arrival(self) -> int:
        self._arrivals += 1
        return self._arrivals
