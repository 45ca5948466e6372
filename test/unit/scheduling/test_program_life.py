"""Programs come, are learnt from, end and are forgotten."""

from __future__ import annotations

import sys

import pytest

from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.scheduling import POLICY_KEYS, ProgramKey, ProgramScheduler
from sglang_dynasor.scheduling.cost import COLD_START_TOKENS
from sglang_dynasor.scheduling.program_entry import ProgramEntry
from sglang_dynasor.scheduling.program_table import REMEMBERED_PROGRAMS
from support.slot_engine import FakeRequest, SlotEngine

P, Q = ProgramKey("", "p"), ProgramKey("", "q")
ALL_POLICIES = [None, *POLICY_KEYS]


def arrive(programs: ProgramScheduler, key: ProgramKey | None, rid: str) -> FakeRequest:
    request = FakeRequest(rid)
    programs.arrived(request, key)
    programs.queued(request)
    return request


def announce(programs: ProgramScheduler, key: ProgramKey, kind: str = "branch") -> ProgramEntry:
    programs.demand(key, Demand(work=4), kind=kind, prompt_tokens=8, draws_seen=0)
    entry = programs.table.find(key)
    assert entry is not None
    return entry


def finish(programs: ProgramScheduler, request: FakeRequest, tokens: int) -> None:
    request.output_ids = [7] * tokens
    programs.finished(request, completed=True)


def test_ending_a_program_without_requests_is_answered_at_once() -> None:
    programs = ProgramScheduler("gang-sjf")
    assert programs.end(P, "m") == []
    assert [ended.message_id for ended in programs.answers()] == ["m"]
    assert programs.answers() == []


def test_an_ended_program_answers_only_with_its_last_request() -> None:
    programs = ProgramScheduler("gang-sjf")
    first, second = (arrive(programs, P, rid) for rid in "ab")
    first.output_ids, second.output_ids = [7] * 3, [7] * 4
    assert programs.end(P, "m") == [first, second]
    first.output_ids = [7] * 5
    programs.finished(first, completed=False)
    assert programs.answers() == []
    programs.gone(second)
    (ended,) = programs.answers()
    assert ended.tokens_at_end == {"a": 3, "b": 4}
    assert ended.tokens == {"a": 5, "b": 4}


def test_a_paused_engine_answers_at_once_with_what_is_known() -> None:
    programs = ProgramScheduler("gang-sjf")
    request = arrive(programs, P, "a")
    programs.admitted([request])
    request.output_ids = [7] * 3
    programs.end(P, "m", is_paused=True)
    (ended,) = programs.answers()
    assert ended.tokens == {"a": 3}
    programs.finished(request, completed=False)  # once the engine goes on
    assert programs.answers() == [] and not programs


def test_an_end_underway_is_answered_when_the_engine_is_paused() -> None:
    programs = ProgramScheduler("gang-sjf")
    gone, runs = (arrive(programs, P, rid) for rid in "ab")
    gone.output_ids, runs.output_ids = [7] * 2, [7] * 3
    programs.end(P, "m")
    programs.gone(gone)
    programs.paused()
    assert [ended.tokens for ended in programs.answers()] == [{"a": 2, "b": 3}]
    programs.paused()
    assert programs.answers() == []


def test_tenants_with_the_same_program_id_do_not_meet() -> None:
    programs = ProgramScheduler("gang-sjf")
    one, two = ProgramKey("one", "p"), ProgramKey("two", "p")
    first, second = arrive(programs, one, "a"), arrive(programs, two, "b")
    assert len(programs.table) == 2
    assert programs.end(one, "m") == [first]
    programs.gone(first)
    assert programs.table.find(one) is None and second in programs


def test_a_program_the_engine_runs_stays_between_its_rounds() -> None:
    programs = ProgramScheduler("gang-sjf")
    announce(programs, P)
    finish(programs, arrive(programs, P, "a"), 7)
    assert len(programs.table) == 1
    programs.end(P, "m")
    assert not programs


