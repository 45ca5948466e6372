"""Cost of one decision of a program: a branch is counted, the rule asked, the next actions made.

    python benchmark/decision.py --branches 512 --repetitions 10

Programs of up to `--branches` branches on the embedded model's kind of disagreement: a leading
answer with the share `--agreement`, the rest spread over `--others` answers. Each runs as it is
served, offers with a window of further branches that the engine may draw, and ends where its rule
says. Prints the median, the 99th percentile and the largest in microseconds of CPU time per branch:
what other processes take does not count. The last line is one JSON object; `worst_p99_us` is over
all rules.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

from rich.console import Console
from rich.table import Table

from sglang_dynasor.allocation import RULES, AdaptiveGrants, make_rule
from sglang_dynasor.programs import Finished, Outcome, SelfConsistency, SelfConsistencySettings
from sglang_dynasor.programs.self_consistency_params import OFFER_WINDOW


def main() -> None:
    """Time every rule and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--branches", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=10, help="programs per rule")
    parser.add_argument("--agreement", type=float, default=0.2)
    parser.add_argument("--others", type=int, default=10, help="answers beside the leading one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in RULES:  # tables that are made once
        time_rule(name, argparse.Namespace(**vars(options) | {"repetitions": 1, "seed": -1}))
    table = Table(title=f"one decision of a program of {options.branches} branches, microseconds")
    for column in ("rule", "decisions", "median", "99th percentile", "largest"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    result = {}
    for name in RULES:
        times = sorted(time_rule(name, options))
        median, high = statistics.median(times), times[int(0.99 * len(times))]
        figures = (median, high, times[-1])
        table.add_row(name, str(len(times)), *(f"{value:.1f}" for value in figures))
        result[name] = {
            "decisions": len(times),
            "median_us": round(median, 2),
            "p99_us": round(high, 2),
            "max_us": round(times[-1], 2),
        }
    Console(stderr=True).print(table)
    summary = {
        "branches": options.branches,
        "label": "measured (CPU)",
        "worst_p99_us": max(rule["p99_us"] for rule in result.values()),
        "rules": result,
    }
    print(json.dumps(summary))


def time_rule(name: str, options: argparse.Namespace) -> list[float]:
    """Microseconds of every decision; programs differ, as they do in service."""
    rng = random.Random(options.seed)
    rule = make_rule(name)
    settings = SelfConsistencySettings(
        max_branches=options.branches,
        rule=rule,
        grants=AdaptiveGrants(rule),
        offers=True,
        window=OFFER_WINDOW,
    )
    times: list[float] = []
    for _ in range(options.repetitions):
        program = SelfConsistency(settings)
        program.start()
        for branch in range(options.branches):
            agrees = rng.random() < options.agreement
            answer = "186" if agrees else str(rng.randrange(options.others))
            event = Finished(str(branch), "", 100, "completed", answer, answer)
            started = time.thread_time_ns()
            step = program.on([event])
            times.append((time.thread_time_ns() - started) / 1000)
            if isinstance(step, Outcome):
                break
    return times


if __name__ == "__main__":
    main()
