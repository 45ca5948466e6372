"""How well the virtual clock predicts: against a stub that sleeps, a real model, and itself.

(a) `stub`: the same scripts and step times in the ordinary engine of several processes, whose model
sleeps as long as predicted. (b) `real`: the tiny reasoner; its step times and samples are recorded
on one run, and runs at other arrivals predicted. (c) `digests`: two runs, two hash seeds.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from paper_real import DETECT, MAX_NEW_TOKENS
from paper_runs import asked, served_all, simulation
from paper_systems import UNIFORM, System, systems
from paper_workloads import PaperProgram, programs_of, votes
from recorded_engine import table
from serving_load import poisson_arrivals
from serving_process import started
from sglang_dynasor.platforms.virtual_clock.step_times import MeasuredStepTimes
from sglang_dynasor.simulate import WorkloadProgram

REAL_SCRIPT = Path(__file__).with_name("paper_real.py")
ANSWER_LIMIT_S = 600.0
JOBS = 2  # simulations side by side
STUB_STEPS = {"linear": [20.0, 0.06, 0.00002, 0.02]}  # ms: near an A100's, beyond what hosts take
LIMITS = {"max_new_tokens": 1024, "chunked_prefill": 8192}
STUB_PROGRAMS, STUB_RATE = 60, 1.5
STUB_SYSTEMS = ("lpm_fixed", "full")
REAL: dict[str, Any] = {"problems": 90, "seed": 3, "cap": 16, "max_running": 32, "kv_tokens": 8192}
SERVED = 60  # of the problems; step times are recorded on the others
RUNS = 3  # of each policy and load, in turn
UNIFORM_ROUNDS = {"algorithm": UNIFORM, "grants": f"{DETECT},{REAL['cap'] - DETECT}"}
POLICIES = {
    **{
        name: System({"policy": name}, {**UNIFORM_ROUNDS, "max_branches": REAL["cap"]})
        for name in ("lpm", "gang", "gang-sjf", "value")
    },
    "full": System({}, {"algorithm": "self_consistency", "max_branches": REAL["cap"]}),
}
LOADS = (0.5, 0.9, 1.2)
WINDOW_S = 0.5  # over which the machine's speed is taken


def relative_error(predicted: Sequence[float], real: Sequence[float]) -> float:
    """Mean absolute error over the mean of what is predicted."""
    errors = [abs(a - b) for a, b in zip(predicted, real, strict=True)]
    return statistics.fmean(errors) / statistics.fmean(real)


def stub() -> dict[str, Any]:
    """Per system: error of latencies, and whether tokens and answers are equal."""
    work = replace(votes("sc_gsm8k"), programs=STUB_PROGRAMS, cap=8)
    programs = programs_of(work, STUB_RATE, 0)
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


@dataclass(frozen=True, slots=True)
class Measured:
    """One policy at one load, run by run: what was recorded, and what was then served."""

    recorded: list[dict[str, Any]]
    served: list[dict[str, Any]]

    @property
    def latencies(self) -> Sequence[list[float]]:
        """Of all programs, by run."""
        return _latencies(*(run["rows"] for run in self.served))

    @property
    def means(self) -> list[float]:
        """Of each program over the runs."""
        return [statistics.fmean(each) for each in zip(*self.latencies, strict=True)]


def real() -> dict[str, Any]:
    """Errors against the mean of the runs, beside how far one run is from the others; ranking.

    `at_its_speed` is the error where the machine is as fast at each moment as it was in that run.
    """
    capacity, samples, arrivals, measured = _measure()
    work = replace(votes("sc_gsm8k"), cap=REAL["cap"], detect=DETECT)
    programs = {
        load: [
            PaperProgram(WorkloadProgram(arrival_s=arrival_s, **sample), 1)
            for sample, arrival_s in zip(samples[:SERVED], arrivals[load], strict=True)
        ]
        for load in LOADS
    }
    specs, drifting = [], []
    for (name, load), found in measured.items():
        host = _host(found.recorded)
        step_times = {"rows": _tables(found.recorded)}
        drift = {"drift": [WINDOW_S, drift_of(found.served[0]["steps"], step_times["rows"])]}
        device = {key: REAL[key] for key in ("max_running", "kv_tokens")}
        limits = {**LIMITS, **device, **host, "max_new_tokens": MAX_NEW_TOKENS, "blocks": True}
        for specs_of, times in ((specs, step_times), (drifting, {**step_times, **drift})):
            specs_of.append(simulation(work, programs[load], POLICIES[name], times, **limits))
    predicted = dict(zip(measured, served_all(specs, JOBS), strict=True))
    at_its_speed = dict(zip(measured, served_all(drifting, JOBS), strict=True))
    means = {
        load: {
            name: [round(statistics.fmean(run), 3) for run in measured[name, load].latencies]
            for name in POLICIES
        }
        for load in LOADS
    }
    foreseen = {load: {name: predicted[name, load].mean_s for name in POLICIES} for load in LOADS}
    everyone = [one for found in measured.values() for one in found.means]
    ours = [one for key in measured for one in predicted[key].latencies]
    first = [one for found in measured.values() for one in found.latencies[0]]
    return {
        "capacity": round(capacity, 3),
        "mean_abs_error": round(relative_error(ours, everyone), 4),
        "spearman": round(float(spearmanr(ours, everyone).statistic), 4),
        "at_its_speed": round(
            relative_error([one for key in measured for one in at_its_speed[key].latencies], first),
            4,
        ),
        "one_run_from_the_others": round(_noise(list(measured.values())), 4),
        "means_s": means,
        "predicted_s": {
            load: {name: round(mean, 3) for name, mean in of.items()}
            for load, of in foreseen.items()
        },
        "same_tokens": round(
            statistics.fmean(
                a == b["tokens"]
                for key, found in measured.items()
                for a, b in zip(predicted[key].tokens, found.served[0]["rows"], strict=True)
            ),
            4,
        ),
        "ranking_kept": [ranked_alike(foreseen[load], means[load]) for load in LOADS],
        "order_equal": [
            sorted(POLICIES, key=lambda name: foreseen[load][name])
            == sorted(POLICIES, key=lambda name: statistics.fmean(means[load][name]))
            for load in LOADS
        ],
    }


def _measure() -> tuple[
    float, list[dict[str, Any]], dict[float, list[float]], dict[tuple[str, float], Measured]
]:
    """Serve for real, all engines alive and in turn, so that a slow minute hits all of them."""
    recorded_ones = list(range(SERVED, REAL["problems"]))
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                started(
                    REAL_SCRIPT,
                    name,
                    {**REAL, "settings": dict(system.settings), "fields": dict(system.fields)},
                    {},
                )
            )
            for name, system in POLICIES.items()
        }

        def ask(name: str, problems: list[int], arrivals: list[float]) -> dict[str, Any]:
            command = {"op": "serve", "problems": problems, "arrivals": arrivals}
            return workers[name].ask(command, ANSWER_LIMIT_S)

        samples = workers["lpm"].ask({"op": "samples"}, ANSWER_LIMIT_S)
        together = ask("lpm", recorded_ones, [0.0] * len(recorded_ones))["rows"]
        capacity = len(recorded_ones) / max(row["latency_s"] for row in together)
        arrivals = {load: poisson_arrivals(SERVED, load * capacity, 5) for load in LOADS}
        others = {load: poisson_arrivals(len(recorded_ones), load * capacity, 6) for load in LOADS}
        measured = {(name, load): Measured([], []) for name in POLICIES for load in LOADS}
        for number, load in product(range(RUNS), LOADS):
            names = list(POLICIES)
            for name in names if number % 2 else reversed(names):
                found = measured[name, load]
                found.recorded.append(ask(name, recorded_ones, others[load]))
                found.served.append(ask(name, list(range(SERVED)), arrivals[load]))
    return capacity, samples, arrivals, measured


def _tables(recorded: Sequence[dict[str, Any]]) -> list[list[tuple[float, float]]]:
    return [
        table(one for run in recorded for one in run["steps"][kind])
        for kind in ("decode", "prefill")
    ]


def _host(recorded: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What lies between clients and scheduler."""
    return {
        "input_s": statistics.median(one for run in recorded for one in run["came_s"]),
        "output_s": statistics.fmean(one for run in recorded for one in run["went_s"]),
    }


