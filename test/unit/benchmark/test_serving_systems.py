"""The client of the stock engine: the same program on ordinary requests."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from serving_clients import (
    CHUNK,
    PROBE,
    PROBE_TOKENS,
    STEP_STOP,
    OwnNodes,
    answers_of,
    chain_loop,
    own_chain,
    own_rebase,
    own_vote,
)
from sglang_dynasor.certaindex import MathEquality
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.demo import Problem
from sglang_dynasor.managers.node_paths import NodePaths, Tokens
from sglang_dynasor.managers.rewards import JudgedPath
from sglang_dynasor.programs import ProgramRun, Start, run_program
from sglang_dynasor.programs.client import Judgement
from support.virtual_time import run_virtual

PROBLEM = Problem("p", None, "37+58", "95", "1", answer_format="number")
DRAIN_S = 3.0
TOKENS = Tokens(lambda text: [ord(letter) for letter in text], lambda ids: "", frozenset({0}))


class Engine:
    """One token a second; an aborted request drains for a while."""

    def __init__(self, answers: str, lengths: list[int], aborted: frozenset[int]) -> None:
        self.sent: list[str] = []
        self.ended: list[str] = []
        self._answers = answers
        self._lengths = lengths
        self._aborted = aborted
        self._stops: dict[str, asyncio.Event] = {}

    async def generate(self, start: Start, ids: list[int], rid: str) -> dict[str, Any]:
        node = start.node
        self.sent.append(rid)
        stop = self._stops[rid] = asyncio.Event()
        length, began = self._lengths[int(node)], asyncio.get_running_loop().time()
        reason = "abort" if int(node) in self._aborted else "stop"
        try:
            async with asyncio.timeout(length):
                await stop.wait()
            await asyncio.sleep(DRAIN_S)
            length, reason = int(asyncio.get_running_loop().time() - began), "abort"
        except TimeoutError:
            pass
        text = f"so {self._answers[int(node)]}"
        meta = {"finish_reason": {"type": reason}, "completion_tokens": length}
        return {"text": text, "output_ids": [5] * length, "meta_info": meta}

    def abort(self, rid: str) -> None:
        self.ended.append(rid)
        self._stops[rid].set()


def answered(
    client: Literal["fixed", "loop"],
    answers: str,
    lengths: list[int],
    aborted: frozenset[int] = frozenset(),
) -> tuple[ProgramRun, float, Engine]:
    async def scenario() -> tuple[ProgramRun, float, Engine]:
        engine = Engine(answers, lengths, aborted)
        program = own_vote(client, len(answers))
        paths = NodePaths([1, 2], TOKENS)
        nodes = OwnNodes(paths, engine.generate, engine.abort, lambda node: f"rid-{node}")
        with MathEquality() as equality:
            read = answers_of(PROBLEM, DynasorConfig(), equality)
            return await run_program(program, nodes, read), program.at, engine

    return run_virtual(scenario())


def test_the_fixed_client_waits_for_every_branch() -> None:
    run, at, engine = answered("fixed", "99995999", [10, 20, 30, 40, 50, 10, 10, 10])
    assert (run.outcome.answer, run.outcome.stop_reason) == ("9", "completed")
    assert len(engine.sent) == len(run.finished) == 8
    assert at == pytest.approx(50) and not engine.ended


def test_the_loop_stops_in_rounds_and_has_its_answer_before_what_it_aborts_has_drained() -> None:
    run, at, engine = answered("loop", "9955995995999999", [10] * 15 + [90])
    assert (run.outcome.answer, run.outcome.stop_reason) == ("9", "certain")
    assert run.outcome.rounds == 4 and at == pytest.approx(40)
    assert engine.ended == ["rid-15"]
    assert {node: part.n_tokens for node, part in run.cancelled.items()} == {"15": 13}


def test_an_aborted_request_ends_the_program_without_a_result_to_count() -> None:
    run, _, _ = answered("fixed", "9999", [10, 20, 30, 40], frozenset({1}))
    assert run.outcome.stop_reason == "aborted"


def test_a_tree_of_the_clients_own_is_judged_and_continued_step_by_step() -> None:
    asked: list[list[int]] = []

    class Judge:
        async def score(self, path: JudgedPath) -> Judgement:
            asked.append(list(path.ids))
            return Judgement(0.5, len(path.ids))

    async def generate(start: Start, ids: list[int], rid: str) -> dict[str, Any]:
        first = len(ids) == 2
        finish = {"type": "stop", "matched": STEP_STOP if first else 0}
        meta = {"finish_reason": finish, "completion_tokens": 2}
        text = "a step" if first else "\\boxed{95}"
        return {"text": text, "output_ids": [7, 8] if first else [9, 0], "meta_info": meta}

    async def scenario() -> ProgramRun:
        nodes = OwnNodes(NodePaths([1, 2], TOKENS), generate, print, str, Judge())  # type: ignore
        with MathEquality() as equality:
            read = answers_of(PROBLEM, DynasorConfig(), equality)
            return await run_program(own_rebase("fixed", 3), nodes, read)

    run = run_virtual(scenario())
    assert run.outcome.answer == "95"
    assert asked == [[1, 2, 7, 8]] * 3 + [[1, 2, 7, 8, 9]] * 3
    assert len(run.rewards) == 6


def test_a_chain_in_chunks_ends_once_three_probes_agree_and_counts_all_it_spent() -> None:
    sent: list[tuple[int, int | None]] = []

    async def generate(start: Start, ids: list[int], rid: str) -> dict[str, Any]:
        sent.append((len(ids), start.max_tokens))
        probed = start.stop == "}"
        count = 3 if probed else start.max_tokens
        meta = {"finish_reason": {"type": "length"}, "completion_tokens": count}
        text = ("41" if len(ids) < 100 else "95") if probed else "."
        return {"text": text, "output_ids": [5] * (count or 0), "meta_info": meta}

    async def scenario() -> tuple[str, int, bool]:
        return await chain_loop([1, 2], TOKENS, generate, 1000)

    text, spent, finished = run_virtual(scenario())
    forced = len(PROBE)
    assert sent[:3] == [(2, CHUNK), (2 + CHUNK + forced, PROBE_TOKENS), (2 + CHUNK, CHUNK)]
    assert finished and text.endswith("\\boxed{95}")
    assert spent == 4 * CHUNK + 4 * (3 + forced)


def test_a_chain_without_agreement_goes_on_to_its_limit() -> None:
    async def generate(start: Start, ids: list[int], rid: str) -> dict[str, Any]:
        probed = start.stop == "}"
        count = 1 if probed else start.max_tokens
        meta = {"finish_reason": {"type": "length"}, "completion_tokens": count}
        return {"text": str(len(ids)), "output_ids": [5] * (count or 0), "meta_info": meta}

    async def scenario() -> tuple[str, int, bool]:
        return await chain_loop([1, 2], TOKENS, generate, 3 * CHUNK + 1)

    text, spent, finished = run_virtual(scenario())
    assert finished and spent == 3 * CHUNK + 1 + 3 * (1 + len(PROBE))
    assert PROBE not in text


def test_a_chain_of_the_fixed_client_is_one_request() -> None:
    _, start = own_chain().start()
    assert isinstance(start, Start) and start.max_tokens is None
