"""The paper's evaluation on the real engine with a virtual clock: an A100 on any machine.

    python benchmark/paper.py --validate
    python benchmark/paper.py --ladder sc_gsm8k
    python benchmark/paper.py --workload sc_gsm8k

Needs aiconfigurator-core (extra `simulate`), but for --validate. Scheduler, radix cache, programs
and policies are the real ones; only the forward pass is predicted. Workloads come from the frozen
numbers of paper_workloads.json.

- --validate: how well the clock predicts (see `paper_validate`);
- --ladder: the paper's Figure 18, all programs at its rate: its printed seconds beside ours;
- --workload: for each system the highest rate at which 90% of the programs meet their deadline
  (the base deadline times the difficulty, 1 to 3), by bisection, `--minutes` of arrivals each, the
  first tenth of which is not counted; and at each rate of `full` the scale of deadlines that 90%
  would meet.

Every figure is virtual: it compares systems on the same predicted steps. The last line of stdout is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from paper_report import FIGURE_18, draw_ladder, draw_rates, write_rows
from paper_runs import Served, Setup, served, served_all, spec_of
from paper_systems import LADDER, systems, with_fixed_knob
from paper_workloads import PaperProgram, Workload, device, names, programs_of, variation, workload
from serving_load import TARGET_ATTAINMENT, counted_from, highest_rate
from serving_report import facts
from sglang_dynasor.offline import Sample, cheapest_equal, fixed_curve
from sglang_dynasor.simulate import LABEL

RESULTS = Path(__file__).parent / "results"
LADDER_TOLERANCE = 0.2
# Whose highest rate is searched, and where the search begins, in multiples of --first-rate.
RATED = {
    "lpm_fixed": 1.0,
    "parrot": 1.0,
    "fixed_equal": 2.0,
    "client_side": 3.0,
    "certaindex_sjf": 2.0,
    "full_lpm": 4.0,
    "full_gang": 4.0,
    "full": 4.0,
}


class Study:
    """One workload, its systems and one arrival seed."""

    def __init__(self, name: str, options: argparse.Namespace, seed: int, console: Console) -> None:
        self.work = workload(name)
        self._setup = Setup(device(), options.extra_ms, options.coarse)
        self._minutes = options.minutes
        self._seed = seed
        self._console = console
        self.systems = systems(self.work.cap, self.work.detect)
        self.knob = self._equal_knob()
        self.systems["fixed_equal"] = with_fixed_knob(self.systems["lpm_fixed"], self.knob)
        self.rows: list[dict[str, Any]] = []

    def _equal_knob(self) -> int:
        """The fewest branches whose full vote is as accurate as the cap's, to half a point."""
        made = programs_of(self.work, 1.0, self._seed)
        samples = [[Sample(a, n) for n, a in entry.program.samples] for entry in made]
        golds = [entry.program.gold for entry in made]
        curve = fixed_curve(samples, golds, self.work.cap)
        equal = cheapest_equal(curve, curve[-1].accuracy - 0.005)
        assert equal is not None
        return equal.k

    def at(self, name: str, rate: float) -> dict[str, Any]:
        """One run: attainment, seconds, tokens and accuracy of the programs that count."""
        count = math.ceil(60 * self._minutes * rate)
        made = programs_of(replace(self.work, programs=count), rate, self._seed)
        spec = spec_of(self.work, made, self.systems[name], self._setup)
        result = served(spec)
        row = {"system": name, "rate": round(rate, 4), "seed": self._seed}
        row |= figures(made, result, self.work, counted_from(count))
        self.rows.append(row)
        self._console.print(
            f"{name} at {rate:.2f}/s: mean {row['mean_s']:.1f} s, attainment "
            f"{row['attainment']:.1%}, {row['tokens']:.0f} tokens"
        )
        return row

    def highest(self, name: str, first: float) -> float:
        """The highest rate of one system, searched from `first` on."""
        points = {first: self.at(name, first)["attainment"]}
        return highest_rate(lambda rate: self.at(name, rate)["attainment"], points)


def figures(
    made: Sequence[PaperProgram], result: Served, work: Workload, first: int
) -> dict[str, Any]:
    """What is reported of a run; programs before `first` find an emptier engine and don't count."""
    loads = [
        latency / (work.deadline_s * entry.difficulty)
        for entry, latency in zip(made, result.latencies, strict=True)
    ][first:]
    latencies = sorted(result.latencies[first:])
    return {
        "attainment": sum(load <= 1 for load in loads) / len(loads),
        "slo_scale": sorted(loads)[math.ceil(TARGET_ATTAINMENT * len(loads)) - 1],
        "mean_s": statistics.fmean(latencies),
        "p90_s": latencies[math.ceil(0.9 * len(latencies)) - 1],
        "p99_s": latencies[math.ceil(0.99 * len(latencies)) - 1],
        "tokens": statistics.fmean(result.tokens[first:]),
        "accuracy": statistics.fmean(result.right[first:]),
        "size_cv": variation(result.tokens[first:]),
    }


