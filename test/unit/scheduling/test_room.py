"""Requests beyond the needed ones make room where there is none, and only there."""

from __future__ import annotations

import pytest

from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.scheduling import Load, ProgramKey, ProgramScheduler
from support.slot_engine import FakeRequest, SlotEngine


def needs(programs: ProgramScheduler, program: str, needed: int | None) -> None:
    demand = Demand(needed=needed)
    key = ProgramKey("", program)
    programs.demand(key, demand, kind="branch", prompt_tokens=8, draws_seen=0)


def running(needed: dict[str, int | None], places: int = 9) -> SlotEngine:
    """Programs of three requests each, all of which run."""
    engine = SlotEngine(places)
    for program, count in needed.items():
        needs(engine.programs, program, count)
        engine.send(program, [50] * 3)
    engine.step()
    return engine


def given_up(engine: SlotEngine, load: Load) -> list[str]:
    return [request.rid for request in engine.programs.after_pass(load).cancel]


def test_the_youngest_program_gives_up_first_and_nothing_is_chosen_twice() -> None:
    engine = running({"old": 1, "young": 2})
    full = Load(6, 1, is_full=True)
    assert given_up(engine, full) == ["young::6"]
    assert given_up(engine, full) == []  # that one makes room in a moment
    assert given_up(engine, Load(6, 9, is_full=True)) == ["old::3", "old::2"]
    assert given_up(engine, Load(6, 99, is_full=True)) == []


def test_nobody_is_given_up_while_places_and_kv_are_free() -> None:
    engine = running({"a": 1})
    engine.send(None, [9] * 20)
    assert given_up(engine, Load(3, 20)) == []


def test_held_siblings_want_no_place_yet() -> None:
    engine = SlotEngine(3, hold_tokens=8)
    needs(engine.programs, "a", 1)
    engine.send("a", [50] * 3, prompt=1)
    engine.step()
    engine.send("b", [9] * 4, prompt=9)
    assert given_up(engine, Load(3, 4, is_full=True)) == ["a::3"]  # one of the four goes first


def test_waiting_requests_that_are_not_needed_take_nobodys_place() -> None:
    engine = running({"a": 1}, places=3)
    needs(engine.programs, "b", 0)
    engine.send("b", [9] * 5)
    assert given_up(engine, Load(3, 5, is_full=True)) == []
    engine.send(None, [9])
    assert given_up(engine, Load(3, 6, is_full=True)) == ["a::3"]


def test_programs_that_need_all_they_sent_have_nothing_to_give_up() -> None:
    engine = running({"a": None, "b": 3})
    assert given_up(engine, Load(6, 9, is_full=True)) == []


@pytest.mark.parametrize(("page_size", "kv_tokens"), [(1, 11), (16, 47)])
def test_a_node_that_can_be_spared_goes_before_the_kv_runs_out(
    page_size: int, kv_tokens: int
) -> None:
    engine = SlotEngine(9, page_size=page_size)
    needs(engine.programs, "a", 1)
    engine.send("a", [50] * 3)
    engine.step()
    assert given_up(engine, Load(3, 0, kv_tokens=kv_tokens + 1)) == []
    low = Load(3, 5, kv_tokens=kv_tokens)  # what waits wants a place, which is not to be had so
    assert given_up(engine, low) == ["a::3"]
    assert given_up(engine, low) == []


def test_a_cancelled_request_that_was_retracted_is_cancelled_again() -> None:
    engine = running({"a": 1})
    (cancelled,) = engine.programs.after_pass(Load(3, 1, is_full=True)).cancel
    engine.programs.queued(cancelled)
    assert engine.programs.after_pass(Load(2, 2)).cancel == [cancelled]
    assert engine.programs.after_pass(Load(2, 2)).cancel == []


def test_room_is_made_for_a_plain_request_and_taken_by_it() -> None:
    engine = running({"a": 1}, places=3)
    (plain,) = engine.send(None, [1])
    while plain.rid not in engine.finished_at:
        engine.step()
    assert engine.steps <= 4
    assert engine.cancelled == ["a::3"]


def test_a_cancel_names_requests_of_its_program_and_passes_over_the_others() -> None:
    engine = running({"a": None, "b": None})
    key = ProgramKey("", "a")
    named = engine.programs.cancel(key, ["a::2", "b::4", "gone"])
    assert [request.rid for request in named] == ["a::2"]
    assert engine.programs.cancel(ProgramKey("t", "a"), ["a::1"]) == []


def test_an_id_that_is_used_again_while_the_old_row_drains_is_another_request() -> None:
    programs = ProgramScheduler("gang-sjf")
    key = ProgramKey("", "p")
    old, new = FakeRequest("same"), FakeRequest("same")
    programs.arrived(old, key)
    programs.finished(old, completed=True)
    programs.arrived(new, key)
    programs.finished(old, completed=True)  # shown once more
    assert new in programs
    assert programs.table.num_requests == 1
