"""Which requests belong to which program, and what each program still needs. Pure bookkeeping.

The truth about programs on the scheduler's side. Keys are (tenant, program_id): two tenants may
use the same id and never meet. All time is engine progress in tokens, never a clock: every
tensor-parallel rank keeps the same table.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from sglang_dynasor.scheduling.cost import TokenPrior, own_mean
from sglang_dynasor.scheduling.program_entry import (
    PLAIN,
    EndedProgram,
    ProgramEntry,
    ProgramKey,
    WaitingRequest,
)

# Programs without a request that are remembered: a client's loop comes back under the same id.
REMEMBERED_PROGRAMS = 4096
DEFAULT_MAX_OFFERED = 4096
# A running branch is never taken to be nearer its end than this share of the mean.
_LEAST_LEFT = 0.1


class ProgramTable:
    """Programs with live requests, programs that are being ended, and plain requests that wait.

    `changed` holds the entries whose place in the order may be another than before; the order
    takes them out. `step` counts forward passes, `progress` the tokens they computed; `offered`
    branches wait to be drawn, over all programs.
    """

    def __init__(self, max_offered: int = DEFAULT_MAX_OFFERED, hold_tokens: int = 0) -> None:
        """`max_offered` bounds the offered branches that are remembered, over all programs.

        Requests whose prompts begin with the same `hold_tokens` tokens are prefilled one before
        the others; 0: together.
        """
        self.prior = TokenPrior()
        self.offered = 0
        self.changed: dict[int, ProgramEntry] = {}  # by arrival
        self.step = 0
        self.progress = 0
        self._programs: dict[ProgramKey, ProgramEntry] = {}
        self._remembered: OrderedDict[ProgramKey, ProgramEntry] = OrderedDict()
        self._plain: dict[str, ProgramEntry] = {}
        self._program_of: dict[str, ProgramEntry] = {}
        self._offering: dict[int, ProgramEntry] = {}  # by arrival, as the next two
        self._surplus: dict[int, ProgramEntry] = {}
        self._cold: dict[int, ProgramEntry] = {}
        self._ending: list[EndedProgram] = []
        self._arrivals = 0
        self._max_offered = max_offered
        self._hold_tokens = hold_tokens

    def __len__(self) -> int:
        return len(self._programs)

    def __bool__(self) -> bool:
        """Whether anything is here to be followed, plain requests that wait included."""
        return bool(self._programs or self._plain)

    def __contains__(self, rid: str) -> bool:
        return rid in self._program_of

    @property
    def num_requests(self) -> int:
        return len(self._program_of)

    def offering(self) -> Iterable[ProgramEntry]:
        """Programs with offers, or with draws underway."""
        return self._offering.values()

    def with_surplus(self) -> Iterable[ProgramEntry]:
        """Programs with more branches in flight than they need now."""
        return self._surplus.values()

    def held(self) -> set[str]:
        """Requests that wait until a sibling has prefilled the prompt they share."""
        rids: set[str] = set()
        for entry in self._cold.values():
            waiting = [rid for rid in entry.waiting if rid in entry.alike]
            # What runs is being prefilled. Else the first that waits goes, the rest waits for it.
            rids.update(waiting if entry.running else waiting[1:])
        return rids

    def cache_prompt(self, rid: str) -> None:
        """A request has been prefilled: its siblings find their prompt in the cache."""
        entry = self._program_of.get(rid)
        if entry is not None:
            entry.prompt_cached = True
            self._cold.pop(entry.arrival, None)

    def next_arrival(self) -> int:
        """A number for the next to arrive, program or plain request."""
        self._arrivals += 1
        return self._arrivals

    def open(
        self, key: ProgramKey, branch_class: str, prompt_tokens: int, max_branches: int
    ) -> ProgramEntry:
        """Announce a program the engine runs: it stays, without requests too, until it is ended.

        Announced again it is the same program.
        """
        self._remembered.pop(key, None)
        entry = self._entry(key, branch_class, prompt_tokens)
        entry.opened = True
        entry.max_branches = max_branches
        return entry

    def add(
        self,
        key: ProgramKey,
        rid: str,
        *,
        branch_class: str = PLAIN,
        prompt_ids: Sequence[int] = (),
        max_branches: int = 0,
    ) -> ProgramEntry:
        """Register a request; its program appears with the first one."""
        entry = self._programs.get(key)
        if entry is None:
            entry = self._entry(key, branch_class, len(prompt_ids))
        entry.max_branches = max_branches or entry.max_branches
        is_long = 0 < self._hold_tokens <= len(prompt_ids)
        head = tuple(prompt_ids[: self._hold_tokens]) if is_long else ()
        if not entry.rids:
            entry.prompt_head = head
        if head and head == entry.prompt_head:
            entry.alike.add(rid)
        entry.rids[rid] = None
        self._program_of[rid] = entry
        self._change(entry)
        return entry

    def report(
        self,
        key: ProgramKey,
        *,
        certaindex: float,
        needed: int | None,
        worth: float,
        values: Sequence[float],
        draws_seen: int,
    ) -> None:
        """Take what a program knows of itself (see `ProgramEntry`); nothing for an ended one."""
        entry = self._programs.get(key)
        if entry is None:
            return
        entry.certaindex = certaindex
        entry.needed = needed
        entry.worth = worth
        entry.draws_seen = draws_seen
        room = self._max_offered - self.offered + len(entry.values)
        self._set_offers(entry, values[entry.underway :][: max(0, room)])

    def program_of(self, rid: str) -> ProgramEntry | None:
        return self._program_of.get(rid)

    def enqueue(self, request: WaitingRequest) -> None:
        """A request waits: it is new, or it was retracted. A plain one is followed from here on."""
        rid = request.rid
        entry = self._program_of.get(rid) or self._plain.get(rid)
        if entry is None:
            tokens = len(request.origin_input_ids)
            entry = ProgramEntry(ProgramKey("", rid), request.arrival, tokens)
            entry.rids[rid] = None
            self._plain[rid] = entry
        entry.running.pop(rid, None)
        entry.waiting[rid] = request
        if entry.waiting_since is None:
            entry.waiting_since, entry.escalate_at = self.progress, None
        self._change(entry)

    def admit(self, rid: str) -> None:
        """A request leaves the waiting queue for the running batch."""
        plain = self._plain.pop(rid, None)
        if plain is not None:
            self._drop(plain)
            return
        entry = self._program_of.get(rid)
        if entry is None or rid not in entry.waiting:
            return
        entry.waiting.pop(rid, None)
        entry.running[rid] = self.step
        if not entry.waiting:
            entry.end_wait()
        elif not entry.escalated:  # the program has just been served: its wait starts anew
            entry.waiting_since, entry.escalate_at = self.progress, None
        self._change(entry)

    def advance(self, tokens: int) -> None:
        """A forward pass has computed `tokens` tokens."""
        self.step += 1
        self.progress += tokens

    def learn_plain(self, prompt_tokens: int, tokens: int) -> None:
        """A request without a program has finished."""
        self.prior.add(PLAIN, prompt_tokens, tokens)

    def is_late(self, rid: str) -> bool:
        """Whether a waiting request is beyond what its program needs now."""
        entry = self._program_of.get(rid)
        return entry is not None and rid in entry.late

    def rids(self, key: ProgramKey) -> frozenset[str]:
        """Requests of a program, empty when it has none."""
        entry = self._programs.get(key)
        return frozenset(entry.rids) if entry else frozenset()

    def all_rids(self) -> list[str]:
        return [*self._program_of, *self._plain]

    def retire(self, rid: str, tokens: int, completed: bool = False) -> None:
        """A request is gone, having generated `tokens`; `completed`: it ended by itself.

        Its program goes with the last one, unless it was opened.
        """
        plain = self._plain.pop(rid, None)
        if plain is not None:
            self._drop(plain)
        entry = self._program_of.pop(rid, None)
        if entry is None:
            return
        del entry.rids[rid]
        entry.alike.discard(rid)
        entry.waiting.pop(rid, None)
        entry.running.pop(rid, None)
        if not entry.waiting:
            entry.end_wait()
        entry.served_tokens += tokens
        if completed:
            entry.finished += 1
            entry.finished_tokens += tokens
            self.prior.add(entry.branch_class, entry.prompt_tokens, tokens)
        if not entry.rids and not entry.opened:
            self._forget(entry)
        else:
            self._change(entry)
        for ended in self._ending:
            if rid in ended.draining:
                ended.draining.discard(rid)
                ended.tokens[rid] = tokens

    def end(self, key: ProgramKey, message_id: str, tokens_now: dict[str, int]) -> None:
        """Start to end a program; `tokens_now` counts what each of its live requests generated."""
        entry = self._programs.get(key)
        if entry is not None:
            entry.opened = False
            entry.draws_seen = entry.drawn
            self._set_offers(entry, ())
            if not entry.rids:
                self._forget(entry)
        self._ending.append(EndedProgram(key, message_id, set(self.rids(key)), tokens_now))

    def pop_ended(self) -> list[EndedProgram]:
        """Programs whose last branch has drained since the last call, in the order they ended."""
        if not self._ending:
            return []
        done = [ended for ended in self._ending if not ended.draining]
        self._ending = [ended for ended in self._ending if ended.draining]
        return done

    def give_up(self, rid: str) -> None:
        """A running request that is not needed is being cancelled: it is not to be chosen again."""
        entry = self._program_of.get(rid)
        if entry is not None:
            entry.running.pop(rid, None)

    def withdraw_offers(self) -> None:
        """Forget every offer, as on an abort of all requests."""
        for entry in list(self._offering.values()):
            self._set_offers(entry, ())

    def draw(self, entry: ProgramEntry) -> None:
        """Note that the first offer of a program has been drawn."""
        entry.drawn += 1
        self._set_offers(entry, entry.values[1:])

    def branch_tokens(self, entry: ProgramEntry) -> float:
        """Expected tokens of the next branch: the program's own mean, shrunk toward the prior."""
        prior = self.prior.tokens(entry.branch_class, entry.prompt_tokens)
        return own_mean(entry.finished, entry.finished_tokens, prior)

    def remaining_tokens(self, entry: ProgramEntry) -> float:
        """Expected work until the program is done, tokens (paper: remaining knob x mean tokens).

        Waiting branches in full, running ones less what they have generated, and branches not
        sent yet in the measure in which the program is uncertain: a nearly certain one is nearly
        done.
        """
        mean = self.branch_tokens(entry)
        steps = self.step * len(entry.running) - sum(entry.running.values())
        left = max(mean * len(entry.running) - steps, _LEAST_LEFT * mean * len(entry.running))
        unsent = max(0, entry.max_branches - entry.finished - entry.in_flight)
        return mean * (len(entry.waiting) + unsent * (1 - entry.certaindex)) + left

    def _entry(self, key: ProgramKey, branch_class: str, prompt_tokens: int) -> ProgramEntry:
        entry = self._programs.get(key) or self._remembered.pop(key, None)
        if entry is None:
            entry = ProgramEntry(key, self.next_arrival(), prompt_tokens, branch_class)
        self._programs[key] = entry
        return entry

    def _forget(self, entry: ProgramEntry) -> None:
        self._programs.pop(entry.key, None)
        entry.certaindex, entry.needed, entry.worth = 0.0, None, 1.0
        entry.prompt_head = ()
        entry.drawn = entry.draws_seen = 0
        self._set_offers(entry, ())
        self._drop(entry)
        self._remembered[entry.key] = entry
        if len(self._remembered) > REMEMBERED_PROGRAMS:
            self._remembered.popitem(last=False)

    def _set_offers(self, entry: ProgramEntry, values: Sequence[float]) -> None:
        self.offered += len(values) - len(entry.values)
        entry.values = values
        self._change(entry)

    def _change(self, entry: ProgramEntry) -> None:
        self.changed[entry.arrival] = entry
        _keep(self._offering, entry, bool(entry.values or entry.underway))
        _keep(self._surplus, entry, entry.needed is not None and entry.in_flight > entry.needed)
        cold = len(entry.alike) > 1 and bool(entry.waiting) and not entry.prompt_cached
        _keep(self._cold, entry, cold)

    def _drop(self, entry: ProgramEntry) -> None:
        entry.waiting.clear()
        entry.end_wait()
        self._change(entry)


def _keep(entries: dict[int, ProgramEntry], entry: ProgramEntry, wanted: bool) -> None:
    if wanted:
        entries[entry.arrival] = entry
    else:
        entries.pop(entry.arrival, None)
