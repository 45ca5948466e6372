"""One simulation in a process of its own: a spec as JSON on stdin, a row per program on stdout.

`coarse` N lets one step stand for N: lengths and pool are divided by N, step times multiplied. The
scheduler then decides N times as rarely, and a run takes a fraction of the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paper_runs import answer
from paper_systems import System, register_static
from paper_trees import Tree, TreeScript
from serving_clients import OwnNodes, answers_of, own_vote
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.demo import Problem
from sglang_dynasor.managers.node_paths import NodePaths, Tokens
from sglang_dynasor.models import resolve_model
from sglang_dynasor.platforms.virtual_clock.step_times import (
    AIConfiguratorStepTimes,
    LinearStepTimes,
    MeasuredStepTimes,
    StepTimes,
)
from sglang_dynasor.programs import Start, run_program
from sglang_dynasor.simulate import (
    WorkloadProgram,
    prompt_of,
    script_of,
    serve,
    simulate,
    simulated_engine,
    summary,
)
from stub_engine import StubEngine

FEWEST_TOKENS = 8  # what an answer takes
BRANCH = "~"  # between a program and its branch in the ids of a client's own requests


@dataclass(frozen=True, slots=True)
class CoarseStepTimes:
    """One step for `factor` of them."""

    inner: StepTimes
    factor: int

    def decode_ms(self, batch: int, mean_context: float) -> float:
        return self.factor * self.inner.decode_ms(batch, self.factor * mean_context)

    def prefill_ms(self, batch: int, mean_new: float, mean_past: float) -> float:
        return self.inner.prefill_ms(batch, self.factor * mean_new, self.factor * mean_past)


@dataclass(slots=True)
class DriftingStepTimes:
    """Steps of a machine that is not always as fast: a factor for each `window_s` of the run."""

    inner: StepTimes
    window_s: float
    factors: Sequence[float]
    now: Callable[[], float] = float  # seconds; set once there is a clock

    def _factor(self) -> float:
        return self.factors[min(int(self.now() / self.window_s), len(self.factors) - 1)]

    def decode_ms(self, batch: int, mean_context: float) -> float:
        return self._factor() * self.inner.decode_ms(batch, mean_context)

    def prefill_ms(self, batch: int, mean_new: float, mean_past: float) -> float:
        return self._factor() * self.inner.prefill_ms(batch, mean_new, mean_past)


def step_times_of(spec: dict[str, Any], coarse: int) -> StepTimes:
    """`spec` is one of {"linear": [...]}, {"rows": [decode, prefill]}, {"hardware": ...}.

    With {"drift": [window_s, factors]} the machine's speed changes on the way.
    """
    times: StepTimes
    if "linear" in spec:
        times = LinearStepTimes(*spec["linear"])
    elif "rows" in spec:
        times = MeasuredStepTimes(*([tuple(row) for row in rows] for rows in spec["rows"]))
    else:
        times = AIConfiguratorStepTimes(spec["model"], spec["hardware"], 1, spec["extra_ms"])
    if coarse != 1:
        times = CoarseStepTimes(times, coarse)
    return DriftingStepTimes(times, *spec["drift"]) if "drift" in spec else times


def coarsened(program: WorkloadProgram, factor: int) -> WorkloadProgram:
    samples = [
        (
            max(FEWEST_TOKENS, round(n_tokens / factor)),
            answer,
            *([(round(tokens / factor), early) for tokens, early in each] for each in interim),
        )
        for n_tokens, answer, *interim in program.samples
    ]
    prompt = max(1, round(program.prompt_tokens / factor))
    return replace(program, prompt_tokens=prompt, samples=samples)


def requests_of(workload: Sequence[WorkloadProgram]) -> list[WorkloadProgram]:
    """Every branch as a program of its own, as the engine sees a client's own requests."""
    return [
        replace(program, id=f"{program.id}{BRANCH}{number}", samples=[sample])
        for program in workload
        for number, sample in enumerate(program.samples)
    ]


