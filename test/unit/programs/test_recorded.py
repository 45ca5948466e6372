"""Replay on slots: who runs beside whom, what is drawn, what makes room, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sglang_dynasor.programs import (
    Action,
    Cancel,
    Event,
    Failed,
    Finished,
    Outcome,
    Replayed,
    Start,
    Trimmed,
    replay_nodes,
)

DONE = Outcome("completed", "", None, 0.0, (), {}, 1)


class Scripted:
    """Gives its steps in turn, one for each batch of events; the last is an outcome."""

    def __init__(self, *steps: Sequence[Action]) -> None:
        self.seen: list[Event] = []
        self._steps = list(steps)

    def start(self) -> Sequence[Action]:
        return self._steps.pop(0)

    def on(self, events: Sequence[Event]) -> Sequence[Action] | Outcome:
        self.seen += events
        return self._steps.pop(0) if self._steps else DONE


def replayed(
    program: Scripted, slots: int | None = None, draws: int = 0, **lengths: int
) -> Replayed:
    def recorded(start: Start) -> Finished | Failed:
        if lengths[start.node] < 0:
            return Failed(start.node, "refused")
        return Finished(start.node, "", lengths[start.node], "completed", "7", "7")

    return replay_nodes(program, recorded, slots, draws)


def names(program: Scripted) -> list[str]:
    return [event.node for event in program.seen if isinstance(event, Finished)]


def test_nodes_wait_for_a_slot_in_the_order_in_which_they_were_asked_for() -> None:
    program = Scripted([Start("a"), Start("b"), Start("c")], (), ())
    run = replayed(program, slots=2, a=10, b=4, c=3)
    assert names(program) == ["b", "c", "a"]
    assert (run.tokens, run.steps, run.sequential_tokens) == (17, 10, 10)


def test_a_node_that_waits_for_a_slot_was_never_started_when_the_outcome_comes() -> None:
    run = replayed(Scripted([Start("a"), Start("b")]), slots=1, a=10, b=4)
    assert (run.tokens, run.started, run.finished) == (10, 1, 1)


def test_offers_are_drawn_while_there_is_room_and_count_what_they_had_generated() -> None:
    offer = [Start("a"), Start("b", value=0.2), Start("c", value=0.1)]
    assert replayed(Scripted(offer), a=10, b=20, c=20).tokens == 10
    assert replayed(Scripted(offer), draws=2, a=10, b=20, c=20).tokens == 20
    assert replayed(Scripted(offer), draws=9, a=10, b=20, c=20).tokens == 30


def test_a_drawn_node_that_is_needed_later_was_under_way() -> None:
    offer = [Start("a"), Start("b", value=0.2)]
    program = Scripted(offer, [Start("b")])
    run = replayed(program, draws=2, a=10, b=15)
    assert (names(program), run.steps, run.sequential_tokens) == (["a", "b"], 15, 15)


def test_a_node_that_can_be_spared_makes_room_and_may_start_again() -> None:
    program = Scripted(
        [Start("a"), Start("b", value=0.2)],
        [Start("c"), Start("d"), Start("b", value=0.2)],
        [Start("b")],
        (),
        (),
    )
    run = replayed(program, slots=2, draws=2, a=3, b=20, c=5, d=6)
    assert program.seen[1] == Trimmed("b")
    assert names(program) == ["a", "c", "d", "b"]
    assert run.tokens == 3 + 3 + 5 + 6 + 20  # b's first three were in vain
    assert run.started == 4


def test_a_cancelled_node_costs_what_it_had_generated_and_gives_no_event() -> None:
    program = Scripted([Start("a"), Start("b"), Start("c")], [Cancel(("b", "c"))], ())
    with pytest.raises(RuntimeError, match="nothing is running"):
        replayed(program, slots=2, a=3, b=20, c=9)
    program = Scripted([Start("a"), Start("b")], [Cancel(("b",)), Start("c")])
    run = replayed(program, a=3, b=20, c=4)
    assert (names(program), run.tokens, run.steps) == (["a", "c"], 3 + 3 + 4, 7)


def test_a_node_longer_than_it_may_be_has_no_answer() -> None:
    program = Scripted([Start("a", max_tokens=4)])
    assert replayed(program, a=10).tokens == 4
    (event,) = program.seen
    assert event == Finished("a", "", 4, "length")


def test_a_node_that_fails_costs_nothing() -> None:
    program = Scripted([Start("a"), Start("b")], ())
    run = replayed(program, a=-1, b=5)
    assert program.seen[0] == Failed("a", "refused")
    assert (run.tokens, run.finished, run.started) == (5, 1, 2)