def ladder(name: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The steps of Figure 18 beside the paper's."""
    work = workload(name)
    setup = Setup(device(), options.extra_ms, options.coarse)
    made = programs_of(work, work.rate, 0)
    every = systems(work.cap, work.detect)
    specs = [spec_of(work, made, every[step], setup) for step in LADDER]
    results = served_all(specs, options.jobs)
    rows = {}
    for step, result, printed in zip(LADDER, results, FIGURE_18[name], strict=True):
        rows[step] = {
            "mean_s": round(result.mean_s, 1),
            "paper_s": printed,
            "ratio": round(result.mean_s / printed, 3),
            "tokens": round(result.mean_tokens),
            "accuracy": round(result.accuracy, 4),
        }
    table = Table(title=f"{name}, {work.rate:g} programs/s; {LABEL}")
    for column in ("step", "mean s", "paper's s", "ratio", "tokens", "accuracy"):
        table.add_column(column)
    for step, row in rows.items():
        table.add_row(step, *map(str, row.values()))
    console.print(table)
    listed = [{"step": step, **row} for step, row in rows.items()]
    write_rows(options.output_dir / f"paper_{name}_ladder.csv", listed, facts(options))
    draw_ladder(options.output_dir / f"paper_{name}_ladder.png", name, rows)
    held = all(abs(row["ratio"] - 1) <= LADDER_TOLERANCE for row in rows.values())
    return {"workload": name, "ladder": rows, "ladder_held": held}


def sweep(name: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Highest rates and what they come to."""
    studies = [Study(name, options, seed, console) for seed in range(options.seeds)]
    searches = [(study, system) for study in studies for system in RATED]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = pool.map(
            lambda search: search[0].highest(search[1], options.first_rate * RATED[search[1]]),
            searches,
        )
        rates: dict[str, list[float]] = {system: [] for system in RATED}
        for (_, system), rate in zip(searches, found, strict=True):
            rates[system].append(rate)
    gains = {
        system: round(
            statistics.geometric_mean(
                ours / theirs for ours, theirs in zip(rates["full"], rates[system], strict=True)
            ),
            3,
        )
        for system in RATED
    }
    scales = _scales(studies, rates)
    rows = [row for study in studies for row in study.rows]
    write_rows(options.output_dir / f"paper_{name}.csv", rows, facts(options))
    draw_rates(options.output_dir / f"paper_{name}_rates.png", name, rows)
    return {
        "workload": name,
        "fixed_equal_knob": [study.knob for study in studies],
        "highest_rates": {key: [round(rate, 3) for rate in value] for key, value in rates.items()},
        "rate_gain_vs_lpm": gains["lpm_fixed"],
        "rate_gain_vs_parrot": gains["parrot"],
        "rate_gain_vs_equal_fixed": gains["fixed_equal"],
        "rate_gain_vs_client": gains["client_side"],
        "rate_gain_vs_paper_policy": gains["certaindex_sjf"],
        "rate_gain_of_sjf": gains["full_gang"],
        # Of the logarithm of the whole gain: what stopping gives under upstream's order.
        "share_of_tokens": round(
            math.log(gains["lpm_fixed"] / gains["full_lpm"]) / math.log(gains["lpm_fixed"]), 3
        ),
        **scales,
    }


def _scales(studies: Sequence[Study], rates: dict[str, list[float]]) -> dict[str, Any]:
    """At lpm_fixed's highest rate and at half of it: deadlines, tokens, accuracy, seconds."""
    found: dict[str, list[float]] = {
        name: []
        for name in ("slo_gain_vs_lpm", "tokens_saved", "accuracy_drop", "mean_ratio_at_half")
    }
    for study, rate in zip(studies, rates["lpm_fixed"], strict=True):
        base, ours = study.at("lpm_fixed", rate), study.at("full", rate)
        found["slo_gain_vs_lpm"].append(base["slo_scale"] / ours["slo_scale"])
        found["tokens_saved"].append(1 - ours["tokens"] / base["tokens"])
        found["accuracy_drop"].append(base["accuracy"] - ours["accuracy"])
        base, ours = study.at("lpm_fixed", rate / 2), study.at("full", rate / 2)
        found["mean_ratio_at_half"].append(ours["mean_s"] / base["mean_s"])
    return {name: round(statistics.fmean(values), 4) for name, values in found.items()}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--validate",
        nargs="*",
        choices=("stub", "real", "digests"),
        help="how well the clock predicts; without names all three",
    )
    what.add_argument("--ladder", choices=list(FIGURE_18))
    what.add_argument("--workload", choices=names())
    parser.add_argument("--extra-ms", type=float, default=0.0, help="on each step (default: 0)")
    parser.add_argument("--coarse", type=int, default=8, help="steps that one stands for")
    parser.add_argument("--minutes", type=float, default=20.0, help="of arrivals of each run")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-rate", type=float, default=1.5, help="where the search begins")
    parser.add_argument("--jobs", type=int, default=2, help="simulations side by side")
    parser.add_argument("--output-dir", type=Path, default=RESULTS)
    parser.set_defaults(model_path=device().model, seed=0)
    return parser.parse_args()


def main() -> None:
    """Run, print, end with one line of JSON."""
    options = parse_options()
    console = Console(stderr=True)
    if options.validate is not None:
        from paper_validate import PARTS, validate

        result = validate(options.validate or list(PARTS))
    elif options.ladder:
        result = ladder(options.ladder, options, console)
    else:
        result = sweep(options.workload, options, console)
    print(json.dumps(facts(options) | {"label": LABEL} | result))


if __name__ == "__main__":
    main()
