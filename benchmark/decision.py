"""Cost of one decision of a program: a branch is counted, the rule asked, the next actions made.

    python benchmark/decision.py --branches 512 --repetitions 10

Programs of up to `--branches` branches on the embedded model's kind of disagreement: a leading
answer with the share `--agreement`, the rest spread over `--others` answers. Each runs as it is
served, offers with a window of further branches that the engine may draw, and ends where its rule
says. Prints the median, the 99th percentile and the largest in microseconds of CPU time per branch:
what other processes take does not count. The last line is one JSON object; `worst_p99_us` is over
all rules.

Grouping is measured beside it, on boxed formulas, no two spelled alike: the CPU time of the event
loop's thread from the branch's text to the key of its group, and a worker's time for a spelling
that nobody has asked about before. Exit code 1 where a median misses its bar.
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

from sglang_dynasor.allocation import RULES, AdaptiveGrants, make_rule
from sglang_dynasor.certaindex import AnswerGroups, MathEquality
from sglang_dynasor.programs import (
    Answers,
    Finished,
    Generated,
    Outcome,
    SelfConsistency,
    SelfConsistencySettings,
)
from sglang_dynasor.programs.answers import BOXED
from sglang_dynasor.programs.self_consistency_params import IDLE_PACE

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
    grouping = {}
    for name, times in zip(("event loop", "worker"), time_grouping(options), strict=True):
        median, high = statistics.median(times), times[int(0.99 * len(times))]
        figures = (median, high, times[-1])
        table.add_row(f"grouping, {name}", str(len(times)), *(f"{value:.1f}" for value in figures))
        grouping[name.replace(" ", "_")] = {"median_us": round(median), "p99_us": round(high)}
    Console(stderr=True).print(table)
    summary = {
        "branches": options.branches,
        "label": "measured (CPU)",
        "worst_p99_us": max(rule["p99_us"] for rule in result.values()),
        "rules": result,
        "grouping": grouping,
    }
    print(json.dumps(summary))
    loop_us, worker_us = (figures["median_us"] for figures in grouping.values())
    return int(loop_us > LOOP_BAR_US or worker_us > WORKER_BAR_US)


def time_rule(name: str, options: argparse.Namespace) -> list[float]:
    """Microseconds of every decision; programs differ, as they do in service."""
    rng = random.Random(options.seed)
    rule = make_rule(name)
    settings = SelfConsistencySettings(
        max_branches=options.branches,
        rule=rule,
        grants=AdaptiveGrants(rule),
        offers=True,
        idle_pace=IDLE_PACE,
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


def time_grouping(options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Microseconds per branch, rising: CPU time of the loop's thread, and time with a worker."""
    formulas = list(spellings(random.Random(options.seed), min(options.branches, 64) * 8))
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
    answers = Answers(BOXED, AnswerGroups(equality), 0.05)
    reasoning = "We substitute and simplify both sides, which gives the next line. " * 60
    times = []
    for index, formula in enumerate(formulas):
        text = f"{reasoning}So the answer is $\\boxed{{{formula}}}$."
        start = time.thread_time_ns()
        await answers.read(str(index), Generated(text, 1000, "completed"))
        times.append((time.thread_time_ns() - start) / 1000)
    return times


if __name__ == "__main__":
    sys.exit(main())
