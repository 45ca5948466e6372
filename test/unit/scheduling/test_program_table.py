"""The program table against a model of it: nothing is lost, nothing is counted twice.

The model holds live requests with their state, announced programs, and what each ended one awaits.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sglang_dynasor.scheduling import ProgramKey, ProgramTable, draw
from sglang_dynasor.scheduling.program_table import REMEMBERED_PROGRAMS
from support.slot_engine import FakeRequest

KEYS = [ProgramKey(tenant, name) for tenant in ("", "t") for name in ("p", "q")]


class TableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = ProgramTable(max_offered=12, hold_tokens=4)
        self.opened: set[ProgramKey] = set()
        self.cached: set[ProgramKey] = set()
        self.state: dict[str, str] = {}
        self.tokens: dict[ProgramKey, int] = {}
        self.live: dict[str, ProgramKey] = {}
        self.waiting: dict[str, set[str]] = {}
        self.drained: dict[str, dict[str, int]] = {}
        self.order: list[str] = []
        self.counter = 0

    @rule(key=st.sampled_from(KEYS))
    def add(self, key: ProgramKey) -> None:
        rid = f"r{self.counter}"
        self.counter += 1
        self.table.add(key, rid, prompt_ids=range(8))
        self.live[rid] = key
        self.state[rid] = "new"

    @rule(key=st.sampled_from(KEYS))
    def open(self, key: ProgramKey) -> None:
        self.table.open(key, "self_consistency", 8, 16)
        self.opened.add(key)

    @rule(
        key=st.sampled_from(KEYS),
        needed=st.one_of(st.none(), st.integers(0, 4)),
        values=st.lists(st.floats(0, 1), max_size=8),
    )
    def report(self, key: ProgramKey, needed: int | None, values: list[float]) -> None:
        self.table.report(
            key, certaindex=0.5, needed=needed, worth=0.5, values=values, draws_seen=0
        )

    @rule(room=st.integers(0, 6))
    def draw(self, room: int) -> None:
        before = self.table.offered
        underway = sum(entry.underway for entry in self.table.offering())
        count = sum(count for _, count in draw(self.table, room))
        assert count == min(before, max(0, room - underway))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def enqueue(self, data: st.DataObject) -> None:
        rid = data.draw(st.sampled_from(sorted(self.live)))
        self.table.enqueue(FakeRequest(rid))
        self.state[rid] = "waiting"

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=st.integers(1, 50))
    def admit(self, data: st.DataObject, tokens: int) -> None:
        rid = data.draw(st.sampled_from(sorted(self.live)))
        self.table.admit(rid)
        if self.state[rid] == "waiting":
            self.state[rid] = "running"
        self.table.advance(tokens)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cache_prompt(self, data: st.DataObject) -> None:
        rid = data.draw(st.sampled_from(sorted(self.live)))
        self.table.cache_prompt(rid)
        self.cached.add(self.live[rid])

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=st.integers(0, 99))
    def retire(self, data: st.DataObject, tokens: int) -> None:
        rid = data.draw(st.sampled_from(sorted(self.live)))
        self.table.retire(rid, tokens)
        self._forget(rid, tokens)
        self.table.retire(rid, tokens + 1)  # upstream reports some requests twice

    def _forget(self, rid: str, tokens: int) -> None:
        del self.live[rid], self.state[rid]
        for message_id, rids in self.waiting.items():
            if rid in rids:
                rids.discard(rid)
                self.drained[message_id][rid] = tokens

    @invariant()
    def siblings_wait_for_the_one_that_prefills_their_prompt(self) -> None:
        held = self.table.held()
        for key in KEYS:
            states = {rid: self.state[rid] for rid, owner in self.live.items() if owner == key}
            waiting = [rid for rid, state in states.items() if state == "waiting"]
            goes = 0 if "running" in states.values() else 1
            expected = 0 if key in self.cached else max(0, len(waiting) - goes)
            assert len(held.intersection(waiting)) == expected
            held.difference_update(waiting)
        assert not held

    @rule(key=st.sampled_from(KEYS))
    def end(self, key: ProgramKey) -> None:
        message_id = f"m{self.counter}"
        self.counter += 1
        rids = {rid for rid, owner in self.live.items() if owner == key}
        self.opened.discard(key)
        self.table.end(key, message_id, dict.fromkeys(rids, 1))
        self.waiting[message_id] = rids
        self.drained[message_id] = {}
        self.order.append(message_id)

    @rule()
    def pop(self) -> None:
        expected = [message_id for message_id in self.order if not self.waiting[message_id]]
        popped = self.table.pop_ended()
        assert [ended.message_id for ended in popped] == expected
        for ended in popped:
            assert ended.tokens == self.drained[ended.message_id]
            assert ended.tokens.keys() == ended.tokens_at_end.keys()
        self.order = [message_id for message_id in self.order if message_id not in expected]

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.table.num_requests == len(self.live)
        assert len(self.table) == len(set(self.live.values()) | self.opened)
        assert sorted(self.table.all_rids()) == sorted(self.live)
        for key in KEYS:
            rids = {rid for rid, owner in self.live.items() if owner == key}
            assert self.table.rids(key) == rids
        for rid, key in self.live.items():
            entry = self.table.program_of(rid)
            assert rid in self.table and entry is not None and entry.key == key
            assert (rid in entry.waiting) == (self.state[rid] == "waiting")
            assert (rid in entry.running) == (self.state[rid] == "running")
            assert (entry.waiting_since is None) == (not entry.waiting)
            assert self.table.remaining_tokens(entry) >= 0
        offers = {entry.key: len(entry.values) for entry in self.table.offering() if entry.values}
        assert self.table.offered == sum(offers.values()) <= 12
        assert offers.keys() <= set(self.live.values()) | self.opened
        for entry in self.table.with_surplus():
            assert entry.needed is not None and entry.in_flight > entry.needed


TableMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTableAgreesWithItsModel = TableMachine.TestCase


def test_ending_a_program_without_requests_is_answered_at_once() -> None:
    table = ProgramTable()
    table.end(KEYS[0], "m", {})
    assert [ended.message_id for ended in table.pop_ended()] == ["m"]
    assert table.pop_ended() == []


def test_an_ended_program_answers_only_with_its_last_request() -> None:
    table = ProgramTable()
    table.add(KEYS[0], "a")
    table.add(KEYS[0], "b")
    table.end(KEYS[0], "m", {"a": 3, "b": 4})
    table.retire("a", 5)
    assert table.pop_ended() == []
    table.retire("b", 4)
    (ended,) = table.pop_ended()
    assert (ended.tokens, ended.tokens_at_end) == ({"a": 5, "b": 4}, {"a": 3, "b": 4})


def test_tenants_with_the_same_program_id_do_not_meet() -> None:
    table = ProgramTable()
    table.add(ProgramKey("one", "p"), "a")
    table.add(ProgramKey("two", "p"), "b")
    assert len(table) == 2
    table.end(ProgramKey("one", "p"), "m", {"a": 0})
    assert table.rids(ProgramKey("two", "p")) == {"b"}
    table.retire("a", 0)
    assert table.program_of("b") is not None


def test_a_program_the_engine_runs_stays_between_its_rounds() -> None:
    table = ProgramTable()
    table.open(KEYS[0], "self_consistency", 8, 16)
    table.add(KEYS[0], "a")
    table.retire("a", 7, completed=True)
    assert len(table) == 1
    table.end(KEYS[0], "m", {})
    assert len(table) == 0


def test_a_clients_loop_that_comes_back_is_the_same_program() -> None:
    table = ProgramTable()
    first = table.add(KEYS[0], "a", branch_class="client", max_branches=8)
    table.retire("a", 50, completed=True)
    assert len(table) == 0
    table.add(KEYS[1], "other", branch_class="client")
    again = table.add(KEYS[0], "b", branch_class="client")
    assert again is first and again.finished == 1 and again.max_branches == 8


def test_programs_that_do_not_come_back_are_forgotten_in_the_end() -> None:
    table = ProgramTable()
    first = table.add(KEYS[0], "a")
    table.retire("a", 5, completed=True)
    for index in range(REMEMBERED_PROGRAMS):
        table.add(ProgramKey("", f"other{index}"), f"r{index}")
        table.retire(f"r{index}", 1)
    assert table.add(KEYS[0], "b") is not first


def test_a_plain_request_that_waits_is_followed_after_the_last_program_has_gone() -> None:
    table = ProgramTable()
    table.add(KEYS[0], "a")
    table.enqueue(FakeRequest("plain"))
    table.retire("a", 3)
    assert len(table) == 0 and table
    assert table.all_rids() == ["plain"]
    table.admit("plain")
    assert not table