def test_a_clients_loop_that_comes_back_is_the_same_program() -> None:
    programs = ProgramScheduler("gang-sjf")
    request = FakeRequest("a")
    programs.arrived(request, P, expected=8)
    finish(programs, request, 50)
    assert not programs
    arrive(programs, Q, "other")
    arrive(programs, P, "b")
    entry = programs.table.find(P)
    assert entry is not None
    assert (entry.arrival, entry.finished, entry.finished_tokens, entry.further) == (1, 1, 50, 6)


def test_an_ended_program_does_not_come_back() -> None:
    programs = ProgramScheduler("gang-sjf")
    request = arrive(programs, P, "a")
    finish(programs, arrive(programs, P, "b"), 50)
    programs.end(P, "m")
    programs.gone(request)
    assert announce(programs, P).finished == 0


def test_programs_that_do_not_come_back_are_forgotten_in_the_end() -> None:
    programs = ProgramScheduler("gang-sjf")
    finish(programs, arrive(programs, P, "a"), 5)
    for index in range(REMEMBERED_PROGRAMS):
        finish(programs, arrive(programs, ProgramKey("", f"other{index}"), f"r{index}"), 1)
    arrive(programs, P, "b")
    entry = programs.table.find(P)
    assert entry is not None and entry.finished == 0


@pytest.mark.parametrize("policy", ALL_POLICIES)
def test_a_thousand_programs_leave_no_more_behind_than_ten(policy: str | None) -> None:
    """Programs the engine runs; nothing ever waits for long, so that nothing is ever sorted."""
    programs = ProgramScheduler(policy, hold_tokens=4)

    def serve(count: int) -> int:
        before = sys.getallocatedblocks()
        for index in range(count):
            key = ProgramKey("", f"p{index}")
            announce(programs, key)
            requests = [arrive(programs, key, f"{index}-{branch}") for branch in range(4)]
            requests.append(arrive(programs, None, f"plain-{index}"))
            programs.admitted(requests[1:])
            for request in requests[2:]:
                finish(programs, request, 9)
            for request in programs.end(key, "m"):
                programs.gone(request)
            assert len(programs.answers()) == 1
        return sys.getallocatedblocks() - before

    serve(10)
    assert serve(1000) < serve(10) + 100


def test_a_row_that_is_shown_once_more_is_learnt_once() -> None:
    engine = SlotEngine(8)
    entry = announce(engine.programs, P)
    engine.send("p", [5] * 4)
    engine.send(None, [9] * 2)
    engine.drain()
    assert (entry.finished, entry.finished_tokens) == (4, 20)
    assert engine.programs.table.prior.tokens("branch", 8) == 5
    assert engine.programs.table.prior.tokens("plain", 8) == 9


def test_what_did_not_end_by_itself_is_not_learnt() -> None:
    programs = ProgramScheduler("gang-sjf")
    entry = announce(programs, P)
    for key in (P, None):
        programs.finished(arrive(programs, key, f"aborted-{key}"), completed=False)
        programs.gone(arrive(programs, key, f"refused-{key}"))
    assert entry.finished == 0
    assert programs.table.prior.tokens("plain", 8) == COLD_START_TOKENS


def test_plain_requests_before_any_program_teach_nothing() -> None:
    """As those with which a server warms up."""
    programs = ProgramScheduler("gang-sjf")
    finish(programs, arrive(programs, None, "warm-up"), 1)
    assert programs.table.prior.tokens("plain", 8) == COLD_START_TOKENS


def test_classes_are_learnt_apart() -> None:
    programs = ProgramScheduler("gang-sjf")
    for key, kind, tokens in ((P, "branch", 30), (Q, "step", 900)):
        announce(programs, key, kind)
        finish(programs, arrive(programs, key, kind), tokens)
    assert programs.table.prior.tokens("branch", 8) == 30
    assert programs.table.prior.tokens("step", 8) == 900
