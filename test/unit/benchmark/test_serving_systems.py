"""The client of the stock engine: the same program on ordinary requests."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from serving_systems import OwnNodes, answers_of, own_program
from sglang_dynasor.certaindex import MathEquality
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.demo import Problem
from sglang_dynasor.programs import ProgramRun, run_program
from support.virtual_time import run_virtual

PROBLEM = Problem("p", None, "37+58", "95", "1", answer_format="number")
DRAIN_S = 3.0


class Engine:
    """One token a second; an aborted request drains for a while."""

    def __init__(self, answers: str, lengths: list[int], aborted: frozenset[int]) -> None:
        self.sent: list[str] = []
        self.ended: list[str] = []
        self._answers = answers
        self._lengths = lengths
        self._aborted = aborted
        self._stops: dict[str, asyncio.Event] = {}

    async def generate(self, node: str, rid: str) -> dict[str, Any]:
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
        return {"text": text, "meta_info": meta}

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
        program = own_program(client, len(answers))
        nodes = OwnNodes(engine.generate, engine.abort, lambda node: f"rid-{node}")
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