def drift_of(
    steps: dict[str, list[list[float]]], rows: Sequence[Sequence[tuple[float, float]]]
) -> list[float]:
    """How long the passes took over how long they should have, for each `WINDOW_S` of a run."""
    expected = MeasuredStepTimes(*rows)
    took: Counter[int] = Counter()
    due: Counter[int] = Counter()
    for kind, passes in steps.items():
        for size, ms, at in passes:
            window = int(at / WINDOW_S)
            took[window] += ms
            due[window] += (
                expected.decode_ms(size, 0) if kind == "decode" else expected.prefill_ms(1, size, 0)
            )
    factors: list[float] = []
    for window in range(max(took) + 1):
        before = factors[-1] if factors else 1.0
        factors.append(took[window] / due[window] if due[window] else before)
    return factors


def ranked_alike(predicted: dict[str, float], real: dict[str, list[float]]) -> bool:
    """Whether no two policies that differ by more than their runs do are foreseen the other way.

    Runs are paired, for they took turns: two differ if all of their runs say so.
    """
    for one, other in combinations(real, 2):
        gaps = [a - b for a, b in zip(real[one], real[other], strict=True)]
        sign = predicted[one] - predicted[other]
        if min(gaps) > 0 > sign or max(gaps) < 0 < sign:
            return False
    return True


def _noise(measured: Sequence[Measured]) -> float:
    """The error of foreseeing each run by the mean of the others."""
    errors = []
    for number in range(RUNS):
        own = [one for found in measured for one in found.latencies[number]]
        others = [
            statistics.fmean(each)
            for found in measured
            for each in zip(*found.latencies[:number], *found.latencies[number + 1 :], strict=True)
        ]
        errors.append(relative_error(others, own))
    return statistics.fmean(errors)


def digests() -> list[str]:
    """Of two runs with different hash seeds."""
    work = replace(votes("sc_gsm8k"), programs=40)
    programs = programs_of(work, 4.0, 1)
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


def _latencies(*runs: Sequence[dict[str, Any]]) -> tuple[list[float], ...]:
    return tuple([row["latency_s"] for row in rows] for rows in runs)
