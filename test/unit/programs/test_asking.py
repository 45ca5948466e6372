"""A program whose tokens run out asks for more, and goes on with what it gets."""

from __future__ import annotations

import asyncio

import pytest

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import (
    Ask,
    Finished,
    Granted,
    Outcome,
    ProgramSpec,
    ReasoningProgram,
    Start,
    replay_nodes,
    run_program,
)
from sglang_dynasor.programs.answers import AnswerFormat, Answers
from sglang_dynasor.programs.token_cap import TokenCap
from support.fake_nodes import FakeNodes, FakeSample, Spelling
from support.virtual_time import run_virtual


def program_of(cap: int | None, **fields: object) -> ReasoningProgram:
    own = {"algorithm": "self_consistency", "max_branches": 8, "draw": "rounds", **fields}
    if cap is not None:
        own["max_total_tokens"] = cap
    return ProgramSpec.parse(own).resolve(DynasorConfig()).build()


def finish(program: ReasoningProgram, starts: list[Start], tokens: int) -> object:
    """Every started branch ends with an answer of its own."""
    events = [
        Finished(start.node, "", tokens, "completed", start.node, start.node) for start in starts
    ]
    return program.on(events)


def starts_of(actions: object) -> list[Start]:
    assert not isinstance(actions, Outcome)
    return [action for action in actions if isinstance(action, Start)]


def until_it_asks(program: ReasoningProgram) -> Ask:
    """Every branch takes 20 tokens; returns what the program then asks for."""
    step: object = program.start()
    while not isinstance(step[0], Ask):
        step = finish(program, starts_of(step), 20)
        assert not isinstance(step, Outcome)
    (ask,) = step
    return ask


def test_a_cap_counts_what_is_spent_and_grows_by_what_is_granted() -> None:
    cap = TokenCap(100)
    assert (cap.missing(3), cap.share(4)) == (0, 25)
    for tokens in (30, 40):
        cap.spend(tokens)
    assert (cap.left, cap.missing(3)) == (30, 90)
    cap.grant(50)
    assert (cap.left, cap.missing(2), cap.missing(1)) == (80, 0, 0)
    cap.grant(0)
    assert (cap.left, cap.missing(3)) == (80, 0)  # not asked again


def test_branches_are_few_enough_to_end_by_themselves() -> None:
    cap = TokenCap(200)
    assert cap.fits(4) == 1  # how long they get is not known
    for tokens in (30, 50):
        cap.spend(tokens)
    assert cap.fits(4) == 2  # of 120 tokens, for as long as the longest was
    cap.grant(0)
    assert cap.fits(4) == 3  # the last ones: as long as most
    cap.spend(100)
    assert cap.fits(4) == 0
    assert TokenCap(0).fits(4) == 0


def test_without_a_cap_nothing_is_missing() -> None:
    cap = TokenCap(None)
    cap.spend(10**6)
    assert (cap.missing(9), cap.share(3), cap.fits(9)) == (0, None, 9)


def test_a_program_asks_before_a_round_that_its_tokens_do_not_reach() -> None:
    program = program_of(60)
    ask = until_it_asks(program)
    assert ask.tokens > 0
    assert 0 < ask.value < 1
    more = starts_of(program.on([Granted(ask.tokens)]))
    assert more
    assert all(start.max_tokens is not None and start.max_tokens >= 20 for start in more)


def test_who_gets_nothing_ends_by_its_budget_with_the_answer_it_has() -> None:
    program = program_of(60)
    until_it_asks(program)
    outcome = program.on([Granted(0)])
    assert isinstance(outcome, Outcome)
    assert (outcome.stop_reason, outcome.answer) == ("budget", "0")


def test_who_gets_nothing_runs_the_whole_branches_that_are_left_and_asks_no_more() -> None:
    program = program_of(75)
    until_it_asks(program)
    (last,) = starts_of(program.on([Granted(0)]))
    assert last.max_tokens == 15
    outcome = finish(program, [last], 15)
    assert isinstance(outcome, Outcome)
    assert outcome.stop_reason == "budget"


def test_the_first_branch_of_a_capped_program_runs_alone() -> None:
    assert len(starts_of(program_of(200).start())) == 1
    assert len(starts_of(program_of(None).start())) > 1


@pytest.mark.parametrize("cap", [None, 10_000])
def test_a_program_with_enough_never_asks(cap: int | None) -> None:
    program = program_of(cap)
    step: object = program.start()
    while not isinstance(step, Outcome):
        assert not any(isinstance(action, Ask) for action in step)
        step = finish(program, starts_of(step), 20)
    assert step.stop_reason != "budget"


def test_a_recorded_program_has_nobody_to_ask() -> None:
    program = program_of(60)
    replayed = replay_nodes(
        program, lambda start: Finished(start.node, "", 20, "completed", start.node, start.node)
    )
    assert (replayed.outcome.stop_reason, replayed.tokens) == ("budget", 60)


class Purse:
    """Gives so many tokens in all, each time after a while."""

    def __init__(self, tokens: int, delay_s: float = 1.0) -> None:
        self.left = tokens
        self.asked = 0
        self._delay_s = delay_s

    async def more(self, tokens: int, value_per_token: float) -> int:
        self.asked += 1
        await asyncio.sleep(self._delay_s)
        given = min(tokens, self.left)
        self.left -= given
        return given


def run(purse: Purse | None, deadline_s: float | None = None) -> tuple[str, int]:
    async def scenario() -> tuple[str, int]:
        client = FakeNodes([FakeSample(str(index), 20) for index in range(8)])
        answers = Answers(AnswerFormat("text", None), Spelling(), 1.0)
        result = await run_program(program_of(60), client, answers, deadline_s, purse)
        assert not client.running
        spent = sum(event.n_tokens for event in result.finished.values())
        return result.outcome.stop_reason, spent

    return run_virtual(scenario())


def test_a_running_program_goes_on_with_what_it_is_given() -> None:
    rich = Purse(10_000)
    assert run(rich) == ("completed", 160)
    assert rich.left == 10_000 - 100
    assert run(Purse(40))[1] == 100
    assert run(None) == ("budget", 60)


def test_a_deadline_ends_the_wait_for_tokens() -> None:
    purse = Purse(10_000, delay_s=1000.0)
    reason, spent = run(purse, deadline_s=200.0)
    assert (reason, spent, purse.asked) == ("deadline", 60, 1)
