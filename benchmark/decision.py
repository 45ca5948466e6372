"""Cost of one decision: the tracker counts a branch's answer and the rule is asked.

    python benchmark/decision.py --branches 64 --repetitions 200

Programs of 64 branches on the embedded model's kind of disagreement: a leading answer with the
share `--agreement`, the rest spread over ten others. Prints the median and the 99th percentile in
microseconds per branch, measured on this machine's CPU. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

from rich.console import Console
from rich.table import Table

from sglang_dynasor.allocation import RULES, make_rule
from sglang_dynasor.certaindex import CertaindexTracker


def main() -> None:
    """Time every rule and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--branches", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--agreement", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = Table(title=f"one update and decision, {options.branches} branches, microseconds")
    for column in ("rule", "median", "99th percentile"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    result = {}
    for name in RULES:
        times = sorted(time_rule(name, options))
        median, high = statistics.median(times), times[int(0.99 * len(times))]
        table.add_row(name, f"{median:.1f}", f"{high:.1f}")
        result[name] = {"median_us": round(median, 2), "p99_us": round(high, 2)}
    Console().print(table)
    print(json.dumps({"branches": options.branches, "label": "measured (CPU)", "rules": result}))


def time_rule(name: str, options: argparse.Namespace) -> list[float]:
    """Microseconds of every update with its decision; programs differ, as they do in service."""
    rng = random.Random(options.seed)
    rule = make_rule(name)
    times = []
    for _ in range(options.repetitions):
        tracker = CertaindexTracker(options.branches)
        for branch in range(options.branches):
            agrees = rng.random() < options.agreement
            answer = "186" if agrees else str(rng.randrange(10))
            start = time.perf_counter_ns()
            tracker.add(branch, answer)
            rule.decide(tracker.evidence())
            times.append((time.perf_counter_ns() - start) / 1000)
    return times


if __name__ == "__main__":
    main()
