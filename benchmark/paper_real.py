"""The tiny reasoner in real time, in a process of its own: what the virtual clock has to predict.

    python benchmark/paper_real.py '{"settings": {...}, ...}'    (started by paper.py --validate)

Takes commands on stdin and answers each with one line of JSON on stdout. `op` samples tells what
every branch of every problem generates; `op` serve runs problems at given arrivals, and tells how
long the passes of the engine took meanwhile.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from paper_systems import register_static
from recorded_engine import RecordedEngine, recorded
from sglang_dynasor.demo import load_problems, problem_seed
from sglang_dynasor.models import recommended_temperature, resolve_model
from sglang_dynasor.platforms import activate
from sglang_dynasor.programs import Program, ProgramResult
from sglang_dynasor.simulate import WorkloadProgram, serve
from worker_replies import reply_stream, serve_commands

MODEL = "tiny_reasoner"
MAX_NEW_TOKENS = 256
WARM_UP = 16  # programs
DETECT = 5  # branches of a program's first round, where it runs in two


class Real:
    """An engine with one policy, and the problems it is asked."""

    def __init__(self, spec: dict[str, Any], log: Path) -> None:
        model = resolve_model(MODEL)
        self._cap: int = spec["cap"]
        self._fields: dict[str, Any] = spec["fields"]
        self._problems = load_problems(None, spec["problems"], spec["seed"])
        self._temperature = recommended_temperature(model) or 1.0
        self._log = log
        self._calls: dict[str, tuple[float, float]] = {}
        activate()
        register_static(detect=DETECT, threshold=0.7, cap=self._cap)
        self._engine = RecordedEngine(
            log=log,
            model_path=str(model),
            sampling_backend="keyed",
            max_running_requests=spec["max_running"],
            max_total_tokens=spec["kv_tokens"],
            sleep_on_idle=True,  # while the other policies have their turn
            dynasor={"equality_time_limit_ms": 0, **spec["settings"]},
        )
        self._note_calls()
        tokenizer = self._engine.tokenizer_manager.tokenizer
        self._prompts = [
            list(
                tokenizer.apply_chat_template(
                    problem.messages, add_generation_prompt=True, return_dict=False
                )
            )
            for problem in self._problems
        ]
        self._engine.run_batch([self._program(index, self._fields) for index in range(WARM_UP)])

    def close(self) -> None:
        self._engine.shutdown()

    def run(self, command: dict[str, Any]) -> Any:
        return self._samples() if command["op"] == "samples" else self._serve(command)

    def _note_calls(self) -> None:
        """When each request is sent and its last output is here, beside upstream's own path."""
        upstream = next(
            kind
            for kind in type(self._engine.tokenizer_manager).__mro__
            if kind.__module__.startswith("sglang.") and "generate_request" in vars(kind)
        )
        generate, calls = upstream.generate_request, self._calls

        async def generate_request(manager: Any, obj: Any, *args: Any) -> AsyncIterator[Any]:
            sent = time.perf_counter()
            async for output in generate(manager, obj, *args):
                yield output
            calls[obj.rid] = sent, time.perf_counter()

        upstream.generate_request = generate_request

    def _samples(self) -> list[dict[str, Any]]:
        """The problems as programs whose samples are those generated."""
        fields = {"mode": "shadow", "detail": "branches"}
        every = range(len(self._problems))
        results = self._engine.run_batch([self._program(index, fields) for index in every])
        return list(map(self._recorded, every, results))

    def _recorded(self, index: int, result: ProgramResult) -> dict[str, Any]:
        samples = [(one["tokens"], one["answer"]) for one in result.report["branch_details"]]
        prompt = len(self._prompts[index])
        gold = self._problems[index].gold
        return {"id": f"p{index}", "prompt_tokens": prompt, "gold": gold, "samples": samples}

    def _serve(self, command: dict[str, Any]) -> dict[str, Any]:
        """From an empty cache: rows of the programs, and of passes and requests meanwhile.

        `came_s` is what a request took to the scheduler if those before it had to be through, and
        `went_s` what its last output took back, in order.
        """
        self._engine.flush_cache()
        recorded(self._log)
        self._calls.clear()
        indices, arrivals = command["problems"], command["arrivals"]
        workload = [
            WorkloadProgram(f"p{index}", arrival_s, 1, self._problems[index].gold, ((1, ""),))
            for index, arrival_s in zip(indices, arrivals, strict=True)
        ]

        async def run(program: WorkloadProgram) -> dict[str, Any]:
            program_of_it = self._program(int(program.id[1:]), self._fields)
            result = await self._engine.async_run(program_of_it)
            return {"answer": result.answer, "tokens": result.completion_tokens}

        begin = time.perf_counter()
        rows = serve(self._engine, workload, run)
        time.sleep(0.5)  # the log is written once the scheduler has nothing left
        found = recorded(self._log)
        came_s, went_s = [], []
        before = 0.0
        for rid, at in sorted(found.came.items(), key=lambda pair: pair[1]):
            if rid in self._calls:
                came_s.append(at - max(self._calls[rid][0], before))
            before = at
        for rid, at in found.went.items():
            if rid in self._calls:
                went_s.append(self._calls[rid][1] - at)
        steps = {
            kind: [(size, ms, at - begin) for size, ms, at in passes]
            for kind, passes in found.steps.items()
        }
        return {"rows": rows, "steps": steps, "came_s": came_s, "went_s": went_s}

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


def main() -> None:
    """Serve commands until stdin ends."""
    replies = reply_stream()
    with tempfile.TemporaryDirectory() as folder:
        real = Real(json.loads(sys.argv[1]), Path(folder) / "steps.jsonl")
        try:
            serve_commands(replies, real.run)
        finally:
            real.close()


if __name__ == "__main__":
    main()
