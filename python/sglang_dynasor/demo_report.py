"""What the demo shows: a table, a chart in the terminal and one as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import plotext
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a backend without a screen


def print_report(summary: dict[str, Any], curve: Any, output_dir: Path) -> None:
    """Print the table and the terminal chart; write the PNG into `output_dir`."""
    console = Console()
    console.print(_table(summary))
    equal, saved = summary["fixed_equal"], summary["tokens_saved_vs_equal"]
    console.print(
        f"{summary['n']} problems: Certaindex saved {summary['tokens_saved']:.1%} of the tokens "
        f"and {summary['time_saved']:.1%} of the time of the fixed vote, {saved:.1%} of the "
        f"cheapest fixed vote of equal accuracy (k={equal['k']}). On the same samples it was "
        f"wrong where the full vote was right {summary['harm']} times, "
        f"the reverse {summary['gain']} times."
    )
    _print_chart(summary, curve)
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "accuracy_against_tokens.png"
    _write_chart(summary, curve, path)
    console.print(f"chart: {path}")


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title="per problem, measured in this run")
    for column in ("system", "accuracy", "tokens", "seconds in all"):
        table.add_column(column, justify="left" if column == "system" else "right")
    rows = {
        "fixed, every branch": summary["fixed_max"],
        "Certaindex": summary["certaindex"],
        f"fixed, cheapest equal (k={summary['fixed_equal']['k']})": summary["fixed_equal"],
        "Beta 0.95, one at a time": summary["beta"],
    }
    for name, row in rows.items():
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else "same samples"
        table.add_row(name, f"{row['accuracy']:.1%}", f"{row['tokens']:.0f}", seconds)
    return table


def _points(summary: dict[str, Any], curve: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {
        "fixed k": ([p.tokens for p in curve], [100 * p.accuracy for p in curve]),
        "Beta 0.95, one at a time": (
            [summary["beta"]["tokens"]],
            [100 * summary["beta"]["accuracy"]],
        ),
        "Certaindex": (
            [summary["certaindex"]["tokens"]],
            [100 * summary["certaindex"]["accuracy"]],
        ),
    }


def _print_chart(summary: dict[str, Any], curve: Any) -> None:
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(78, 18)
    low, high = 100 * curve[0].accuracy, 100 * max(point.accuracy for point in curve)
    plotext.ylim(low, high + 0.4 * (high - low) + 0.1)  # room for the legend above the points
    for (name, (tokens, accuracy)), marker in zip(
        _points(summary, curve).items(), (".", "b", "C"), strict=True
    ):
        plotext.scatter(tokens, accuracy, label=name, marker=marker)
    plotext.xlabel("tokens per problem")
    plotext.ylabel("accuracy, %")
    print(plotext.uncolorize(plotext.build()))


def _write_chart(summary: dict[str, Any], curve: Any, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    styles = (
        {"marker": "o", "color": "0.55"},
        {"marker": "^", "color": "C0"},
        {"marker": "*", "color": "C3"},
    )
    for (name, (tokens, accuracy)), style in zip(
        _points(summary, curve).items(), styles, strict=True
    ):
        size = 13 if name == "Certaindex" else 6
        line = "-" if name == "fixed k" else "none"
        axes.plot(tokens, accuracy, label=name, linestyle=line, markersize=size, **style)
    for point in curve:
        if point.k in (1, 2, 4, 8, curve[-1].k):
            axes.annotate(
                f"k={point.k}",
                (point.tokens, 100 * point.accuracy),
                xytext=(4, -12),
                textcoords="offset points",
                fontsize=8,
                color="0.4",
            )
    axes.set_xlabel("generated tokens per problem, cancelled branches included")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"{summary['n']} problems, same samples", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
