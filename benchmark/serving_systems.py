"""What the serving benchmark compares, and the program of a client without us."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sglang_dynasor.allocation import BetaRule, FixedGrants
from sglang_dynasor.certaindex import MathEquality
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.demo import Problem
from sglang_dynasor.programs import (
    Action,
    AnswerFormat,
    Answers,
    Demand,
    Event,
    Generated,
    Outcome,
    ReasoningProgram,
    SelfConsistency,
    SelfConsistencySettings,
    Start,
    Watch,
    grouping_of,
)
from sglang_dynasor.programs.client import Probe

STOP_REASONS = {"stop": "completed", "length": "length", "abort": "aborted"}
LOOP_GRANTS = (4, 3, 3)  # of the client's own loop; one more round takes the branches left


@dataclass(frozen=True, slots=True)
class System:
    """What is compared: who runs the programs, and the settings of the engine.

    `client`: "fixed" and "loop" send ordinary requests to the stock engine under `policy`;
    "program" sends one program to ours, with `settings` and the request fields `fields`.
    """

    client: Literal["fixed", "loop", "program"]
    policy: str = "fcfs"
    settings: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


NEVER_STOPS = {"mode": "shadow"}  # every branch runs; the rule's decision is only noted
SYSTEMS = {
    "lpm_fixed": System("fixed", "lpm"),
    "fcfs_fixed": System("fixed", "fcfs"),
    "client_side": System("loop", "lpm"),
    "gang_fixed": System("program", settings={"policy": "gang"}, fields=NEVER_STOPS),
    "gang_sjf_fixed": System("program", settings={"policy": "gang-sjf"}, fields=NEVER_STOPS),
    "certaindex_lpm": System("program", "lpm", settings={"policy": "lpm", "draw": "rounds"}),
    "certaindex_gang": System("program", settings={"policy": "gang", "draw": "rounds"}),
    "full": System("program"),
}


class OwnNodes:
    """The nodes of a program that its client drives itself: ordinary requests of the engine.

    Nothing is offered or drawn, and nobody is told what is needed. `generate` is upstream's call,
    `abort` ends a request by its id, and `rid_of` names it.
    """

    def __init__(
        self,
        generate: Callable[[str, str], Awaitable[dict[str, Any]]],
        abort: Callable[[str], None],
        rid_of: Callable[[str], str],
    ) -> None:
        self._generate = generate
        self._abort = abort
        self._rid_of = rid_of
        self._running: set[str] = set()

    async def generate(self, start: Start) -> Generated:
        self._running.add(start.node)
        try:
            output = await self._generate(start.node, self._rid_of(start.node))
        finally:
            self._running.discard(start.node)
        meta = output["meta_info"]
        reason = STOP_REASONS[meta["finish_reason"]["type"]]
        return Generated(output["text"], meta.get("completion_tokens", 0), reason)

    async def end(self) -> dict[str, int]:
        self.cancel(tuple(self._running))
        self._running.clear()  # each is aborted once, however long it drains
        return {}

    def cancel(self, nodes: Sequence[str], keep_kv: bool = False) -> None:
        for node in nodes:
            self._abort(self._rid_of(node))

    def demand(self, demand: Demand, draws_seen: int) -> None: ...

    def on_draw(self, start: Callable[[int], None]) -> None: ...

    def watch(self, watch: Watch) -> None: ...

    def on_probe(self, take: Callable[[Probe], None]) -> None: ...

    def close(self) -> None: ...

    async def check_wanted(self) -> None: ...


class Timed:
    """A program that notes when it has its answer: what it cancels drains only afterwards."""

    def __init__(self, program: ReasoningProgram) -> None:
        self.at = 0.0
        self._program = program
        self.start = program.start

    def on(self, events: Sequence[Event]) -> Sequence[Action] | Outcome:
        step = self._program.on(events)
        self.at = asyncio.get_running_loop().time()
        return step


def own_program(client: Literal["fixed", "loop"], max_branches: int) -> Timed:
    """All branches at once, or what a user would write instead of us: rounds and the Beta rule."""
    loop = client == "loop"
    settings = SelfConsistencySettings(
        max_branches=max_branches,
        rule=BetaRule() if loop else BetaRule(min_branches=max_branches),
        grants=FixedGrants((*LOOP_GRANTS, max_branches) if loop else (max_branches,)),
    )
    return Timed(SelfConsistency(settings))


def answers_of(problem: Problem, config: DynasorConfig, equality: MathEquality) -> Answers:
    """How the client of a problem reads and groups its answers: as we do."""
    return Answers(
        AnswerFormat(problem.answer_format, problem.answer_pattern),
        grouping_of(problem.answer_format, config, equality),
        config.pattern_time_limit_ms / 1000,
    )
