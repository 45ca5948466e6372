"""Cost of one decision: a branch's answer is grouped, the tracker counts it, the rule is asked.

    python benchmark/decision.py --branches 64 --repetitions 200

Programs of 64 branches on the embedded model's kind of disagreement: a leading answer with the
share `--agreement`, the rest spread over ten others. Prints the median and the 99th percentile in
microseconds per branch, measured on this machine's CPU. Grouping is measured on boxed formulas, no
two spelled alike: the CPU time of the event loop's thread from the branch's text to the key of its
group, and a worker's time for a spelling that nobody has asked about before. The last line is one
JSON object; exit code 1 where a median misses its bar.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from sglang_dynasor.allocation import RULES, make_rule
from sglang_dynasor.certaindex import AnswerGroups, CertaindexTracker, MathEquality
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import FinishedBranch, ProgramSpec, with_answer

LOOP_BAR_US = 1000
WORKER_BAR_US = 30_000
# a, b, c and d are numbers: each form is another kind of work for the worker.
FORMULAS = (
    r"\frac{{{a}}}{{{b}}}",
    r"{a}\sqrt{{{b}}}",
    r"\frac{{{a}+\sqrt{{{b}}}}}{{{c}}}",
    "{a}x^2+{b}x-{c}",
    "({a}x+{b})(x-{c})",
    r"\left({a}, \frac{{{b}}}{{{c}}}\right)",
    "x = {a}",
    r"[{a}, {b}) \cup ({c}, \infty)",
    r"{a}^{{{d}}}",
    r"\frac{{{a}\pi}}{{{b}}}",
    r"\sin({a}x)+e^{{-{b}x}}",
    r"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}",
    "{a}",
    r"{a}\text{{ cm}}",
)


def main() -> int:
    """Time every rule and the grouping, and print the table."""
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
    grouping = {}
    for name, times in zip(("event loop", "worker"), time_grouping(options), strict=True):
        median, high = statistics.median(times), times[int(0.99 * len(times))]
        table.add_row(f"grouping, {name}", f"{median:.1f}", f"{high:.1f}")
        grouping[name.replace(" ", "_")] = {"median_us": round(median), "p99_us": round(high)}
    Console().print(table)
    row = {"branches": options.branches, "label": "measured (CPU)", "rules": result}
    print(json.dumps({**row, "grouping": grouping}))
    loop_us, worker_us = (figures["median_us"] for figures in grouping.values())
    return int(loop_us > LOOP_BAR_US or worker_us > WORKER_BAR_US)


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


def time_grouping(options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Microseconds per branch, rising: CPU time of the loop's thread, and time with a worker."""
    formulas = list(spellings(random.Random(options.seed), options.branches * 8))
    with MathEquality() as equality:
        if not equality.start():
            raise SystemExit("no algebra worker starts")
        loop_times = asyncio.run(time_event_loop(formulas, equality))
    with MathEquality() as equality:
        equality.start()
        worker_times = []
        for formula in formulas:
            start = time.perf_counter_ns()
            verdict = equality.verdict(formula)
            worker_times.append((time.perf_counter_ns() - start) / 1000)
            if verdict.fault is not None:
                raise SystemExit(f"{formula}: {verdict.fault}")
    return sorted(loop_times), sorted(worker_times)


def spellings(rng: random.Random, count: int) -> Iterator[str]:
    seen = set()
    while len(seen) < count:
        numbers = {name: rng.randrange(2, 1000) for name in "abc"}
        formula = rng.choice(FORMULAS).format(**numbers, d=rng.randrange(2, 12))
        if formula not in seen:
            seen.add(formula)
            yield formula


async def time_event_loop(formulas: list[str], equality: MathEquality) -> list[float]:
    fields = {"algorithm": "self_consistency", "max_branches": len(formulas)}
    spec = ProgramSpec.parse(fields).resolve(DynasorConfig())
    groups = AnswerGroups(equality)
    reasoning = "We substitute and simplify both sides, which gives the next line. " * 60
    times = []
    for index, formula in enumerate(formulas):
        text = f"{reasoning}So the answer is $\\boxed{{{formula}}}$."
        branch = FinishedBranch(index, text, 1000, "completed")
        start = time.thread_time_ns()
        branch = await with_answer(branch, spec, 0.05, groups)
        groups.key(branch.answer or "")
        times.append((time.thread_time_ns() - start) / 1000)
    return times


if __name__ == "__main__":
    sys.exit(main())
