"""`sglang-dynasor simulate`: a workload on hardware that is not here, by the real scheduler."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.models import resolve_model
from sglang_dynasor.offline.traces import read_lines
from sglang_dynasor.programs import Program, ProgramResult, ProgramSpec
from sglang_dynasor.run import json_object

FIRST_ID = 3  # of the stand-in model's tokens that are no marks
LABEL = "virtual: real scheduler, predicted steps"


@dataclass(frozen=True, slots=True)
class WorkloadProgram:
    """A program that arrives at `arrival_s`; its branch i generates sample i.

    A sample is its tokens and its answer; where it is probed on its way, a third entry gives the
    answers it had, each with the tokens from which on.
    """

    id: str
    arrival_s: float
    prompt_tokens: int
    gold: str
    samples: Sequence[tuple[int, str] | tuple[int, str, Sequence[tuple[int, str]]]]


def add_parser(commands: Any) -> None:
    """Add the subcommand to what `ArgumentParser.add_subparsers` returned."""
    parser = commands.add_parser("simulate", help="serve a workload on predicted hardware")
    parser.add_argument(
        "--workload",
        type=Path,
        required=True,
        help="JSON lines: id, arrival_s, prompt_tokens, gold, samples [{n_tokens, answer, "
        "interim [{tokens, answer}]}]; interim answers are those of probes",
    )
    steps = parser.add_mutually_exclusive_group(required=True)
    steps.add_argument("--hardware", help="such as a100_sxm; needs aiconfigurator-core")
    steps.add_argument("--step-times", type=Path, help="CSV of benchmark/step_times.py")
    parser.add_argument(
        "--model", default="meta-llama/Meta-Llama-3.1-8B", help="modelled; with --hardware"
    )
    parser.add_argument("--tp", type=int, default=1, help="with --hardware")
    parser.add_argument(
        "--extra-ms", type=float, default=0.0, help="on each step, as real ones have"
    )
    parser.add_argument("--kv-tokens", type=int, default=200_000, help="of the modelled device")
    parser.add_argument("--max-running", type=int, default=256, help="requests side by side")
    parser.add_argument(
        "--fields",
        type=json_object,
        default={"algorithm": "self_consistency"},
        help="of `dynasor`, as JSON",
    )
    parser.add_argument("--settings", type=json_object, default={}, help="of the server, as JSON")
    parser.add_argument("--out", type=Path, help="JSON lines, one per program")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Simulate; the last line of stdout is one JSON object. Raises ValueError for bad input."""
    workload = read_workload(options.workload)
    fields, settings = options.fields, options.settings
    config = DynasorConfig.parse(settings)
    ProgramSpec.parse(fields).resolve(config)
    step_times = _step_times(options)
    console = Console(stderr=True)
    console.print(f"{len(workload)} programs on {options.hardware or options.step_times}")
    with simulated_engine(
        script_of(workload),
        step_times,
        kv_tokens=options.kv_tokens,
        max_running=options.max_running,
        settings=settings,
    ) as engine:
        rows = simulate(engine, workload, fields)
        steps = len(engine.world.model.steps)
    if options.out is not None:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(json.dumps(summary(rows) | {"steps": steps, "label": LABEL}))
    return 0


def read_workload(path: Path) -> list[WorkloadProgram]:
    """Read a workload. Raises ValueError naming file, line and what is wrong."""
    workload = [_parse(line, f"{path}:{number}") for number, line in read_lines(path)]
    if not workload:
        raise ValueError(f"{path}: has no programs")
    return workload


