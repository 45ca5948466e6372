"""How well the virtual clock predicts: against a stub that sleeps, a real model, and itself.

(a) `stub`: the same scripts and step times in the ordinary engine of several processes, whose model
sleeps as long as predicted. (b) `real`: the tiny reasoner; its step times and samples are recorded
on one run, and runs at other arrivals predicted. (c) `digests`: two runs, two hash seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from scipy.stats import spearmanr

from paper_real import MAX_NEW_TOKENS
from paper_runs import asked, simulation
from paper_systems import System, systems
from paper_workloads import Workload, programs_of, workload
from serving_load import poisson_arrivals
from sglang_dynasor.simulate import WorkloadProgram

STUB_STEPS = {"linear": [20.0, 0.06, 0.00002, 0.02]}  # ms: near an A100's, beyond what hosts take
LIMITS = {"max_new_tokens": 1024, "chunked_prefill": 8192}
STUB_PROGRAMS, STUB_RATE = 60, 1.5
STUB_SYSTEMS = ("lpm_fixed", "full")
REAL: dict[str, Any] = {"problems": 90, "seed": 3, "cap": 16, "max_running": 32, "kv_tokens": 8192}
POLICIES: dict[str, dict[str, Any]] = {
    "lpm": {"policy": "lpm", "draw": "rounds"},
    "gang": {"policy": "gang", "draw": "rounds"},
    "gang-sjf": {"policy": "gang-sjf", "draw": "rounds"},
    "value": {"policy": "value", "draw": "rounds"},
    "full": {},
}
LOADS = (0.5, 0.9, 1.2)


def relative_error(predicted: Sequence[float], real: Sequence[float]) -> float:
    """Mean absolute error over the mean of what is predicted."""
    errors = [abs(a - b) for a, b in zip(predicted, real, strict=True)]
    return statistics.fmean(errors) / statistics.fmean(real)


def stub() -> dict[str, Any]:
    """Per system: error of latencies, and whether tokens and answers are equal."""
    work = replace(workload("sc_gsm8k"), programs=STUB_PROGRAMS, cap=8)
    programs = [entry.program for entry in programs_of(work, STUB_RATE, 0)]
    found = {}
    for name in STUB_SYSTEMS:
        system = systems(work.cap, work.detect)[name]
        limits = {**LIMITS, "kv_tokens": 200_000, "max_running": 128}
        spec = simulation(work, programs, system, STUB_STEPS, **limits)
        virtual = asked("paper_worker.py", spec)["rows"]
        real = asked("paper_worker.py", {**spec, "engine": "stub"})["rows"]
        same = [a["tokens"] == b["tokens"] for a, b in zip(virtual, real, strict=True)]
        found[name] = {
            "latency_error": round(relative_error(*_latencies(virtual, real)), 4),
            "mean_s": [round(statistics.fmean(side), 3) for side in _latencies(virtual, real)],
            "same_tokens": statistics.fmean(same),
            "same_answers": statistics.fmean(
                a["answer"] == b["answer"] for a, b in zip(virtual, real, strict=True)
            ),
        }
    return found


def real() -> dict[str, Any]:
    """Per load: errors, rank correlation and both orders of the policies."""
    recorded = asked("paper_real.py", {**REAL, "op": "record", "settings": {}})
    rows = recorded["step_times"]
    step_times = {
        "rows": [
            [(row["size"], row["ms"]) for row in rows if row["kind"] == kind]
            for kind in ("decode", "prefill")
        ]
    }
    work = replace(workload("sc_gsm8k"), cap=REAL["cap"])
    capacity = _capacity(recorded["programs"], step_times, work)
    arrivals = [poisson_arrivals(REAL["problems"], load * capacity, 5) for load in LOADS]
    means: dict[str, list[tuple[float, float]]] = {}
    pairs: list[tuple[float, float]] = []
    for name, settings in POLICIES.items():
        spec = {**REAL, "op": "serve", "settings": settings, "arrivals": arrivals}
        served = asked("paper_real.py", spec)
        means[name] = []
        for times, rows in zip(arrivals, served, strict=True):
            virtual = _predicted(recorded["programs"], times, settings, step_times, work)
            both = _latencies(virtual, rows)
            pairs += zip(*both, strict=True)
            means[name].append((statistics.fmean(both[0]), statistics.fmean(both[1])))
    predicted, measured = zip(*pairs, strict=True)
    return {
        "capacity": round(capacity, 3),
        "mean_abs_error": round(relative_error(predicted, measured), 4),
        "spearman": round(float(spearmanr(predicted, measured).statistic), 4),
        "means_s": {
            name: [[round(value, 3) for value in pair] for pair in both]
            for name, both in means.items()
        },
        "ranking_kept": [
            _order(means, load, 0) == _order(means, load, 1) for load in range(len(LOADS))
        ],
    }


def digests() -> list[str]:
    """Of two runs with different hash seeds."""
    work = replace(workload("sc_gsm8k"), programs=40)
    programs = [entry.program for entry in programs_of(work, 4.0, 1)]
    system = systems(work.cap, work.detect)["full"]
    limits = {**LIMITS, "kv_tokens": 20_000, "max_running": 64}
    spec = simulation(work, programs, system, STUB_STEPS, **limits)
    return [asked("paper_worker.py", spec, seed)["digest"] for seed in (1, 2)]


PARTS = {"stub": stub, "real": real, "digests": digests}


def validate(parts: Sequence[str]) -> dict[str, Any]:
    """Those of `PARTS`; the errors and the ranking are those of the real model."""
    found: dict[str, Any] = {name: PARTS[name]() for name in parts}
    if "real" in found:
        found["mean_abs_error"] = found["real"]["mean_abs_error"]
        found["spearman"] = found["real"]["spearman"]
        found["ranking_kept"] = all(found["real"]["ranking_kept"])
    if "digests" in found:
        found["deterministic"] = len(set(found["digests"])) == 1
    return found


def _capacity(
    programs: Sequence[dict[str, Any]], step_times: dict[str, Any], work: Workload
) -> float:
    """Programs a second where all of them wait from the start and run to their full vote."""
    settings = {"policy": "lpm"}
    fields = {"mode": "shadow", "grants": str(work.cap)}
    rows = _predicted(programs, [0.0] * len(programs), settings, step_times, work, fields)
    return len(programs) / max(row["latency_s"] for row in rows)


def _predicted(
    programs: Sequence[dict[str, Any]],
    arrivals: Sequence[float],
    settings: dict[str, Any],
    step_times: dict[str, Any],
    work: Workload,
    fields: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    arrived = [
        WorkloadProgram(arrival_s=arrival_s, **program)
        for program, arrival_s in zip(programs, arrivals, strict=True)
    ]
    most = {"algorithm": "self_consistency", "max_branches": work.cap}
    system = System(settings, {**most, **(fields or {})})
    limits = {key: REAL[key] for key in ("max_running", "kv_tokens")}
    limits = {**LIMITS, **limits, "max_new_tokens": MAX_NEW_TOKENS}
    spec = simulation(work, arrived, system, step_times, **limits)
    rows: list[dict[str, Any]] = asked("paper_worker.py", spec)["rows"]
    return rows


def _latencies(*runs: Sequence[dict[str, Any]]) -> tuple[list[float], ...]:
    return tuple([row["latency_s"] for row in rows] for rows in runs)


def _order(means: dict[str, list[tuple[float, float]]], load: int, side: int) -> list[str]:
    return sorted(means, key=lambda name: means[name][load][side])
