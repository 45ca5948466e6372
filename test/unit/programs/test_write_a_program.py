"""The program of docs/write-a-program.md, as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import ProgramSpec
from sglang_dynasor.programs.client import Judgement
from sglang_dynasor.programs.recorded import replay_nodes
from sglang_dynasor.programs.registry import ALGORITHMS
from support.arithmetic_world import RIGHT, ArithmeticWorld
from support.fake_nodes import FakeNodes, FakeSample, run_fake
from support.virtual_time import run_virtual

GUIDE = Path(__file__).parents[3] / "docs" / "write-a-program.md"
MAX_LINES = 45


@pytest.fixture
def guide() -> Iterator[list[str]]:
    """Its code, run; what it registers is forgotten after the test."""
    before = dict(ALGORITHMS)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec", dont_inherit=True), names)
    yield blocks
    ALGORITHMS.clear()
    ALGORITHMS.update(before)


def test_the_guides_program_is_short(guide: list[str]) -> None:
    code = guide[0][guide[0].index("class BestStepParams") :]
    assert len([line for line in code.splitlines() if line.strip()]) <= MAX_LINES


@pytest.mark.usefixtures("guide")
def test_the_guides_program_finishes_the_step_of_highest_reward() -> None:
    fields = {"algorithm": "best_step", "steps": 3}

    class JudgedNodes(FakeNodes):
        async def score(self, node: str) -> Judgement:
            return Judgement({"s0": 0.1, "s1": 0.9, "s2": 0.3}[node], 7)

    samples = {f"s{i}": FakeSample("", 5 + i) for i in range(3)}
    client = JudgedNodes({**samples, "whole": FakeSample("42", 9)})
    run = run_virtual(run_fake(ProgramSpec.parse(fields).resolve(DynasorConfig()).build(), client))
    assert run.outcome.answer == "42"
    assert client.starts[-1].parent == "s1"
    assert run.reward_tokens == 21


@pytest.mark.usefixtures("guide")
def test_the_guides_program_runs_on_recorded_nodes() -> None:
    world = ArithmeticWorld(p_right=1.0, depth=1)
    program = ProgramSpec.parse({"algorithm": "best_step"}).resolve(DynasorConfig()).build()
    ran = replay_nodes(program, world.generate, reward_of=world.reward)
    assert ran.outcome.stop_reason == "completed"
    assert ran.outcome.answer == RIGHT
