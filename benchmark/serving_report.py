"""Tables, rows, charts and JSON of the serving benchmark."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from serving_bars import bars
from serving_load import (
    Counted,
    Measurements,
    attainment,
    figures,
    geometric_mean,
    latencies,
    ratio_of,
)
from sglang_dynasor.offline.calibration import harm_upper_bound

ROOT = Path(__file__).resolve().parents[1]
BASE = "lpm_fixed"
# Each step of the ladder adds one thing to the step before it.
LADDER = (
    ("order", ("lpm_fixed", "gang_fixed", "gang_sjf_fixed")),
    ("stopping", ("lpm_fixed", "certaindex_lpm", "certaindex_gang", "full")),
)
STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": lambda seconds: float(seconds.mean()),
    "p50": lambda seconds: float(np.percentile(seconds, 50)),
    "p95": lambda seconds: float(np.percentile(seconds, 95)),
    "p99": lambda seconds: float(np.percentile(seconds, 99)),
}
SLO_SCALES = np.linspace(0.2, 4.0, 39)


def as_json(done: Measurements, options: argparse.Namespace) -> dict[str, Any]:
    """The result: per system lists over the loads, then what compares systems."""
    result: dict[str, Any] = {}
    for system in options.systems:
        rows = [figures(done.counted(system, load)) for load in options.loads]
        result[system] = {name: [rounded(row[name]) for row in rows] for name in rows[0]}
    result |= {
        "loads": options.loads,
        "capacity": rounded(done.capacity),
        "unloaded_s": {key: rounded(value) for key, value in done.unloaded_s.items()},
        "ratios": {
            system: ratios(done, system, options) for system in options.systems if system != BASE
        },
    }
    if options.mix:
        result["kinds"] = {
            system: by_kind(done, system, options.loads) for system in options.systems
        }
    if "full" in options.systems:
        tokens = zip(result[BASE]["tokens"], result["full"]["tokens"], strict=True)
        result["token_ratio"] = [rounded(base / ours) for base, ours in tokens]
        result["harm"] = [harm(done, load) for load in options.loads]
    for name, system in (("rate_gain_at_p90", "full"), ("rate_gain_client_side", "client_side")):
        gain = rate_gain(done, system)
        if gain is not None:
            result[name], result[f"{name}_interval"] = gain
    result["bars"] = bars(result)
    result["highest_rates"] = {
        system: [rounded(rate) for rate in rates] for system, rates in done.highest_rates.items()
    }
    result["worst_lag_s"] = max(run.worst_lag_s for run in done.runs)
    result["client_cpu"] = max(run.client_cpu for run in done.runs)
    return result | facts(options)


def ratios(
    done: Measurements, system: str, options: argparse.Namespace
) -> dict[str, list[list[float]]]:
    """System over lpm_fixed: per statistic and load the ratio and its 95% interval."""
    found: dict[str, list[list[float]]] = {}
    for name, statistic in STATISTICS.items():
        found[name] = []
        for load in options.loads:
            ours, base = (
                [latencies(run.programs) for run in done.of(which, load)]
                for which in (system, BASE)
            )
            ratio = ratio_of(ours, base, statistic, options.seed)
            found[name].append([rounded(value) for value in astuple(ratio)])
    return found


def by_kind(
    done: Measurements, system: str, loads: Sequence[float]
) -> dict[str, dict[str, list[float]]]:
    """Of each kind of program, over the loads: mean seconds, tokens and accuracy."""
    names = ("mean_latency_s", "tokens", "accuracy")
    found: dict[str, dict[str, list[float]]] = {}
    for load in loads:
        programs = done.counted(system, load)
        for kind in sorted({program.kind for program in programs}):
            of_kind = figures([program for program in programs if program.kind == kind])
            for name in names:
                found.setdefault(kind, {}).setdefault(name, []).append(rounded(of_kind[name]))
    return found


def harm(done: Measurements, load: float) -> dict[str, Any]:
    """Of the programs both systems finished: right in lpm_fixed and wrong in full; the reverse."""
    pairs = [
        (base.right, ours.right)
        for base_run, our_run in zip(done.of(BASE, load), done.of("full", load), strict=True)
        for base, ours in zip(base_run.programs, our_run.programs, strict=True)
        if base.outcome.finished and ours.outcome.finished
    ]
    harmed = sum(base and not ours for base, ours in pairs)
    return {
        "n": len(pairs),
        "harm": harmed,
        "gain": sum(ours and not base for base, ours in pairs),
        "harm_bound": rounded(harm_upper_bound(harmed, len(pairs), 0.95)) if pairs else 1.0,
    }


def rate_gain(done: Measurements, system: str) -> tuple[float, list[float | None]] | None:
    """Highest rate over lpm_fixed's: geometric mean over the arrival seeds, and its interval."""
    rates = list(
        zip(done.highest_rates.get(system, ()), done.highest_rates.get(BASE, ()), strict=False)
    )
    if not rates or any(0 in pair for pair in rates):
        return None
    gain = geometric_mean([math.log(ours / base) for ours, base in rates])
    return rounded(gain.value), [rounded(gain.low), rounded(gain.high)]


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to make the figures again."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    device, label = _device()
    return {
        "commit": done.stdout.strip() or "none",
        "machine": device,
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "sglang": version("sglang"),
        "model": Path(options.model_path).name,
        "seed": options.seed,
        "label": f"measured ({label})",
    }


def _device() -> tuple[str, str]:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), "GPU"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores", "CPU"


def rounded(value: float) -> Any:
    """Four digits after the point; nan, which JSON lacks, as None."""
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else round(value, 4)


