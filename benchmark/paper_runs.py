"""Simulations of the paper's evaluation: their specs, and the processes that run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paper_systems import System
from paper_workloads import Device, PaperProgram, Workload

HERE = Path(__file__).parent
ROUND_TRIP_S = 0.02  # of a client that drives its own programs, each round
OUTPUT_S = 0.002  # from the scheduler to the client


@dataclass(frozen=True, slots=True)
class Setup:
    """How a simulation is run: `extra_ms` on each step, one step for `coarse` of them."""

    device: Device
    extra_ms: float = 0.0
    coarse: int = 8


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one run of programs: seconds, tokens and whether each was right."""

    latencies: list[float]
    tokens: list[float]
    right: list[bool]
    digest: str

    @property
    def mean_s(self) -> float:
        return sum(self.latencies) / len(self.latencies)

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def mean_tokens(self) -> float:
        return sum(self.tokens) / len(self.tokens)


def spec_of(
    work: Workload, programs: Sequence[PaperProgram], system: System, setup: Setup
) -> dict[str, Any]:
    """What `paper_worker` runs."""
    device = setup.device
    return {
        "engine": "virtual",
        "workload": [asdict(entry.program) for entry in programs],
        "system": asdict(system),
        "detect": work.detect,
        "threshold": work.threshold,
        "cap": work.cap,
        "coarse": setup.coarse,
        "step_times": {
            "hardware": device.hardware,
            "model": device.model,
            "extra_ms": setup.extra_ms,
        },
        "kv_tokens": device.kv_tokens,
        "max_running": device.max_running,
        "max_new_tokens": device.max_new_tokens,
        "chunked_prefill": device.chunked_prefill,
        "output_s": OUTPUT_S,
        "host_s": 0.0,
        "rtt_s": ROUND_TRIP_S,
    }


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


def served(spec: dict[str, Any]) -> Served:
    """Run one simulation."""
    reply = asked("paper_worker.py", spec)
    rows = reply["rows"]
    return Served(
        [row["latency_s"] for row in rows],
        [spec["coarse"] * row["tokens"] for row in rows],
        [row["is_right"] for row in rows],
        reply["digest"],
    )


def served_all(specs: Sequence[dict[str, Any]], jobs: int) -> list[Served]:
    """Run simulations side by side, in the order given."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(served, specs))
