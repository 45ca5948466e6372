"""Which signal tells right answers from wrong ones: token certainty, agreement, length.

    sglang-dynasor run --problems 300 --max-branches 40 --seed 1 --record traces.jsonl.gz
    python benchmark/certainty_study.py --traces traces.jsonl.gz

AUROC on recorded branches, at three levels, and the accuracy of votes weighted and filtered by
the confidence of a branch's lowest group. Nothing is generated; intervals are 95% bootstrap
intervals over whole problems. Signals are turned so that higher should mean right: less entropy,
fewer tokens. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from certainty_signals import (
    CertaintyStudy,
    SignalFigures,
    VoteFigures,
    certainty_study,
)
from sglang_dynasor.offline.traces import TraceProblem, read_traces

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("level", "signal", "right", "wrong", "auroc", "accuracy", "gain", "low", "high")


def main() -> None:
    """Study, print tables, write CSV, end with one line of JSON."""
    options = parse_options()
    try:
        problems = read_traces(options.traces)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    fewest = min(len(problem.samples) for problem in problems)
    max_branches = options.max_branches or fewest
    try:
        found = certainty_study(problems, max_branches, options.seed)
    except ValueError as error:
        raise SystemExit(f"{options.traces}: {error}") from None
    Console(width=120).print(*tables_of(found, measured_how(problems)), sep="\n")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / f"certainty_{options.traces.name.split('.')[0]}_{max_branches}.csv"
    write_csv(path, found, options)
    Console(stderr=True).print(f"rows: {path}")
    print(json.dumps(json_of(found)))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--traces", type=Path, required=True, help="of `run --record`")
    parser.add_argument("--max-branches", type=int, help="default: samples of the shortest problem")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "benchmark" / "results")
    options = parser.parse_args()
    if options.max_branches is not None and options.max_branches < 2:
        parser.error("--max-branches must be at least 2: agreement takes two")
    return options


def measured_how(problems: list[TraceProblem]) -> str:
    models = ", ".join(sorted({problem.model for problem in problems}))
    how = {problem.certainty for problem in problems if problem.certainty}
    groups = ", ".join(f"top {one.k}, groups of {one.group_tokens} tokens" for one in how)
    return f"{models}; confidence over {groups}" if groups else models


def tables_of(found: CertaintyStudy, how: str) -> list[Table]:
    signals = Table(
        title=f"AUROC against the right answer (95% interval): {found.problems} problems x "
        f"{found.branches} branches, {how}",
        caption=f"0.5 is chance. {found.unanswered} branches without an answer are in no level but "
        "program. Replayed from recorded samples.",
    )
    levels = list(dict.fromkeys(row.level for row in found.signals))
    signals.add_column("signal")
    for level in levels:
        row = next(row for row in found.signals if row.level == level)
        signals.add_column(f"{level}\n{row.right} right, {row.wrong} wrong", justify="right")
    for name in dict.fromkeys(row.signal for row in found.signals):
        signals.add_row(
            name.replace("_", " "),
            *(interval_text(row) for row in found.signals if row.signal == name),
        )
    votes = Table(title="votes by lowest group confidence, against the majority (95% interval)")
    for column in ("vote", "accuracy", "gain"):
        votes.add_column(column, justify="left" if column == "vote" else "right")
    for vote in found.votes:
        gain = f"{vote.gain:+.2%} ({vote.low:+.1%}..{vote.high:+.1%})"
        votes.add_row(vote.vote, f"{vote.accuracy:.2%}", "" if vote.vote == "majority" else gain)
    return [signals, votes]


def interval_text(row: SignalFigures) -> str:
    if row.auroc is None:
        return "none: all right or all wrong"
    return f"{row.auroc:.3f} ({row.low:.3f}..{row.high:.3f})"


def json_of(found: CertaintyStudy) -> dict[str, Any]:
    result: dict[str, Any] = {
        "problems": found.problems,
        "branches": found.branches,
        "unanswered": found.unanswered,
        "label": "replayed",
        "auroc": {},
        "votes": {},
    }
    for row in found.signals:
        level = result["auroc"].setdefault(row.level.replace(" ", "_"), {})
        level[row.signal] = rounded(row.auroc, row.low, row.high)
    for vote in found.votes:
        result["votes"][vote.vote] = rounded(vote.accuracy, vote.gain, vote.low, vote.high)
    return result


def rounded(*values: float | None) -> list[float | None]:
    return [None if value is None else round(value, 6) for value in values]


def write_csv(path: Path, found: CertaintyStudy, options: argparse.Namespace) -> None:
    """One row a level and signal, and one a vote."""
    source = {
        "traces": options.traces.name,
        "problems": found.problems,
        "branches": found.branches,
        "seed": options.seed,
        "commit": commit(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "label": "replayed",
    }
    rows: list[SignalFigures | VoteFigures] = [*found.signals, *found.votes]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *source])
        writer.writeheader()
        for row in rows:
            fields = asdict(row)
            if isinstance(row, VoteFigures):
                fields |= {"level": "vote", "signal": fields.pop("vote")}
            writer.writerow(
                {k: round(v, 6) if isinstance(v, float) else v for k, v in fields.items()} | source
            )


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