def client_loop(
    engine: Any, workload: Sequence[WorkloadProgram], cap: int, limit: int, round_trip_s: float
) -> list[dict[str, Any]]:
    """Every program driven by its own client, on ordinary requests a round trip away."""
    tokenizer = engine.tokenizer_manager.tokenizer
    tokens = Tokens(
        lambda text: list(tokenizer.encode(text, add_special_tokens=False)), tokenizer.decode
    )
    config = DynasorConfig(equality_time_limit_ms=0)

    async def run(program: WorkloadProgram) -> dict[str, Any]:
        async def generate(start: Start, ids: list[int], rid: str) -> dict[str, Any]:
            await asyncio.sleep(round_trip_s)
            params = {"temperature": 1.0, "max_new_tokens": limit}
            output: dict[str, Any] = await engine.async_generate(
                input_ids=ids, sampling_params=params, rid=rid
            )
            return output

        timed = own_vote("loop", cap)
        nodes = OwnNodes(
            NodePaths(prompt_of(program), tokens),
            generate,
            engine.tokenizer_manager.abort_request,
            lambda node: f"{program.id}{BRANCH}{node}",
        )
        problem = Problem(program.id, None, "", program.gold, "")
        done = await run_program(timed, nodes, answers_of(problem, config, None))
        parts = [*done.finished.values(), *done.cancelled.values()]
        return {
            "answer": done.outcome.answer,
            "stop_reason": done.outcome.stop_reason,
            "tokens": sum(part.n_tokens for part in parts),
            "branches": len(done.finished),
        }

    return serve(engine, workload, run)


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Simulate: a row per program, a digest that equal runs share, and the number of steps."""
    coarse, system = spec["coarse"], System(**spec["system"])
    workload = [coarsened(WorkloadProgram(**given), coarse) for given in spec["workload"]]
    if spec["paper"] is not None:
        register_static(**spec["paper"])
    times = step_times_of(spec["step_times"], coarse)
    limit = max(1, spec["max_new_tokens"] // coarse)
    if spec["engine"] == "stub":
        return {"rows": in_real_time(spec, workload, times, system, limit)}
    with simulated_engine(
        _script(spec, workload, system, coarse),
        times,
        kv_tokens=spec["kv_tokens"] // coarse,
        max_running=spec["max_running"],
        settings=dict(system.settings),
        chunked_prefill_size=spec["chunked_prefill"] // coarse,
        input_s=spec["input_s"],
        output_s=spec["output_s"],
        host_s=spec["host_s"],
        blocks=spec["blocks"],
    ) as engine:
        if isinstance(times, DriftingStepTimes):
            times.now = engine.loop.time
        if system.client == "loop":
            rows = client_loop(engine, workload, spec["cap"], limit, spec["rtt_s"])
        else:
            rows = simulate(engine, workload, dict(system.fields), limit)
        steps = len(engine.world.model.steps)
    return {"rows": rows, "steps": steps, "digest": summary(rows)["digest"]}


def _script(
    spec: dict[str, Any], workload: Sequence[WorkloadProgram], system: System, coarse: int
) -> Any:
    if not spec["trees"]:
        return script_of(requests_of(workload) if system.client == "loop" else workload)
    lengths = {program.id: program.prompt_tokens for program in workload}
    return TreeScript(
        {
            name: replace(
                Tree(**given),
                prompt_tokens=lengths[name],
                step_tokens=given["step_tokens"] / coarse,
            )
            for name, given in spec["trees"].items()
        }
    )


def in_real_time(
    spec: dict[str, Any],
    workload: Sequence[WorkloadProgram],
    times: StepTimes,
    system: System,
    limit: int,
) -> list[dict[str, Any]]:
    """The same on the ordinary engine, whose model sleeps as long as predicted."""
    warm_up = [replace(program, id=f"warm{program.id}", arrival_s=0.0) for program in workload[:4]]
    engine = StubEngine(
        script=script_of([*workload, *warm_up]),
        step_times=times,
        model_path=str(resolve_model("tiny_reasoner")),
        max_total_tokens=spec["kv_tokens"],
        max_running_requests=spec["max_running"],
        chunked_prefill_size=spec["chunked_prefill"],
        disable_cuda_graph=True,
        dynasor={"equality_time_limit_ms": 0, **system.settings},
    )
    try:
        simulate(engine, warm_up, dict(system.fields), limit)
        engine.flush_cache()
        return simulate(engine, workload, dict(system.fields), limit)
    finally:
        engine.shutdown()


if __name__ == "__main__":
    answer(run)
