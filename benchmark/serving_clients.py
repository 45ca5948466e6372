"""The clients of the stock engine: the same programs, driven from outside on ordinary requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeAlias

from sglang_dynasor.allocation import BetaRule, FixedGrants
from sglang_dynasor.certaindex import MathEquality
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.demo import Problem
from sglang_dynasor.managers.node_paths import NodePaths, Tokens
from sglang_dynasor.managers.rewards import JudgedPath, Rewards
from sglang_dynasor.programs import (
    Action,
    AnswerFormat,
    Answers,
    Demand,
    Event,
    Generated,
    Outcome,
    ProgramSpec,
    ReasoningProgram,
    SelfConsistency,
    SelfConsistencySettings,
    Start,
    Watch,
    grouping_of,
)
from sglang_dynasor.programs.client import Judgement, Probe

STOP_REASONS = {"stop": "completed", "length": "length", "abort": "aborted"}
LOOP_GRANTS = (4, 3, 3)  # of the client's own loop; one more round takes the branches left
STEP_STOP = ";"
CHUNK = 64  # tokens of a chain between two looks at it, as the released client's preset "mid"
EQUAL_ANSWERS = 3  # in a row, which end a chain there
PROBE = "</think>\\boxed{"
PROBE_TOKENS = 16
# A node's start, the token ids before it and its request's id; upstream's output.
Generate: TypeAlias = Callable[[Start, list[int], str], Awaitable[dict[str, Any]]]


class OwnNodes:
    """The nodes of a program that its client drives itself: ordinary requests of the engine.

    Nothing is offered or drawn, and nobody is told what is needed. `generate` is upstream's call,
    `abort` ends a request by its id, `rid_of` names it, and `rewards` judge steps.
    """

    def __init__(
        self,
        paths: NodePaths,
        generate: Generate,
        abort: Callable[[str], None],
        rid_of: Callable[[str], str],
        rewards: Rewards | None = None,
    ) -> None:
        self._paths = paths
        self._generate = generate
        self._abort = abort
        self._rid_of = rid_of
        self._rewards = rewards
        self._running: set[str] = set()

    async def generate(self, start: Start) -> Generated:
        node, paths = start.node, self._paths
        paths.begin(start)
        self._running.add(node)
        try:
            output = await self._generate(start, paths.input_ids(node), self._rid_of(node))
        finally:
            self._running.discard(node)
        paths.outputs[node] = output
        meta = output["meta_info"]
        finish = meta["finish_reason"]
        matched = finish.get("matched")
        return Generated(
            paths.text(node, output["text"]),
            meta.get("completion_tokens", 0),
            STOP_REASONS[finish["type"]],
            matched_stop=matched if isinstance(matched, str) else "",
        )

    async def score(self, node: str) -> Judgement:
        assert self._rewards is not None
        ids, text = self._paths.finished(node)
        return await self._rewards.score(JudgedPath(ids, "", text))

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


def own_vote(client: Literal["fixed", "loop"], max_branches: int) -> Timed:
    """All branches at once, or what a user would write instead of us: rounds and the Beta rule."""
    loop = client == "loop"
    settings = SelfConsistencySettings(
        max_branches=max_branches,
        rule=BetaRule() if loop else BetaRule(min_branches=max_branches),
        grants=FixedGrants((*LOOP_GRANTS, max_branches) if loop else (max_branches,)),
    )
    return Timed(SelfConsistency(settings))


def own_rebase(client: Literal["fixed", "loop"], width: int) -> Timed:
    """One tree of the whole width, or trees in rounds and the Beta rule."""
    fields: dict[str, Any] = {"algorithm": "rebase", "width": width, "step_stop": STEP_STOP}
    if client == "loop":
        fields |= {"rule": "beta", "grants": ",".join(map(str, (*LOOP_GRANTS, width)))}
    else:
        fields |= {"mode": "shadow", "grants": str(width)}
    judged = DynasorConfig(reward_url="http://127.0.0.1")  # whoever drives it asks for rewards
    return Timed(ProgramSpec.parse(fields).resolve(judged).build())


def own_chain() -> Timed:
    """A chain of thought to its own end."""
    fields = {"algorithm": "cot", "saving_effort": "none"}
    return Timed(ProgramSpec.parse(fields).resolve(DynasorConfig()).build())


async def chain_loop(
    prompt: list[int], tokens: Tokens, generate: Generate, most: int
) -> tuple[str, int, bool]:
    """A chain in chunks with a probe after each, as the released client.

    It ends by itself, after `most` tokens, or once the probes agree. Returns its text, all tokens
    that were spent, and whether nobody has aborted it.
    """
    chain: list[int] = []
    text = ""
    spent = 0
    answers: list[str] = []
    forced = tokens.encode(PROBE)
    for number in range(0, 2 * most, 2):
        chunk = Start(str(number), max_tokens=min(CHUNK, most - len(chain)))
        output = await generate(chunk, [*prompt, *chain], chunk.node)
        chain += output["output_ids"]
        text += output["text"]
        spent += output["meta_info"]["completion_tokens"]
        finish = output["meta_info"]["finish_reason"]["type"]
        if finish != "length" or len(chain) >= most:
            return text, spent, finish != "abort"
        probe = Start(str(number + 1), max_tokens=PROBE_TOKENS, stop="}")
        output = await generate(probe, [*prompt, *chain, *forced], probe.node)
        spent += output["meta_info"]["completion_tokens"] + len(forced)
        answers.append(output["text"])
        if len(set(answers[-EQUAL_ANSWERS:])) == 1 and len(answers) >= EQUAL_ANSWERS:
            return f"{text}{PROBE}{answers[-1]}}}", spent, True
    raise AssertionError("a chunk has at least one token")


def answers_of(problem: Problem, config: DynasorConfig, equality: MathEquality | None) -> Answers:
    """How the client of a problem reads and groups its answers: as we do."""
    return Answers(
        AnswerFormat(problem.answer_format, problem.answer_pattern),
        grouping_of(problem.answer_format, config, equality),
        config.pattern_time_limit_ms / 1000,
    )
