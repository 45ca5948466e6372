"""Stop rules replayed on recorded samples: accuracy, harm, tokens, rounds, and the fixed vote.

    python benchmark/replay.py --traces FILE.jsonl.gz --max-branches 8 --rules all --seeds 100

Nothing is generated: each shuffle of a problem's recorded samples is a run, and every rule sees the
same shuffles. Two orders of finishing: sequential (sample order; a branch behind the stop was never
started) and concurrent (the branches of a grant finish shortest first, and the partial tokens of
cancelled ones count). The last line of stdout is one JSON object keyed by rule; its figures are of
the sequential order, those of the other stand under `concurrent`. `--study` adds the paper's own
analyses (signals, threshold, policies) under `study`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from chains_study import chains_of, chains_table
from paper_study import Correlation, PolicyFigures, Study, study
from sglang_dynasor.offline.contenders import Comparison, compare, contenders, merged
from sglang_dynasor.offline.replay import Order
from sglang_dynasor.offline.traces import TraceProblem, read_traces

STUDY_SHUFFLES = 10
ROOT = Path(__file__).resolve().parents[1]
INTERVALS_SHOWN = ("harm", "tokens_saved")
COLUMNS = (
    "accuracy",
    "harm",
    "gain",
    "disagreements",
    "tokens",
    "tokens_saved",
    "tokens_saved_vs_equal",
    "samples",
    "rounds",
    "critical_path",
    "sequential_tokens",
    "sequential_share",
    "probe_tokens",
    "probe_token_share",
)
PERCENT = {
    "accuracy",
    "harm",
    "gain",
    "disagreements",
    "tokens_saved",
    "tokens_saved_vs_equal",
    "sequential_share",
    "probe_token_share",
}


def main() -> None:
    """Replay, print tables, write CSV and chart, end with one line of JSON."""
    options = parse_options()
    try:
        problems = read_traces(options.traces)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    fewest = min(len(problem.samples) for problem in problems)
    max_branches = options.max_branches or fewest
    if max_branches > fewest:
        raise SystemExit(
            f"--max-branches: {max_branches} exceeds the {fewest} samples of a problem"
        )
    names = list(contenders(max_branches)) if options.rules == "all" else options.rules.split(",")
    unknown = set(names) - set(contenders(max_branches))
    if unknown:
        raise SystemExit(
            f"--rules: unknown {', '.join(sorted(unknown))}; "
            f"known: all, {', '.join(contenders(max_branches))}"
        )
    console = Console(stderr=True)
    console.print(
        f"{options.traces.name}: {len(problems)} problems, {max_branches} of {fewest} branches, "
        f"{options.seeds} shuffles, replayed"
    )
    comparisons = replay_both(problems, names, max_branches, options.seeds)
    result = json_of(comparisons, ["fixed", *names])
    for order, comparison in comparisons.items():
        Console(width=170).print(table_of(order, comparison, ["fixed", *names]))
    if any(sample.probes for problem in problems for sample in problem.samples):
        result["chains"] = rounded(chains_of(problems))
        Console(width=170).print(chains_table(result["chains"]))
    if options.study:
        found = study(problems, max_branches, min(options.seeds, STUDY_SHUFFLES))
        Console(width=170).print(*study_tables(found), sep="\n")
        result["study"] = rounded(asdict(found))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    stem = f"replay_{options.traces.name.split('.')[0]}_{max_branches}"
    write_csv(options.output_dir / f"{stem}.csv", comparisons, names, options)
    chart = options.output_dir / f"{stem}.png"
    write_chart(chart, comparisons["sequential"], names, options.traces.name.split(".")[0])
    console.print(f"rows and chart: {chart.with_suffix('.*')}")
    print(json.dumps(result))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--traces", type=Path, required=True, help="JSON lines, plain or gzip")
    parser.add_argument("--max-branches", type=int, help="default: samples of the shortest problem")
    parser.add_argument("--rules", default="all", help="all, or names separated by commas")
    parser.add_argument("--seeds", type=int, default=100, help="shuffles per problem")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "benchmark" / "results")
    parser.add_argument("--study", action="store_true", help="add the paper's own analyses")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    if options.max_branches is not None and options.max_branches < 1:
        parser.error("--max-branches must be at least 1")
    return options


def replay_both(
    problems: list[TraceProblem], names: list[str], max_branches: int, seeds: int
) -> dict[Order, Comparison]:
    """Both orders; a rule that takes one branch at a time knows no order and is replayed once."""
    sequential = replay_all(problems, names, max_branches, seeds, "sequential")
    ordered = [name for name in names if not contenders(max_branches)[name].one_at_a_time]
    concurrent = replay_all(problems, ordered, max_branches, seeds, "concurrent")
    rows = {**sequential.per_problem, **concurrent.per_problem}
    return {"sequential": sequential, "concurrent": replace(concurrent, per_problem=rows)}


def replay_all(
    problems: list[TraceProblem], names: list[str], max_branches: int, seeds: int, order: Order
) -> Comparison:
    """All rules in one order; problems are spread over the cores."""
    workers = min(os.cpu_count() or 1, len(problems))
    parts = [problems[worker::workers] for worker in range(workers)]
    with ProcessPoolExecutor(workers) as pool:
        done = [pool.submit(replay_part, part, names, max_branches, seeds, order) for part in parts]
        return merged([future.result() for future in done], [len(part) for part in parts])


def replay_part(
    problems: list[TraceProblem], names: list[str], max_branches: int, seeds: int, order: Order
) -> Comparison:
    chosen = {name: contenders(max_branches)[name] for name in names}
    return compare(problems, chosen, max_branches, seeds, order)


def json_of(comparisons: dict[Order, Comparison], names: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name in names:
        rows = {order: comparison.row(name) for order, comparison in comparisons.items()}
        result[name] = {column: round(rows["sequential"][column], 6) for column in COLUMNS}
        result[name]["concurrent"] = {
            column: round(rows["concurrent"][column], 6) for column in COLUMNS
        }
    result["fixed"]["curve"] = [
        {"k": point.k, "accuracy": round(point.accuracy, 6), "tokens": round(point.tokens, 2)}
        for point in comparisons["sequential"].curve
    ]
    return result


def table_of(order: Order, comparison: Comparison, names: list[str]) -> Table:
    table = Table(title=f"{order} order, means per problem (95% interval of problems)")
    for column in ("rule", *COLUMNS):
        table.add_column(column.replace("_", " "), justify="left" if column == "rule" else "right")
    for name in names:
        row, interval = comparison.row(name), comparison.interval(name)
        cells = []
        for column in COLUMNS:
            text = f"{row[column]:.2%}" if column in PERCENT else f"{row[column]:.2f}"
            if column in INTERVALS_SHOWN and name != "fixed":
                low, high = interval[column]
                text += f" ({low:.1%}..{high:.1%})"
            cells.append(text)
        table.add_row(name, *cells)
    return table


def study_tables(found: Study) -> list[Table]:
    signals = Table(
        title=f"signals against oracle steps: {found.problems} problems "
        f"({found.never_right} never right, left out), means over {found.shuffles} shuffles",
        caption="pearson / kendall, higher predicts better; mean log-prob: not in this trace",
    )
    for column in ("branches seen", "problems", "stopped at 0.7", "certaindex", "mean length"):
        signals.add_column(column, justify="right")
    for at in found.signals:
        texts = [correlation_text(signal) for signal in (at.certaindex, at.mean_length)]
        signals.add_row(str(at.step), f"{at.problems:.1f}", f"{at.stopped:.1%}", *texts)
    return [
        signals,
        policy_table("static threshold, asked after 5 branches", found.thresholds),
        policy_table("allocation policies; curves fitted on the other half", found.ladder),
    ]


def correlation_text(correlation: Correlation) -> str:
    values = (correlation.pearson, correlation.kendall)
    return " / ".join("none" if value is None else f"{value:.2f}" for value in values)


def policy_table(title: str, rows: list[PolicyFigures]) -> Table:
    table = Table(title=title)
    for column in ("policy", "accuracy", "harm", "tokens saved", "branches", "rounds"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for row in rows:
        shares = [f"{share:.2%}" for share in (row.accuracy, row.harm, row.tokens_saved)]
        table.add_row(row.policy, *shares, f"{row.branches:.2f}", f"{row.rounds:.2f}")
    return table


def rounded(value: Any) -> Any:
    """The same with every float, at any depth, rounded like the other figures."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def write_csv(
    path: Path, comparisons: dict[Order, Comparison], names: list[str], options: argparse.Namespace
) -> None:
    """One row a rule and order, and one a size of the fixed vote."""
    source = {
        "traces": options.traces.name,
        "seeds": options.seeds,
        "commit": commit(),
        "python": platform.python_version(),
        "label": "replayed (real traces)",
    }
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["order", "rule", *COLUMNS, *source])
        writer.writeheader()
        for order, comparison in comparisons.items():
            for name in ("fixed", *names):
                row = {key: round(value, 6) for key, value in comparison.row(name).items()}
                writer.writerow({"order": order, "rule": name, **row, **source})
        for point in comparisons["sequential"].curve:
            sizes = {"samples": point.k, "accuracy": round(point.accuracy, 6)}
            tokens = {"tokens": round(point.tokens, 2)}
            writer.writerow({"order": "any", "rule": "fixed_k", **sizes, **tokens, **source})


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def write_chart(path: Path, comparison: Comparison, names: list[str], title: str) -> None:
    """Accuracy against tokens: the fixed vote as a line, each rule as a point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.plot(
        [point.tokens for point in comparison.curve],
        [100 * point.accuracy for point in comparison.curve],
        color="0.55",
        marker=".",
        label="fixed k",
    )
    markers = "^v<>sPXDhp"
    for index, name in enumerate(names):
        figures = comparison.figures(name)
        ours = name == "dynasor"
        axes.plot(
            figures.tokens,
            100 * figures.accuracy,
            linestyle="none",
            marker="*" if ours else markers[index % len(markers)],
            markersize=15 if ours else 7,
            color="C3" if ours else f"C{(index + 4) % 10}",
            label=name,
            zorder=3 if ours else 2,
        )
    axes.set_xlabel("tokens per problem")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"{title}, replayed, sequential order", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
