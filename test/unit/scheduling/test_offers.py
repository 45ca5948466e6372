"""Offers: best value per token drawn first while there is room."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.scheduling import Load, ProgramKey, ProgramScheduler
from support.slot_engine import FakeRequest

PLACES = 100


def scheduler(max_offered: int = 4096) -> ProgramScheduler:
    return ProgramScheduler("gang-sjf", speculative_places=PLACES, max_offered=max_offered)


def offer(
    programs: ProgramScheduler, name: str, values: Sequence[float], draws_seen: int = 0
) -> ProgramKey:
    key = ProgramKey("", name)
    demand = Demand(needed=0, values=tuple(values))
    programs.demand(key, demand, kind="branch", prompt_tokens=8, draws_seen=draws_seen)
    return key


def drawn(programs: ProgramScheduler, room: int, waiting: int = 0) -> dict[str, int]:
    draws = programs.after_pass(Load(PLACES - room, waiting)).draws
    return {key.program_id: count for key, count in draws}


def test_the_first_branches_of_every_program_go_before_the_speculative_ones_of_any() -> None:
    programs = scheduler()
    for name in "abc":
        offer(programs, name, (0.5, 0.1, 0.05))
    assert drawn(programs, 3) == {"a": 1, "b": 1, "c": 1}


def test_the_best_value_per_token_is_drawn_first() -> None:
    programs = scheduler()
    offer(programs, "sure", (0.01, 0.005))
    offer(programs, "open", (0.4, 0.3, 0.001))
    assert drawn(programs, 3) == {"open": 2, "sure": 1}


def test_of_equal_gains_the_shorter_branches_are_drawn() -> None:
    programs = scheduler()
    for name, tokens in (("long", 900), ("short", 30)):
        key = offer(programs, name, ())
        for index in range(6):
            request = FakeRequest(f"{name}::{index}", output_ids=[7] * tokens)
            programs.arrived(request, key)
            programs.finished(request, completed=True)
        offer(programs, name, (0.2,))
    assert drawn(programs, 1) == {"short": 1}


def test_branches_drawn_but_not_yet_there_take_their_room() -> None:
    programs = scheduler()
    offer(programs, "a", (0.5, 0.4, 0.3))
    assert drawn(programs, 2) == {"a": 2}
    assert drawn(programs, 2) == {}
    # The program has heard of them: from now on they are requests, which the caller counts.
    offer(programs, "a", (0.3,), draws_seen=2)
    assert drawn(programs, 2) == {"a": 1}


def test_an_offer_that_crosses_a_draw_on_its_way_does_not_offer_the_drawn_again() -> None:
    programs = scheduler()
    offer(programs, "a", (0.5, 0.4, 0.3))
    drawn(programs, 2)
    offer(programs, "a", (0.5, 0.4, 0.3), draws_seen=0)
    assert programs.offered == 1


def test_draws_of_another_replica_make_no_room_here() -> None:
    programs = scheduler()
    offer(programs, "a", (0.5, 0.4, 0.3), draws_seen=5)
    assert programs.offered == 3
    assert drawn(programs, 2) == {"a": 2}


def test_without_room_nothing_is_drawn() -> None:
    programs = scheduler()
    offer(programs, "a", (0.5,))
    assert drawn(programs, 0) == drawn(programs, -5) == {}
    assert programs.offered == 1


def test_nothing_is_drawn_while_something_waits() -> None:
    programs = scheduler()
    offer(programs, "a", (0.5,))
    assert drawn(programs, 5, waiting=1) == {}
    assert drawn(programs, 5) == {"a": 1}


def test_an_ended_program_has_no_offers_and_late_draws_do_not_linger() -> None:
    programs = scheduler()
    key = offer(programs, "a", (0.5, 0.4))
    drawn(programs, 1)
    programs.end(key, "m")
    assert programs.offered == 0 and not programs
    offer(programs, "b", (0.5, 0.4))
    assert drawn(programs, 2) == {"b": 2}


def test_a_program_that_begins_again_while_the_old_one_drains_has_its_own_draws() -> None:
    programs = scheduler()
    key = offer(programs, "a", (0.5, 0.4))
    request = FakeRequest("old")
    programs.arrived(request, key)
    drawn(programs, 2)
    programs.end(key, "m")
    offer(programs, "a", (0.5, 0.4))
    assert drawn(programs, 2) == {"a": 2}


def test_an_abort_of_everything_withdraws_every_offer() -> None:
    programs = scheduler()
    for name in "abc":
        offer(programs, name, (0.5, 0.1))
    programs.withdraw_offers()
    assert programs.offered == 0 and drawn(programs, 9) == {}


@given(st.lists(st.lists(st.floats(0, 1), max_size=12), max_size=8), st.integers(1, 40))
def test_offers_are_counted_exactly_and_bounded(offers: list[list[float]], bound: int) -> None:
    programs = scheduler(max_offered=bound)
    for index, values in enumerate(offers):
        offer(programs, f"p{index}", sorted(values, reverse=True))
    remembered = programs.offered
    assert remembered == min(bound, sum(map(len, offers)))
    counts = drawn(programs, 7)
    assert sum(counts.values()) == min(7, remembered)
    assert programs.offered == remembered - sum(counts.values())