def print_tables(result: dict[str, Any], options: argparse.Namespace) -> None:
    console = Console(width=200)
    for row, load in enumerate(result["loads"]):
        table = Table(title=f"load {load} x {result['capacity']} programs/s, {result['label']}")
        names = list(result[BASE])
        for name in ("system", *names, "mean / lpm_fixed", "p95 / lpm_fixed"):
            table.add_column(
                name.replace("_", " "), justify="left" if name == "system" else "right"
            )
        for system in options.systems:
            cells = [f"{result[system][name][row]:.3f}" for name in names]
            for statistic in ("mean", "p95"):
                cells.append(_interval(result["ratios"].get(system, {}).get(statistic), row))
            table.add_row(system, *cells)
        console.print(table)
    for name, met in result["bars"].items():
        console.print(f"{'met' if met else 'MISSED':<7} {name}")


def _interval(ratios: Sequence[Sequence[float]] | None, row: int) -> str:
    if ratios is None:
        return ""
    value, low, high = ratios[row]
    return f"{value:.2f} ({low:.2f}..{high:.2f})"


def write_csv(result: dict[str, Any], options: argparse.Namespace) -> None:
    """One row a system and load."""
    source = {
        "programs": options.programs,
        "overload_programs": options.overload_programs,
        "arrival_seeds": options.arrival_seeds,
        "arrivals": options.arrivals.name if options.arrivals else "poisson",
        "capacity": result["capacity"],
        "max_running_requests": options.max_running_requests,
        "max_total_tokens": options.max_total_tokens,
        "full": json.dumps(options.full),
        **facts(options),
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with (options.output_dir / f"{stem(options)}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["system", "load", *result[BASE], *source])
        writer.writeheader()
        for system in options.systems:
            for row, load in enumerate(options.loads):
                values = {name: column[row] for name, column in result[system].items()}
                writer.writerow({"system": system, "load": load, **values, **source})


def stem(options: argparse.Namespace) -> str:
    model = Path(options.model_path).name
    mix = "mix_" if options.mix else ""
    return f"serving_{mix}{model}_{options.arrival_seeds}x{options.programs}"


def write_charts(done: Measurements, options: argparse.Namespace) -> None:
    """Curves over rate and SLO scale, and the ladder of what each step adds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder = options.plots or options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{Path(options.model_path).name}, capacity {done.capacity:.2f} programs/s"
    for name, draw in (("curves", draw_curves), ("ladder", draw_ladder)):
        figure = draw(pyplot, done, options)
        figure.suptitle(f"{title}, {facts(options)['label']}", fontsize=10)
        figure.savefig(folder / f"{stem(options)}_{name}.png", dpi=140)
        pyplot.close(figure)


def draw_curves(pyplot: Any, done: Measurements, options: argparse.Namespace) -> Any:
    """Attainment against rate and SLO scale, mean latency against rate."""
    figure, (rate_axes, scale_axes, latency_axes) = pyplot.subplots(
        1, 3, figsize=(15, 4.5), layout="constrained"
    )
    shown = min(options.loads, key=lambda load: abs(load - 0.9))
    for system in options.systems:
        points = curve(done, system)
        for axes, column in ((rate_axes, 1), (latency_axes, 2)):
            axes.plot(
                *zip(*[(at[0], at[column]) for at in points], strict=True), ".-", label=system
            )
        programs = done.counted(system, shown)
        shares = [100 * attainment(programs, scale) for scale in SLO_SCALES]
        scale_axes.plot(SLO_SCALES, shares, label=system)
    rate_axes.set(xlabel="programs/s", ylabel="deadline met, %")
    scale_axes.set(xlabel=f"deadline, multiples (load {shown})", ylabel="deadline met, %")
    latency_axes.set(xlabel="programs/s", ylabel="mean latency, s", yscale="log")
    for formatter in (
        latency_axes.yaxis.set_major_formatter,
        latency_axes.yaxis.set_minor_formatter,
    ):
        formatter(lambda seconds, _: f"{seconds:g}")
    for axes in (rate_axes, scale_axes):
        axes.axhline(90, color="0.6", linewidth=0.8, linestyle="--")
    for axes in (rate_axes, scale_axes, latency_axes):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def curve(done: Measurements, system: str) -> list[tuple[float, float, float]]:
    """(rate, attainment in %, mean latency) of every rate that was run, pooled over the seeds."""
    pooled: dict[float, list[Counted]] = defaultdict(list)
    for run in done.runs:
        if run.system == system:
            pooled[run.rate] += run.programs
    return [
        (rate, 100 * attainment(pooled[rate]), float(latencies(pooled[rate]).mean()))
        for rate in sorted(pooled)
    ]


def draw_ladder(pyplot: Any, done: Measurements, options: argparse.Namespace) -> Any:
    """Mean and 95th percentile of the latency per load, each step next to the one before."""
    steps = [
        (f"{name}: {system}", system)
        for name, systems in LADDER
        for system in systems
        if system in options.systems
    ]
    figure, columns = pyplot.subplots(
        1,
        len(options.loads),
        figsize=(5 * len(options.loads), 4),
        layout="constrained",
        sharey=True,
    )
    for axes, load in zip(np.atleast_1d(columns), options.loads, strict=True):
        places = np.arange(len(steps))
        for offset, statistic in ((-0.2, "mean"), (0.2, "p95")):
            values = [
                STATISTICS[statistic](latencies(done.counted(system, load))) for _, system in steps
            ]
            bars = axes.barh(places + offset, values, 0.38, label=statistic)
            axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
        axes.set_yticks(places, [label for label, _ in steps], fontsize=8)
        axes.set(xlabel="latency, s", title=f"load {load}")
        axes.margins(x=0.12)  # room for the figures
        axes.legend(fontsize=7)
    np.atleast_1d(columns)[0].invert_yaxis()
    return figure
