"""Chains of thought of the embedded model, probed often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang_dynasor import Program, ProgramResult

if TYPE_CHECKING:
    from sglang_dynasor import DynasorEngine

PROBLEMS = ("12+34", "37+58+91", "23+45+67+89", "71+16+85+20+33")
EAGER = {"probe_interval": 8, "window": 3}
NEVER = {"probe_interval": 8, "window": 1000}  # probed all the way, and never stopped


def chain(problem: str, tokens: int = 400, seed: int = 7, **fields: Any) -> Program:
    return Program(
        messages=[{"role": "user", "content": problem}],
        sampling_params={"temperature": 0.7, "max_new_tokens": tokens, "sampling_seed": seed},
        chat_template_kwargs={"enable_thinking": True},
        dynasor={"algorithm": "cot", **fields},
    )


def run(engine: DynasorEngine, *programs: Program) -> list[ProgramResult]:
    results = engine.run_batch(list(programs))
    assert [result.error for result in results] == [None] * len(programs)
    return results
