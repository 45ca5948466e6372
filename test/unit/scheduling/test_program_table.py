"""The program table against a model of it: nothing is lost, nothing is counted twice."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sglang_dynasor.scheduling import ProgramKey, ProgramTable

KEYS = [ProgramKey(tenant, name) for tenant in ("", "t") for name in ("p", "q")]


class TableMachine(RuleBasedStateMachine):
    """The model: a dict of live requests, and for each ended program what it waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ProgramTable()
        self.live: dict[str, ProgramKey] = {}
        self.waiting: dict[str, set[str]] = {}
        self.drained: dict[str, dict[str, int]] = {}
        self.order: list[str] = []
        self.counter = 0

    @rule(key=st.sampled_from(KEYS))
    def add(self, key: ProgramKey) -> None:
        rid = f"r{self.counter}"
        self.counter += 1
        self.table.add(key, rid)
        self.live[rid] = key

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=st.integers(0, 99))
    def retire(self, data: st.DataObject, tokens: int) -> None:
        rid = data.draw(st.sampled_from(sorted(self.live)))
        self.table.retire(rid, tokens)
        self._forget(rid, tokens)
        self.table.retire(rid, tokens + 1)  # upstream reports some requests twice

    def _forget(self, rid: str, tokens: int) -> None:
        del self.live[rid]
        for message_id, rids in self.waiting.items():
            if rid in rids:
                rids.discard(rid)
                self.drained[message_id][rid] = tokens

    @rule(key=st.sampled_from(KEYS))
    def end(self, key: ProgramKey) -> None:
        message_id = f"m{self.counter}"
        self.counter += 1
        rids = {rid for rid, owner in self.live.items() if owner == key}
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
        assert len(self.table) == len(set(self.live.values()))
        assert sorted(self.table.all_rids()) == sorted(self.live)
        for key in KEYS:
            rids = {rid for rid, owner in self.live.items() if owner == key}
            assert self.table.rids(key) == rids
        for rid, key in self.live.items():
            entry = self.table.program_of(rid)
            assert rid in self.table and entry is not None and entry.key == key


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
