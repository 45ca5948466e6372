"""Which grouping a program's answers get, and that no program waits for it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_dynasor.certaindex import AnswerGroups, MathEquality
from sglang_dynasor.certaindex import embedding as embedding_module
from sglang_dynasor.certaindex.equality import Verdict
from sglang_dynasor.certaindex.fingerprint import Fingerprint
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import (
    Answers,
    Grouping,
    ProgramRun,
    ProgramSpec,
    grouping_of,
    run_program,
)
from sglang_dynasor.programs.answers import BOXED
from support.equality_workers import use_fake_workers, worker_pids
from support.fake_nodes import FakeNodes, FakeSample
from support.virtual_time import run_virtual
from support.waiting import wait_until

LIMIT_S = 0.5


async def run_grouped(
    grouping: Grouping, answers: list[str], deadline_s: float | None = None, **fields: Any
) -> ProgramRun:
    """A program whose branches all run at once, and finish in the order given."""
    asked = {"algorithm": "self_consistency", "max_branches": len(answers), "grants": "64"}
    program = ProgramSpec.parse(asked | fields).resolve(DynasorConfig())
    read = Answers(BOXED, grouping, 0.05)
    nodes = FakeNodes([FakeSample(answer, 0) for answer in answers])
    return await run_program(program.build(), nodes, read, deadline_s)


@pytest.mark.parametrize("answer_format", ["number", "choice", "json", "code", "text"])
def test_formats_without_formulas_are_grouped_by_spelling(answer_format: str) -> None:
    with MathEquality() as equality:
        grouping = grouping_of(answer_format, DynasorConfig(), equality)
        assert grouping.key("0.50") == grouping.key("1/2")
        assert grouping.key("x+1") != grouping.key("1+x")


def test_formulas_are_grouped_by_algebra_where_there_is_one() -> None:
    with MathEquality(3.0) as equality:
        equality.start()
        grouping = grouping_of("boxed", DynasorConfig(), equality)
        assert grouping.key("x+1") == grouping.key("1+x") != grouping.key("x+2")
    assert grouping_of("boxed", DynasorConfig(), None).key("1+x") == "1+x"


def test_open_answers_are_grouped_by_meaning_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang_dynasor.config.find_spec", lambda name: "found")
    vectors = {"a cat": (1.0, 0.0), "one cat": (0.8, 0.6), "a dog": (0.0, 1.0)}
    threads = []

    def embed(text: str) -> np.ndarray:
        threads.append(threading.current_thread())
        return np.array(vectors[text])

    monkeypatch.setattr(embedding_module, "embedding", embed)
    grouping = grouping_of("text", DynasorConfig(embeddings_threshold=0.75), None)
    for text in vectors:
        asyncio.run(grouping.prepare(text))
    keys = [grouping.key(text) for text in vectors]
    assert keys[0] == keys[1] != keys[2]
    assert len(threads) == 3 and threading.main_thread() not in threads


class Named:
    """ "x=3" is x and 3, "3" is 3; after `seconds` of the loop's time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def verdict(self, answer: str) -> Verdict:
        raise AssertionError("a step would have waited")

    async def verdict_async(self, answer: str) -> Verdict:
        await asyncio.sleep(self._seconds)
        name, _, value = answer.rpartition("=")
        return Verdict(Fingerprint(value, name or None))


@pytest.mark.parametrize(
    ("answers", "votes"),
    [
        (["x=3", "3", "4", "x=3"], [("x=3", 3), ("4", 1)]),
        (["x=3", "3", "4", "y=3"], [("x=3", 1), ("3", 1), ("4", 1), ("y=3", 1)]),
        (["3", "x=3", "y=3", "x=3"], [("x=3", 2), ("3", 1), ("y=3", 1)]),
    ],
)
@pytest.mark.parametrize("mode", ["on", "shadow"])
@pytest.mark.parametrize("vote", ["majority", "weighted"])
def test_an_answer_that_takes_a_group_apart_recounts_the_branches_before_it(
    answers: list[str], votes: list[tuple[str, int]], mode: str, vote: str
) -> None:
    grouping = AnswerGroups(Named())
    run = run_virtual(run_grouped(grouping, answers, mode=mode, min_branches=4, vote=vote))
    assert [(vote.answer, vote.count) for vote in run.outcome.votes] == votes
    assert list(run.outcome.answers.values()) == answers
    if mode == "shadow":
        assert run.outcome.shadow is not None
        assert run.outcome.shadow.answer == run.outcome.answer


def test_a_deadline_holds_while_algebra_runs_and_counts_the_branch_by_its_spelling() -> None:
    async def scenario() -> tuple[ProgramRun, float]:
        run = await run_grouped(AnswerGroups(Named(100.0)), ["3", "03"], deadline_s=5.0)
        return run, asyncio.get_running_loop().time()

    run, ended_at = run_virtual(scenario())
    assert ended_at == pytest.approx(5.0, abs=0.1)
    assert run.outcome.stop_reason == "deadline"
    assert run.outcome.answers["0"] == "3"
    assert run.inactive == ("answers compared by spelling only: 1 came with the deadline")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    use_fake_workers(monkeypatch, tmp_path)
    with MathEquality(LIMIT_S) as maths:
        maths.start_soon()
        wait_until(lambda: len(worker_pids(maths)) == 2, "two workers")
        yield maths


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_signal_to_a_worker_under_load_loses_no_program_and_delays_none_beyond_the_limit(
    fakes: MathEquality, sent: signal.Signals
) -> None:
    async def timed(number: int) -> tuple[ProgramRun, float]:
        loop = asyncio.get_running_loop()
        answers = [f"form {branch} of {number}" for branch in range(8)]
        start = loop.time()
        run = await run_grouped(AnswerGroups(fakes), answers, min_branches=8)
        return run, loop.time() - start

    async def main() -> list[tuple[ProgramRun, float]]:
        programs = [asyncio.create_task(timed(number)) for number in range(32)]
        while len(fakes._asked) < 64:  # of 256 answers
            await asyncio.sleep(0)
        os.kill(worker_pids(fakes)[0], sent)
        return await asyncio.gather(*programs)

    runs = asyncio.run(main())
    unhurt = [run for run, _ in runs if not run.inactive]
    assert len(unhurt) >= 31
    for number, (run, seconds) in enumerate(runs):
        votes = [vote.count for vote in run.outcome.votes]
        assert sum(votes) == 8
        assert seconds < LIMIT_S + 1.0
        if not run.inactive:
            assert (votes, run.outcome.answer) == ([8], f"form 0 of {number}")


def test_a_program_goes_on_by_spelling_while_no_worker_starts_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It failed."""
    use_fake_workers(monkeypatch, tmp_path, start="raise SystemExit(1)")
    with MathEquality(LIMIT_S) as maths:
        maths.start()
        run = asyncio.run(run_grouped(AnswerGroups(maths), ["one 7", "one 7", "other 7"]))
    assert [vote.count for vote in run.outcome.votes] == [2, 1]
    assert run.inactive == ("answers compared by spelling only: 2 found no worker that starts")
