"""Simulations of the paper's evaluation: their specs, and the processes that run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paper_systems import System
from paper_trees import SearchWorkload
from paper_workloads import Device, PaperProgram, Workload
from worker_replies import reply_stream

HERE = Path(__file__).parent
ROUND_TRIP_S = 0.02  # of a client that drives its own programs, each round
OUTPUT_S = 0.002  # from the scheduler to the client


@dataclass(frozen=True, slots=True)
class Setup:
    """How a simulation is run: `extra_ms` on each step, one step for `coarse` of them.

    `measured` are step times in place of the device's: points of decode and of prefill passes.
    """

    device: Device
    extra_ms: float = 0.0
    coarse: int = 8
    measured: Sequence[Sequence[tuple[float, float]]] | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one run of programs: seconds, tokens and whether each was right."""

    latencies: list[float]
    tokens: list[float]
    right: list[bool]

    @property
    def mean_s(self) -> float:
        return sum(self.latencies) / len(self.latencies)

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def mean_tokens(self) -> float:
        return sum(self.tokens) / len(self.tokens)


def simulation(
    work: Workload | SearchWorkload,
    programs: Sequence[PaperProgram],
    system: System,
    step_times: dict[str, Any],
    **limits: Any,
) -> dict[str, Any]:
    """What `paper_worker` runs: at full resolution, and nothing takes time but the device.

    `limits` are those of the device, and whatever is to be otherwise.
    """
    paper = None
    if isinstance(work, Workload):
        paper = {"detect": work.detect, "threshold": work.threshold, "cap": work.cap}
    return {
        "engine": "virtual",
        "workload": [asdict(entry.program) for entry in programs],
        "trees": {entry.program.id: asdict(entry.tree) for entry in programs if entry.tree},
        "system": asdict(system),
        "paper": paper,
        "cap": work.cap,
        "coarse": 1,
        "step_times": step_times,
        "input_s": 0.0,
        "output_s": 0.0,
        "host_s": 0.0,
        "blocks": False,
        "rtt_s": 0.0,
        **limits,
    }


def spec_of(
    work: Workload | SearchWorkload,
    programs: Sequence[PaperProgram],
    system: System,
    setup: Setup,
) -> dict[str, Any]:
    """A simulation on the modelled device."""
    limits = asdict(setup.device)
    modelled = {
        "hardware": limits.pop("hardware"),
        "model": limits.pop("model"),
        "extra_ms": setup.extra_ms,
    }
    step_times = modelled if setup.measured is None else {"rows": setup.measured}
    times = {"coarse": setup.coarse, "output_s": OUTPUT_S, "rtt_s": ROUND_TRIP_S}
    return simulation(work, programs, system, step_times, **limits, **times)


def asked(script: str, spec: dict[str, Any], hash_seed: int = 0) -> Any:
    """Have a script of this folder answer a spec. Raises RuntimeError with what it said."""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / script)],
        input=json.dumps(spec),
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(f"{script} ended with {done.returncode}: {done.stderr[-3000:]}")
    return json.loads(done.stdout)


def answer(run: Callable[[dict[str, Any]], Any]) -> None:
    """In such a script: read the spec, and reply."""
    replies = reply_stream()
    replies.write(json.dumps(run(json.load(sys.stdin))))
    replies.flush()


def served(spec: dict[str, Any]) -> Served:
    """Run one simulation."""
    rows = asked("paper_worker.py", spec)["rows"]
    return Served(
        [row["latency_s"] for row in rows],
        [spec["coarse"] * row["tokens"] for row in rows],
        [row["is_right"] for row in rows],
    )


def served_all(specs: Sequence[dict[str, Any]], jobs: int) -> list[Served]:
    """Run simulations side by side, in the order given."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(served, specs))
