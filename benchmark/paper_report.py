"""Rows and charts of the paper's evaluation, beside what the paper prints."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arms import rounded
from sglang_dynasor.simulate import LABEL

# Mean seconds of the paper's Figure 18, in the order of paper_systems.LADDER.
FIGURE_18 = {"sc_gsm8k": (410.0, 306.0, 165.0, 159.0, 134.0)}


def write_rows(path: Path, rows: Sequence[dict[str, Any]], facts: Mapping[str, Any]) -> None:
    """A CSV with a column per figure, and where they are from."""
    source = {**facts, "label": LABEL}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *source])
        writer.writeheader()
        for row in rows:
            writer.writerow(rounded(row) | source)


def draw_ladder(path: Path, name: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Mean seconds of each step beside the paper's."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    places = range(len(rows))
    for shift, column, label in ((-0.2, "paper_s", "paper, Figure 18"), (0.2, "mean_s", "virtual")):
        values = [row[column] for row in rows.values()]
        bars = axes.bar([place + shift for place in places], values, 0.4, label=label)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(list(places), [step.replace("_", "\n") for step in rows])
    axes.set(ylabel="mean latency, s")
    axes.legend()
    figure.suptitle(f"{name}; {LABEL}", fontsize=10)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def draw_rates(path: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Attainment, the deadlines that 90% meet and accuracy against the rate; means over seeds."""
    pyplot = _pyplot()
    figure, columns = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    shown = (
        ("attainment", "deadline met"),
        ("slo_scale", "scale of deadlines 90% meet"),
        ("accuracy", "right answers"),
    )
    for system in dict.fromkeys(row["system"] for row in rows):
        for axes, (column, _) in zip(columns, shown, strict=True):
            axes.plot(*_means(rows, system, column), ".-", label=system)
    for axes, (_, label) in zip(columns, shown, strict=True):
        axes.set(xlabel="programs/s", ylabel=label, xscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    columns[0].axhline(0.9, color="0.6", linewidth=0.8, linestyle="--")
    columns[1].set(yscale="log")
    figure.suptitle(f"{name}; {LABEL}", fontsize=10)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def draw_scales(path: Path, name: str, rows: Sequence[Mapping[str, Any]], rate: float) -> None:
    """At one rate: the share of programs within a scale of their deadlines, and within a pace."""
    pyplot = _pyplot()
    figure, columns = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    shown = (("scale_", "scale of deadlines"), ("pace_", "seconds per token of output"))
    for row in rows:
        if row["rate"] != round(rate, 4) or row["seed"]:
            continue
        for axes, (prefix, _) in zip(columns, shown, strict=True):
            points = [
                (value, int(column.removeprefix(prefix)) / 100)
                for column, value in row.items()
                if column.startswith(prefix) and column.removeprefix(prefix).isdigit()
            ]
            axes.plot(*zip(*points, strict=True), ".-", label=row["system"])
    for axes, (_, label) in zip(columns, shown, strict=True):
        axes.set(xlabel=label, ylabel="share of programs", xscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"{name} at {rate:.2f} programs/s; {LABEL}", fontsize=10)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def _means(
    rows: Sequence[Mapping[str, Any]], system: str, column: str
) -> tuple[list[float], list[float]]:
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["system"] == system:
            found.setdefault(row["rate"], []).append(row[column])
    rates = sorted(found)
    return rates, [sum(found[rate]) / len(found[rate]) for rate in rates]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
