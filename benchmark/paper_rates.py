"""Rates, deadlines and seconds of the paper's systems on one workload: Figures 8, 19 and 20."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from rich.console import Console

from paper_report import draw_rates, draw_scales, write_rows
from paper_runs import Served, Setup, served, spec_of
from paper_systems import systems_of, with_fixed_knob
from paper_trees import SearchWorkload
from paper_workloads import (
    PaperProgram,
    Workload,
    assumptions,
    device,
    equal_knob,
    programs_of,
    variation,
    varied,
    workload,
)
from serving_load import (
    TARGET_ATTAINMENT,
    counted_from,
    highest_rate,
    poisson_arrivals,
    trace_arrivals,
)
from serving_report import facts
from sglang_dynasor.platforms.virtual_clock.step_times import MeasuredStepTimes
from sglang_dynasor.simulate import nearest_rank

# Whose highest rate is searched, and where the search begins, in multiples of --first-rate.
RATED = {
    "lpm_fixed": 1.0,
    "parrot": 1.0,
    "fixed_equal": 2.0,
    "client_side": 3.0,
    "certaindex_sjf": 2.0,
    "stop_lpm": 4.0,
    "full_lpm": 4.0,
    "full_gang": 4.0,
    "full_value": 4.0,
    "full": 4.0,
}
LOW_RATES = (0.1, 0.25, 0.5, 1.0)  # of lpm_fixed's highest, at which ours must not be slower
UNVARIED = ("programs", "rate", "cap")  # how much is asked, not what is assumed of the world
COARSE = 8  # steps of a vote's branches that one stands for; those of a search are too short
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # of the programs, whose deadline is told


def setup_of(options: argparse.Namespace, work: Workload | SearchWorkload) -> Setup:
    """The modelled device, or the table of measured steps that the user has."""
    coarse = options.coarse or (COARSE if isinstance(work, Workload) else 1)
    if options.step_times is None:
        return Setup(device(), options.extra_ms, coarse)
    steps = MeasuredStepTimes.read(options.step_times)
    return Setup(device(), 0.0, coarse, (steps.decode, steps.prefill))


class Study:
    """One workload, its systems and one arrival seed."""

    def __init__(
        self,
        work: Workload | SearchWorkload,
        options: argparse.Namespace,
        seed: int,
        console: Console,
    ) -> None:
        self.work = work
        self._options = options
        self._setup = setup_of(options, work)
        self.seed = seed
        self._console = console
        self.systems = systems_of(work)
        self._made = programs_of(work, 1.0, seed)  # problems are the same at every rate
        self.knob = equal_knob(work, self._made)
        self.systems["fixed_equal"] = with_fixed_knob(self.systems["lpm_fixed"], self.knob)
        self.rows: list[dict[str, Any]] = []

    def _programs(self, rate: float) -> list[PaperProgram]:
        count = math.ceil(60 * self._options.minutes * rate)
        arrivals = (
            poisson_arrivals(count, rate, self.seed)
            if self._options.arrivals is None
            else trace_arrivals(self._options.arrivals, count, rate, self.seed)
        )
        if len(self._made) < count:
            self._made = programs_of(replace(self.work, programs=count), 1.0, self.seed)
        return [
            replace(entry, program=replace(entry.program, arrival_s=arrival_s))
            for entry, arrival_s in zip(self._made, arrivals, strict=False)
        ]

    def at(self, name: str, rate: float) -> dict[str, Any]:
        """One run: attainment, seconds, tokens and accuracy of the programs that count."""
        for known in self.rows:
            if (known["system"], known["rate"]) == (name, round(rate, 4)):
                return known
        made = self._programs(rate)
        result = served(spec_of(self.work, made, self.systems[name], self._setup))
        row = {"system": name, "rate": round(rate, 4), "seed": self.seed}
        row |= figures(made, result, self.work, counted_from(len(made)))
        self.rows.append(row)
        self._console.print(
            f"{name} at {rate:.2f}/s: mean {row['mean_s']:.1f} s, attainment "
            f"{row['attainment']:.1%}, {row['tokens']:.0f} tokens"
        )
        return row

    def highest(self, name: str, first: float | None = None) -> float:
        """The highest rate of one system, searched from `first` on."""
        first = first or self._options.first_rate * RATED[name]
        points = {first: self.at(name, first)["attainment"]}
        return highest_rate(lambda rate: self.at(name, rate)["attainment"], points)


def figures(
    made: Sequence[PaperProgram], result: Served, work: Workload | SearchWorkload, first: int
) -> dict[str, Any]:
    """What is reported of a run; programs before `first` find an emptier engine and don't count.

    `scale_NN` is the scale of deadlines that NN% would meet, `pace_NN` the seconds per token of
    output (Themis' finish-time fairness) that NN% don't exceed.
    """
    loads = sorted(
        [
            latency / (work.deadline_s * entry.difficulty)
            for entry, latency in zip(made, result.latencies, strict=True)
        ][first:]
    )
    latencies = sorted(result.latencies[first:])
    paces = sorted(
        [
            latency / max(1, tokens)
            for latency, tokens in zip(result.latencies, result.tokens, strict=True)
        ][first:]
    )
    return {
        "attainment": sum(load <= 1 for load in loads) / len(loads),
        "slo_scale": nearest_rank(loads, TARGET_ATTAINMENT),
        "mean_s": statistics.fmean(latencies),
        "p90_s": nearest_rank(latencies, 0.9),
        "p99_s": nearest_rank(latencies, 0.99),
        "tokens": statistics.fmean(result.tokens[first:]),
        "accuracy": statistics.fmean(result.right[first:]),
        "size_cv": variation(result.tokens[first:]),
        **{f"scale_{100 * share:.0f}": nearest_rank(loads, share) for share in SHARES},
        **{f"pace_{100 * share:.0f}": nearest_rank(paces, share) for share in SHARES},
    }


def sweep(name: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Highest rates and what they come to."""
    studies = [Study(workload(name), options, seed, console) for seed in range(options.seeds)]
    rates = _highest_rates(studies, options)
    gains = {
        system: round(
            statistics.geometric_mean(
                ours / theirs for ours, theirs in zip(rates["full"], rates[system], strict=True)
            ),
            3,
        )
        for system in rates
    }
    found = {
        "workload": name,
        "fixed_equal_knob": [study.knob for study in studies],
        "highest_rates": {key: [round(rate, 3) for rate in value] for key, value in rates.items()},
        "rate_gain_vs_lpm": gains["lpm_fixed"],
        "rate_gain_vs_parrot": gains.get("parrot"),
        "rate_gain_vs_equal_fixed": gains.get("fixed_equal"),
        "rate_gain_vs_client": gains.get("client_side"),
        "rate_gain_vs_paper_policy": gains.get("certaindex_sjf"),
        "rate_gain_vs_gang": gains.get("full_gang"),
        "rate_gain_vs_value": gains.get("full_value"),
        **_shares(rates),
        **_at_low_rates(studies, rates, options.jobs),
    }
    rows = [row for study in studies for row in study.rows]
    write_rows(options.output_dir / f"paper_{name}.csv", rows, facts(options))
    draw_rates(options.output_dir / f"paper_{name}_rates.png", name, rows)
    middle = rates["lpm_fixed"][0]
    draw_scales(options.output_dir / f"paper_{name}_scales.png", name, rows, middle)
    return found


def _highest_rates(studies: Sequence[Study], options: argparse.Namespace) -> dict[str, list[float]]:
    known = studies[0].systems
    rated = [name for name in RATED if name in known and name in (options.systems or known)]
    searches = [(study, system) for study in studies for system in rated]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = pool.map(lambda search: search[0].highest(search[1]), searches)
        rates: dict[str, list[float]] = {system: [] for system in rated}
        for (_, system), rate in zip(searches, found, strict=True):
            rates[system].append(rate)
    return rates


def systems_option(text: str) -> list[str]:
    """Names with commas between, lpm_fixed and full always among them. Raises ValueError."""
    chosen = text.split(",")
    if unknown := set(chosen) - RATED.keys():
        raise ValueError(f"{', '.join(sorted(unknown))}: must be among {', '.join(RATED)}")
    return ["lpm_fixed", "full", *chosen]


def vary(
    name: str, found: dict[str, Any], options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """The lowest gains over `lpm_fixed` where one assumption is a quarter less or more."""
    cases = [
        (field, factor)
        for field in assumptions(name)
        if field not in UNVARIED
        for factor in (0.75, 1.25)
    ]

    def gains(case: tuple[str, float]) -> dict[str, Any]:
        study = Study(varied(workload(name), *case), options, 0, console)
        rates = {
            system: study.highest(system, found["highest_rates"][system][0])
            for system in ("lpm_fixed", "full")
        }
        base, ours = (study.at(system, rates["lpm_fixed"]) for system in rates)
        return {
            "assumption": case[0],
            "factor": case[1],
            "rate_gain": rates["full"] / rates["lpm_fixed"],
            "slo_gain": base["slo_scale"] / ours["slo_scale"],
        }

    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(gains, cases))
    write_rows(options.output_dir / f"paper_{name}_varied.csv", rows, facts(options))
    return {
        "rate_gain_low": round(min(row["rate_gain"] for row in rows), 3),
        "slo_gain_low": round(min(row["slo_gain"] for row in rows), 3),
    }


def _shares(rates: dict[str, list[float]]) -> dict[str, float]:
    """Of the logarithm of the whole gain over lpm_fixed: what each step gives."""
    steps = {"tokens": "stop_lpm", "pace": "full_lpm", "order": "full"}
    if not rates.keys() >= set(steps.values()):
        return {}
    logs = {name: statistics.fmean(map(math.log, values)) for name, values in rates.items()}
    whole = logs["full"] - logs["lpm_fixed"]
    shares, before = {}, "lpm_fixed"
    for share, system in steps.items():
        shares[f"share_of_{share}"] = round((logs[system] - logs[before]) / whole, 3)
        before = system
    return shares


def _at_low_rates(
    studies: Sequence[Study], rates: dict[str, list[float]], jobs: int
) -> dict[str, Any]:
    """At lpm_fixed's highest rate and below: seconds, deadlines, tokens and accuracy beside it."""
    pairs = [
        (study, name, share * rate)
        for study, rate in zip(studies, rates["lpm_fixed"], strict=True)
        for share in LOW_RATES
        for name in ("lpm_fixed", "full")
    ]
    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(lambda pair: pair[0].at(pair[1], pair[2]), pairs))
    both = list(zip(found[::2], found[1::2], strict=True))
    top = both[len(LOW_RATES) - 1 :: len(LOW_RATES)]
    ratios = [ours["mean_s"] / base["mean_s"] for base, ours in both]
    means = {
        "slo_gain_vs_lpm": [base["slo_scale"] / ours["slo_scale"] for base, ours in top],
        "tokens_saved": [1 - ours["tokens"] / base["tokens"] for base, ours in top],
        "accuracy_drop": [base["accuracy"] - ours["accuracy"] for base, ours in top],
    }
    return {
        **{name: round(statistics.fmean(values), 4) for name, values in means.items()},
        "seconds_over_lpm": {
            share: round(statistics.fmean(ratios[index :: len(LOW_RATES)]), 3)
            for index, share in enumerate(LOW_RATES)
        },
        "never_slower": max(ratios) <= 1,
    }
