"""ProgramScheduler against a plain reference that recomputes everything from what was told.

The reference plays the engine: queues, chunked prefill, rows that are shown once more after their
end, retraction, refusals, pauses. It holds each request's state and nothing else.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from itertools import groupby
from types import FunctionType, ModuleType

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.scheduling import POLICY_KEYS, Load, ProgramKey, ProgramScheduler
from sglang_dynasor.scheduling.program_entry import ProgramEntry
from support.slot_engine import FakeRequest

KEYS = [ProgramKey(tenant, name) for tenant in ("", "t") for name in ("p", "q")]
POLICIES = [None, *POLICY_KEYS]
HOLD_TOKENS = 4
MAX_OFFERED = 12
PLACES = 6
LONG, OTHER, SHORT = [1] * 6, [2] * 6, [1] * 3


@dataclass(eq=False)
class Tracked(FakeRequest):
    """A request as the engine sees it."""

    key: ProgramKey | None = None
    state: str = "compiling"  # then waiting, running
    turn: int = 0


@dataclass
class Program:
    """What the reference knows of a program the engine runs."""

    needed: int | None = None
    offers: int = 0
    drawn: int = 0


@dataclass
class End:
    message_id: str
    draining: list[Tracked]
    tokens: dict[str, int] = field(default_factory=dict)


def kept_by(programs: ProgramScheduler) -> tuple[list[Tracked], list[ProgramEntry]]:
    """Every request and entry that can still be reached."""
    seen: dict[int, object] = {}
    unvisited: list[object] = [programs]
    while unvisited:
        found = unvisited.pop()
        if id(found) in seen or isinstance(found, (type, ModuleType, FunctionType, str, int)):
            continue
        seen[id(found)] = found
        unvisited += gc.get_referents(found)
    requests = [found for found in seen.values() if isinstance(found, Tracked)]
    return requests, [found for found in seen.values() if isinstance(found, ProgramEntry)]


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(policy=st.sampled_from(POLICIES))
    def start(self, policy: str | None) -> None:
        self.policy = policy
        self.programs = ProgramScheduler(
            policy,
            starvation_factor=2.0,
            speculative_places=PLACES,
            max_offered=MAX_OFFERED,
            hold_tokens=HOLD_TOKENS,
        )
        self.live: list[Tracked] = []
        self.queue: list[Tracked] = []
        self.shown_again: list[Tracked] = []
        self.open: dict[ProgramKey, Program] = {}
        self.ends: list[End] = []
        self.expected_answers: list[End] = []
        self.first: dict[ProgramKey, Tracked | None] = {}
        self.paused = False
        self.counter = 0

    def number(self) -> int:
        self.counter += 1
        return self.counter

    def of(self, key: ProgramKey | None) -> list[Tracked]:
        return [request for request in self.live if request.key == key]

    # What happens to requests.

    @rule(
        key=st.sampled_from([None, *KEYS]),
        prompt=st.sampled_from([LONG, OTHER, SHORT]),
        compiles=st.booleans(),
    )
    def arrive(self, key: ProgramKey | None, prompt: list[int], compiles: bool) -> None:
        # Ids are used again: requests are told apart by identity.
        rid = f"r{self.number() % 7}-{key and key.program_id}"
        if any(request.rid == rid for request in self.live):
            return
        request = Tracked(rid, 99, prompt, key=key)
        self.programs.arrived(request, key)
        self.programs.arrived(request, key)
        self.live.append(request)
        if not compiles:
            self.enqueue(request)

    def enqueue(self, request: Tracked) -> None:
        self.programs.queued(request)
        request.state, request.turn = "waiting", self.number()
        self.queue.append(request)
        self.choose_first(request.key)

    @precondition(lambda self: any(request.state == "compiling" for request in self.live))
    @rule()
    def compiled(self) -> None:
        self.enqueue(next(request for request in self.live if request.state == "compiling"))

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """A full queue throws one out, or its client hangs up."""
        request = data.draw(st.sampled_from(self.queue))
        self.queue.remove(request)
        self.leave(request)
        self.programs.gone(request)
        self.programs.gone(request)

    def leave(self, request: Tracked) -> None:
        self.live.remove(request)
        for end in [end for end in self.ends if request in end.draining]:
            end.draining.remove(request)
            end.tokens[request.rid] = len(request.output_ids)
            if not end.draining:
                self.ends.remove(end)
                self.expected_answers.append(end)
        self.choose_first(request.key)

    @precondition(lambda self: not self.paused)
    @rule(places=st.integers(0, 4), is_full=st.booleans(), kv_tokens=st.sampled_from([0, 10_000]))
    def admission_pass(self, places: int, is_full: bool, kv_tokens: int) -> None:
        before = list(self.queue)
        ordered = self.programs.order(self.queue)
        assert sorted(map(id, self.queue)) == sorted(map(id, before))
        assert ordered == (self.policy is not None and bool(self.is_there()))
        if ordered:
            self.check_order()
        else:
            assert self.queue == sorted(self.queue, key=lambda request: request.turn)
        whole, held = list(self.queue), self.held()
        self.programs.hold(self.queue)
        assert self.queue == [request for request in whole if request not in held]
        admitted, self.queue = self.queue[:places], self.queue[places:]
        self.programs.release(self.queue)
        assert self.queue == [request for request in whole if request not in admitted]
        for request in admitted:
            request.state = "running"
        running = [request for request in self.live if request.state == "running"]
        self.programs.admitted(running)
        self.follow(Load(len(running), len(self.queue), is_full, kv_tokens))

    def follow(self, load: Load) -> None:
        offers = sum(program.offers for program in self.open.values())
        underway = sum(program.drawn for program in self.open.values())
        surplus = self.surplus()
        short = self.short(load, surplus)
        before = [request for request in self.live if request.cancelled]
        directives = self.programs.after_pass(load)
        assert len(set(directives.cancel)) == len(directives.cancel)
        for request in directives.cancel:
            assert isinstance(request, Tracked)
            assert request in self.live and (request in surplus or request.cancelled)
        fresh = [request for request in directives.cancel if request not in before]
        spare = [request for request in surplus if request.state == "running"]
        assert len(fresh) == max(0, min(short, len(spare)))
        self.cancel(directives.cancel)
        room = 0 if load.waiting else max(0, PLACES - load.running - underway)
        assert sum(count for _, count in directives.draws) == min(room, offers)
        for key, count in directives.draws:
            self.open[key].offers -= count
            self.open[key].drawn += count

    def short(self, load: Load, surplus: list[Tracked]) -> int:
        """How many running requests have to go."""
        leaving = sum(request.cancelled for request in self.live)
        idle = self.held().union(request for request in surplus if request.state == "waiting")
        places = load.waiting - len(idle) if load.is_full else 0
        return max(places, load.kv_tokens < 4 * load.running) - leaving

    def surplus(self) -> list[Tracked]:
        beyond: list[Tracked] = []
        for key, program in self.open.items():
            staying = [request for request in self.of(key) if not request.cancelled]
            if program.needed is not None:
                beyond += staying[program.needed :]
        return beyond

    def cancel(self, requests: list[Tracked]) -> None:
        """As the engine does: what waits vanishes, what runs shows up once more."""
        for request in requests:
            request.cancelled = True
            if request.state in ("waiting", "compiling"):
                if request in self.queue:
                    self.queue.remove(request)
                self.leave(request)
                self.programs.gone(request)

    @precondition(lambda self: not self.paused)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Some rows are a chunk of a prefill, some end; those of the last step show up again."""
        running = [request for request in self.live if request.state == "running"]
        self.programs.advance(max(1, len(running)))
        again, self.shown_again = self.shown_again, []
        for request in running:
            what = data.draw(st.sampled_from(["chunk", "token", "end"]))
            if request.cancelled or what == "end":
                self.leave(request)
                self.shown_again.append(request)
                self.programs.finished(request, completed=not request.cancelled)
            elif what == "token":
                request.output_ids.append(7)
                self.programs.prefilled(request)
        for request in again:
            self.programs.finished(request, completed=True)

    @precondition(lambda self: any(request.state == "running" for request in self.live))
    @rule(data=st.data())
    def retract(self, data: st.DataObject) -> None:
        running = [request for request in self.live if request.state == "running"]
        self.enqueue(data.draw(st.sampled_from(running)))

    # What programs say.

    @rule(
        key=st.sampled_from(KEYS),
        needed=st.one_of(st.none(), st.integers(0, 3)),
        values=st.lists(st.floats(0, 1), max_size=8),
        work=st.floats(0, 9),
    )
    def demand(self, key: ProgramKey, needed: int | None, values: list[float], work: float) -> None:
        program = self.open.setdefault(key, Program())
        demand = Demand(0.5, 0.5, work, needed, tuple(sorted(values, reverse=True)))
        offers = sum(program.offers for program in self.open.values())
        self.programs.demand(key, demand, kind="branch", prompt_tokens=8, draws_seen=0)
        program.needed = needed
        room = MAX_OFFERED - offers + program.offers
        program.offers = max(0, min(room, len(values) - program.drawn))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel_some(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.live), max_size=4, unique_by=id))
        for key in KEYS:
            named = [request for request in chosen if request.key == key]
            rids = [request.rid for request in named] + ["unknown"]
            requests = self.programs.cancel(key, rids)
            assert requests == [request for request in self.of(key) if request in named]
            self.cancel(requests)

    @rule(key=st.sampled_from(KEYS))
    def end(self, key: ProgramKey) -> None:
        requests = self.of(key)
        end = End(f"m{self.number()}", list(requests))
        self.open.pop(key, None)
        if self.paused:
            end.tokens = {request.rid: len(request.output_ids) for request in requests}
            end.draining = []
        (self.ends if end.draining else self.expected_answers).append(end)
        assert self.programs.end(key, end.message_id, self.paused) == requests
        self.cancel(requests)

    @precondition(lambda self: not self.paused)
    @rule()
    def end_every_program(self) -> None:
        """Plain requests stay."""
        for key in KEYS:
            self.end(key)
        for request in [request for request in self.live if request.key is not None]:
            self.leave(request)
            self.programs.finished(request, completed=False)
        assert not self.programs

    @rule()
    def abort_everything(self) -> None:
        self.programs.withdraw_offers()
        for program in self.open.values():
            program.offers = 0

    @rule()
    def pause_or_go_on(self) -> None:
        self.paused = not self.paused
        if self.paused:
            self.programs.paused()
            for end in self.ends:
                end.tokens |= {request.rid: len(request.output_ids) for request in end.draining}
                self.expected_answers.append(end)
            self.ends = []

    @rule()
    def answers(self) -> None:
        answers = {answer.message_id: answer for answer in self.programs.answers()}
        assert answers.keys() == {end.message_id for end in self.expected_answers}
        for end in self.expected_answers:
            assert answers[end.message_id].tokens == end.tokens
            assert answers[end.message_id].tokens_at_end.keys() == end.tokens.keys()
        self.expected_answers = []

    # What must hold.

    def is_there(self) -> set[ProgramKey]:
        return {request.key for request in self.live if request.key is not None} | set(self.open)

    def held(self) -> set[Tracked]:
        """Those that wait for the first of their kind; what begins alike the table has noted."""
        held: set[Tracked] = set()
        for key in KEYS:
            entry = self.programs.table.find(key)
            if entry is None or entry.prompt_cached:
                continue
            alike = [request for request in self.of(key) if request in entry.alike]
            waiting = [request for request in alike if request.state == "waiting"]
            held.update(request for request in waiting if request is not self.first.get(key))
        return held

    def choose_first(self, key: ProgramKey | None) -> None:
        """Told of whenever one of a program's requests has come, gone or been prefilled."""
        entry = self.programs.table.find(key) if key is not None else None
        if entry is None or key is None:
            return
        first = self.first.get(key)
        if first not in self.live or first not in entry.alike or entry.prompt_cached:
            waiting = [request for request in self.of(key) if request in entry.alike]
            waiting = [request for request in waiting if request.state == "waiting"]
            waiting.sort(key=lambda request: request.turn)
            self.first[key] = waiting[0] if waiting and not entry.prompt_cached else None

    def check_order(self) -> None:
        """Late requests are last; those of a program stand together, first come first."""
        late = set(self.surplus())
        is_late = [request in late for request in self.queue]
        assert is_late == sorted(is_late)
        for part in (False, True):
            requests = [
                request
                for request, its in zip(self.queue, is_late, strict=True)
                if its is part and request.key is not None
            ]
            blocks = [
                (key, [request.turn for request in block])
                for key, block in groupby(requests, key=lambda request: request.key)
            ]
            assert len(blocks) == len({key for key, _ in blocks})
            assert all(turns == sorted(turns) for _, turns in blocks)

    @invariant()
    def the_table_is_what_was_told(self) -> None:
        if not hasattr(self, "programs"):
            return
        table = self.programs.table
        there = self.is_there()
        assert len(table) == len(there) and bool(self.programs) == bool(there)
        assert table.num_requests == sum(request.key is not None for request in self.live)
        assert self.programs.offered == sum(program.offers for program in self.open.values())
        assert self.programs.offered <= MAX_OFFERED
        for key in KEYS:
            entry = table.find(key)
            assert (entry is not None) == (key in there)
            if entry is not None:
                assert list(entry.requests) == self.of(key)
                assert table.remaining_tokens(entry) >= 0
        for request in self.live:
            entry = table.entry_of(request)
            assert entry is not None and entry.key == request.key and request in self.programs
            assert (request in entry.waiting) == (request.state == "waiting")
            assert (request in entry.running) == (request.state == "running")
            assert (request in entry.leaving) == request.cancelled
            assert (entry.waiting_since is None) == (not entry.waiting)

    @invariant()
    def nothing_is_kept_of_what_has_gone(self) -> None:
        if not hasattr(self, "programs"):
            return
        requests, entries = kept_by(self.programs)
        assert set(requests) <= set(self.live)
        assert all(entry.requests or entry.open for entry in entries)

    def teardown(self) -> None:
        """Everything goes its way; nothing of it is kept."""
        if not hasattr(self, "programs"):
            return
        for key in KEYS:
            self.programs.end(key, "last")
        for request in list(self.live):
            self.programs.finished(request, completed=True)
        self.programs.answers()
        assert len(self.programs.table) == self.programs.table.num_requests == 0
        assert self.programs.offered == 0 and not self.programs.orders
        assert self.programs.after_pass(Load(0, 0)).draws == []
        assert kept_by(self.programs)[0] == []


SchedulerMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None
)
TestSchedulerAgreesWithTheReference = SchedulerMachine.TestCase
