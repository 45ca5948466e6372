"""Drive a program against whatever can generate its nodes: the live engine, or a fake."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_dynasor.programs.answers import Answers
from sglang_dynasor.programs.batch_budget import Budget
from sglang_dynasor.programs.client import NodeClient
from sglang_dynasor.programs.nodes import Nodes
from sglang_dynasor.programs.program_run import ProgramRun
from sglang_dynasor.programs.protocol import (
    Aborted,
    Action,
    Expired,
    Outcome,
    ReasoningProgram,
)


async def run_program(
    program: ReasoningProgram,
    client: NodeClient,
    answers: Answers,
    deadline_s: float | None = None,
    budget: Budget | None = None,
) -> ProgramRun:
    """Run to the outcome. Whatever happens on the way, no node is left running.

    `budget` is where the program may ask for tokens; without one there are none to be had.

    Raises the first NodeError where nothing can answer, ClientGone where nobody waits any more,
    and TypeError for a program that goes on after its deadline or its abortion.
    """
    nodes = Nodes(client, answers, deadline_s, budget)
    try:
        step: Sequence[Action] | Outcome = program.start()
        while not isinstance(step, Outcome):
            nodes.apply(step)
            events = await nodes.next_events()
            step = program.on(events)
            if isinstance(events[-1], Expired | Aborted) and not isinstance(step, Outcome):
                raise TypeError(f"{events[-1]} wants an outcome, not {step!r}")
    finally:
        await nodes.end()
    return nodes.run(step)
