"""The tiny reasoner in real time, in a process of its own: what the virtual clock has to predict.

A spec as JSON on stdin. `op` record measures step times and, in shadow mode, what every branch of
every problem generates; `op` serve runs the same problems at given arrivals, one run after another.
"""

from __future__ import annotations

import argparse
from typing import Any

import step_times
from paper_runs import answer
from sglang_dynasor.demo import load_problems, problem_seed
from sglang_dynasor.engine import DynasorEngine
from sglang_dynasor.models import recommended_temperature, resolve_model
from sglang_dynasor.platforms import activate
from sglang_dynasor.programs import Program, ProgramResult
from sglang_dynasor.simulate import WorkloadProgram, serve

MODEL = "tiny_reasoner"
MAX_NEW_TOKENS = 256


class Real:
    """An engine and the problems it is asked."""

    def __init__(self, spec: dict[str, Any]) -> None:
        model = resolve_model(MODEL)
        self._cap: int = spec["cap"]
        self._problems = load_problems(None, spec["problems"], spec["seed"])
        self._temperature = recommended_temperature(model) or 1.0
        activate()
        self._engine = DynasorEngine(
            model_path=str(model),
            sampling_backend="keyed",
            max_running_requests=spec["max_running"],
            max_total_tokens=spec["kv_tokens"],
            dynasor={"equality_time_limit_ms": 0, **spec["settings"]},
        )
        tokenizer = self._engine.tokenizer_manager.tokenizer
        self._prompts = [
            list(
                tokenizer.apply_chat_template(
                    problem.messages, add_generation_prompt=True, return_dict=False
                )
            )
            for problem in self._problems
        ]

    def close(self) -> None:
        self._engine.shutdown()

    def record(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Rows of `step_times`, and the problems as programs whose samples are those generated."""
        self._engine.run_batch([self._program(i, {"mode": "shadow"}) for i in range(16)])
        options = argparse.Namespace(
            seed=spec["seed"], vocabulary=32, decode_tokens=64, repeats=5, max_prompt=256
        )
        options.max_batch = spec["max_running"]
        rows = step_times.measure(self._engine, options)
        shadow = [
            self._program(index, {"mode": "shadow", "detail": "branches"})
            for index in range(len(self._problems))
        ]
        results = self._engine.run_batch(shadow)
        return {
            "step_times": rows,
            "programs": list(map(self._recorded, range(len(shadow)), results)),
        }

    def _recorded(self, index: int, result: ProgramResult) -> dict[str, Any]:
        samples = [(one["tokens"], one["answer"]) for one in result.report["branch_details"]]
        prompt = len(self._prompts[index])
        gold = self._problems[index].gold
        return {"id": f"p{index}", "prompt_tokens": prompt, "gold": gold, "samples": samples}

    def serve(self, spec: dict[str, Any]) -> list[list[dict[str, Any]]]:
        """Rows of every run, each from an empty cache; the first is a warm-up."""
        self._engine.run_batch([self._program(index, {}) for index in range(16)])
        return [self._served(arrivals) for arrivals in spec["arrivals"]]

    def _served(self, arrivals: list[float]) -> list[dict[str, Any]]:
        self._engine.flush_cache()
        indices = {f"p{index}": index for index in range(len(arrivals))}
        workload = [
            WorkloadProgram(name, arrival_s, 1, self._problems[index].gold, ((1, ""),))
            for (name, index), arrival_s in zip(indices.items(), arrivals, strict=True)
        ]

        async def run(program: WorkloadProgram) -> dict[str, Any]:
            result = await self._engine.async_run(self._program(indices[program.id], {}))
            return {"answer": result.answer, "tokens": result.completion_tokens}

        return serve(self._engine, workload, run)

    def _program(self, index: int, fields: dict[str, Any]) -> Program:
        problem = self._problems[index]
        return Program(
            input_ids=self._prompts[index],
            sampling_params={
                "temperature": self._temperature,
                "max_new_tokens": MAX_NEW_TOKENS,
                "sampling_seed": problem_seed(problem, 0),
            },
            dynasor={"algorithm": "self_consistency", "max_branches": self._cap, **fields},
        )


def run(spec: dict[str, Any]) -> Any:
    """Do what is asked, and end the engine."""
    real = Real(spec)
    try:
        return real.record(spec) if spec["op"] == "record" else real.serve(spec)
    finally:
        real.close()


if __name__ == "__main__":
    answer(run)