def _parse(line: bytes, place: str) -> WorkloadProgram:
    try:
        given = json.loads(line)
        program = WorkloadProgram(
            id=str(given["id"]),
            arrival_s=float(given["arrival_s"]),
            prompt_tokens=int(given["prompt_tokens"]),
            gold=str(given["gold"]),
            samples=[_sample(each) for each in given["samples"]],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: {type(error).__name__}: {error}") from None
    positive = [program.prompt_tokens, *(sample[0] for sample in program.samples)]
    if min(positive) < 1 or not program.samples or not 0 <= program.arrival_s < math.inf:
        raise ValueError(f"{place}: needs samples, counts of at least 1 and arrival_s from 0 on")
    return program


def _sample(given: dict[str, Any]) -> tuple[int, str, list[tuple[int, str]]]:
    interim = [(int(each["tokens"]), str(each["answer"])) for each in given.get("interim", ())]
    if interim != sorted(interim, key=lambda entry: entry[0]):
        raise ValueError("interim: must be in the order of tokens")
    return int(given["n_tokens"]), str(given["answer"]), interim


def script_of(workload: Sequence[WorkloadProgram]) -> Any:
    """What a model generates that answers as the workload says."""
    from sglang_dynasor.platforms.virtual_clock.script import Branch, RecordedScript

    return RecordedScript(
        {program.id: [Branch(*sample) for sample in program.samples] for program in workload},
        {program.id: program.prompt_tokens for program in workload},
    )


def simulated_engine(
    script: Any,
    step_times: Any,
    *,
    kv_tokens: int,
    max_running: int,
    settings: dict[str, Any],
    **flags: Any,
) -> Any:
    """A virtual engine that generates what the script says; a context manager.

    `flags` are further ones of VirtualEngine or SGLang.
    """
    from sglang_dynasor.platforms.virtual_clock.engine import VirtualEngine

    return VirtualEngine(
        step_times=step_times,
        script=script,
        model_path=str(resolve_model("tiny_reasoner")),
        max_total_tokens=kv_tokens,
        max_running_requests=max_running,
        # Algebra is a matter of real time; the answers here are scripted.
        dynasor={"equality_time_limit_ms": 0, **settings},
        **flags,
    )


Run = Callable[[WorkloadProgram], Awaitable[dict[str, Any]]]


def simulate(
    engine: Any,
    workload: Sequence[WorkloadProgram],
    fields: dict[str, Any],
    max_new_tokens: int | None = None,
) -> list[dict[str, Any]]:
    """Serve the workload at its arrival times; one row per program, in order.

    Each request allows `max_new_tokens`; None: a little more than the longest of its program.
    """

    async def run(program: WorkloadProgram) -> dict[str, Any]:
        most = max_new_tokens or 16 + max(sample[0] for sample in program.samples)
        result: ProgramResult = await engine.async_run(
            Program(
                input_ids=prompt_of(program),
                sampling_params={"temperature": 1.0, "max_new_tokens": most},
                dynasor={**fields, "program_id": program.id},
            )
        )
        return {
            "answer": result.answer,
            "stop_reason": result.stop_reason,
            "tokens": result.completion_tokens,
            "branches": result.report["branches"]["finished"],
        }

    return serve(engine, workload, run)


def serve(engine: Any, workload: Sequence[WorkloadProgram], run: Run) -> list[dict[str, Any]]:
    """Run each program once it has arrived, on whichever clock the engine's loop has."""

    async def serve_one(program: WorkloadProgram, begin: float) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(begin + program.arrival_s - loop.time())
        row = await run(program)
        return {
            "id": program.id,
            "arrival_s": program.arrival_s,
            "latency_s": round(loop.time() - begin - program.arrival_s, 6),
            "is_right": row["answer"] == program.gold,
            **row,
        }

    async def serve_all() -> list[dict[str, Any]]:
        begin = asyncio.get_running_loop().time()
        return list(await asyncio.gather(*(serve_one(program, begin) for program in workload)))

    rows: list[dict[str, Any]] = engine.loop.run_until_complete(serve_all())
    return rows


def prompt_of(program: WorkloadProgram) -> list[int]:
    """Its token ids: what its id hashes to, over and over, so that no two share a prefix."""
    digest = hashlib.blake2b(program.id.encode()).hexdigest()
    ids = [FIRST_ID + int(digit, 16) for digit in digest]
    return [ids[index % len(ids)] for index in range(program.prompt_tokens)]


def nearest_rank(ordered: Sequence[float], share: float) -> float:
    """The least of the sorted values that this share of them, above 0, does not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means, percentiles, and a digest that two equal runs share."""
    latencies = sorted(row["latency_s"] for row in rows)
    count = len(rows)
    return {
        "programs": count,
        "mean_latency_s": round(sum(latencies) / count, 4),
        "p90_latency_s": nearest_rank(latencies, 0.9),
        "p99_latency_s": nearest_rank(latencies, 0.99),
        "accuracy": round(sum(row["is_right"] for row in rows) / count, 4),
        "tokens": round(sum(row["tokens"] for row in rows) / count, 2),
        "digest": hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16],
    }


def _step_times(options: argparse.Namespace) -> Any:
    from sglang_dynasor.platforms.virtual_clock.step_times import (
        AIConfiguratorStepTimes,
        MeasuredStepTimes,
    )

    if options.step_times is not None:
        return MeasuredStepTimes.read(options.step_times)
    return AIConfiguratorStepTimes(options.model, options.hardware, options.tp, options.extra_ms)
