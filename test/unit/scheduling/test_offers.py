"""Offers: best value per token drawn first while there is room, given up when there is none."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sglang_dynasor.scheduling import ProgramKey, ProgramTable, draw, surplus_running
from support.slot_engine import FakeRequest


def offering(
    table: ProgramTable, name: str, values: Sequence[float], needed: int = 0, draws_seen: int = 0
) -> ProgramKey:
    key = ProgramKey("", name)
    table.open(key, "self_consistency", 8, 16)
    table.report(
        key, certaindex=0.0, needed=needed, worth=1.0, values=values, draws_seen=draws_seen
    )
    return key


def run_branches(table: ProgramTable, key: ProgramKey, count: int) -> list[str]:
    rids = [f"{key.program_id}::{index}" for index in range(count)]
    for rid in rids:
        table.add(key, rid)
        table.enqueue(FakeRequest(rid))
        table.admit(rid)
    return rids


def drawn(table: ProgramTable, room: int) -> dict[str, int]:
    return {key.program_id: count for key, count in draw(table, room)}


def test_the_first_branches_of_every_program_go_before_the_speculative_ones_of_any() -> None:
    table = ProgramTable()
    for name in "abc":
        offering(table, name, (0.5, 0.1, 0.05))
    assert drawn(table, 3) == {"a": 1, "b": 1, "c": 1}


def test_the_best_value_per_token_is_drawn_first() -> None:
    table = ProgramTable()
    offering(table, "sure", (0.01, 0.005))
    offering(table, "open", (0.4, 0.3, 0.001))
    assert drawn(table, 3) == {"open": 2, "sure": 1}


def test_of_equal_gains_the_shorter_branches_are_drawn() -> None:
    table = ProgramTable()
    for name, tokens in (("long", 900), ("short", 30)):
        key = offering(table, name, ())
        for rid in run_branches(table, key, 6):
            table.retire(rid, tokens, completed=True)
        offering(table, name, (0.2,))
    assert drawn(table, 1) == {"short": 1}


def test_branches_drawn_but_not_yet_there_take_their_room() -> None:
    table = ProgramTable()
    offering(table, "a", (0.5, 0.4, 0.3))
    assert drawn(table, 2) == {"a": 2}
    assert drawn(table, 2) == {}
    # The program has heard of them: from now on they are requests, which the caller counts.
    offering(table, "a", (0.3,), draws_seen=2)
    assert drawn(table, 2) == {"a": 1}


def test_an_offer_that_crosses_a_draw_on_its_way_does_not_offer_the_drawn_again() -> None:
    table = ProgramTable()
    offering(table, "a", (0.5, 0.4, 0.3))
    drawn(table, 2)
    offering(table, "a", (0.5, 0.4, 0.3), draws_seen=0)
    assert table.offered == 1


def test_draws_of_another_replica_make_no_room_here() -> None:
    table = ProgramTable()
    offering(table, "a", (0.5, 0.4, 0.3), draws_seen=5)
    assert table.offered == 3
    assert drawn(table, 2) == {"a": 2}


def test_without_room_nothing_is_drawn() -> None:
    table = ProgramTable()
    offering(table, "a", (0.5,))
    assert drawn(table, 0) == drawn(table, -5) == {}
    assert table.offered == 1


def test_an_ended_program_has_no_offers_and_late_draws_do_not_linger() -> None:
    table = ProgramTable()
    key = offering(table, "a", (0.5, 0.4))
    drawn(table, 1)
    table.end(key, "m", {})
    assert table.offered == 0 and not list(table.offering())
    offering_again = table.report(
        key, certaindex=0.0, needed=0, worth=1.0, values=(0.5,), draws_seen=1
    )
    assert offering_again is None and table.offered == 0


def test_an_abort_of_everything_withdraws_every_offer() -> None:
    table = ProgramTable()
    for name in "abc":
        offering(table, name, (0.5, 0.1))
    table.withdraw_offers()
    assert table.offered == 0 and drawn(table, 9) == {}


@given(st.lists(st.lists(st.floats(0, 1), max_size=12), max_size=8), st.integers(1, 40))
def test_offers_are_counted_exactly_and_bounded(programs: list[list[float]], bound: int) -> None:
    table = ProgramTable(max_offered=bound)
    for index, values in enumerate(programs):
        offering(table, f"p{index}", sorted(values, reverse=True))
    remembered = sum(len(entry.values) for entry in table.offering())
    assert table.offered == remembered == min(bound, sum(map(len, programs)))
    counts = drawn(table, 7)
    assert sum(counts.values()) == min(7, remembered)
    assert table.offered == remembered - sum(counts.values())


def test_branches_nobody_needs_make_room_youngest_program_first() -> None:
    table = ProgramTable()
    old = offering(table, "old", (), needed=2)
    young = offering(table, "young", (), needed=1)
    run_branches(table, old, 4)
    run_branches(table, young, 2)
    assert surplus_running(table, 2) == ["young::1", "old::3"]
    assert surplus_running(table, 9) == ["young::1", "old::3", "old::2"]
    assert surplus_running(table, 0) == []


def test_a_branch_given_up_once_is_not_chosen_again() -> None:
    table = ProgramTable()
    key = offering(table, "a", (), needed=1)
    run_branches(table, key, 2)
    (rid,) = surplus_running(table, 1)
    table.give_up(rid)
    assert surplus_running(table, 1) == []


def test_programs_in_rounds_have_nothing_to_give_up() -> None:
    table = ProgramTable()
    key = ProgramKey("", "rounds")
    table.open(key, "self_consistency", 8, 16)
    table.report(key, certaindex=0.0, needed=None, worth=1.0, values=(), draws_seen=0)
    run_branches(table, key, 4)
    assert surplus_running(table, 9) == []
