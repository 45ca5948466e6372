"""One token budget for a batch: an even split against a pool that moves what is saved.

    python benchmark/batch_budget.py --problems 200

Both arms get the same tokens in all for the same problems and draw the same keyed samples. In the
even split every program has its share as a cap of its own, and what it leaves is lost. The pool is
`run_batch(total_tokens=...)`: what decided programs leave goes to where another branch gains most.
For each budget the two arms follow each other, in turns of order.

The even split spends less than it may, so its accuracy is given at equal tokens spent, too:
interpolated between its budgets (`split_at_equal_tokens`). The last line of stdout is one JSON
object with the middle budget's figures.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from serving_report import facts
from sglang_dynasor.demo import (
    Problem,
    add_sampling_flags,
    is_right,
    load_problems,
    program_of,
    started_engine,
)
from sglang_dynasor.models import recommended_temperature, resolve_model
from sglang_dynasor.programs import Program, ProgramResult

RESULTS = Path(__file__).parent / "results" / "batch_budget.csv"
ARMS = ("split", "pool")


def run_arm(engine: Any, arm: str, programs: list[Program], total: int) -> list[ProgramResult]:
    """The results of one arm, in the order of the programs."""
    engine.flush_cache()
    if arm == "pool":
        results: list[ProgramResult] = engine.run_batch(programs, total_tokens=total)
        return results
    share = total // len(programs)
    capped = [replace(p, dynasor={**p.dynasor, "max_total_tokens": share}) for p in programs]
    return list(engine.run_batch(capped))


def summarise(
    arm: str, budget: int, problems: Sequence[Problem], results: Sequence[ProgramResult]
) -> dict[str, Any]:
    """One row: tokens per problem that were given and spent, and how many answers are right."""
    right = [is_right(p, r.answer) for p, r in zip(problems, results, strict=True)]
    return {
        "arm": arm,
        "budget": budget,
        "problems": len(problems),
        "accuracy": sum(right) / len(right),
        "tokens": sum(result.completion_tokens for result in results) / len(results),
        "ended_by_budget": sum(result.stop_reason == "budget" for result in results),
    }


def at_equal_tokens(rows: Sequence[dict[str, Any]], tokens: float) -> float:
    """The even split's accuracy where it spends this much, between its measured budgets."""
    split = sorted((row["tokens"], row["accuracy"]) for row in rows if row["arm"] == "split")
    return float(np.interp(tokens, *zip(*split, strict=True)))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_sampling_flags(parser)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--max-branches", type=int, default=32)
    parser.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[120, 160, 200, 260, 340],
        help="tokens per problem, each an arm of both kinds",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    model = resolve_model(options.model_path)
    problems = load_problems(options.problems_file, options.problems, options.seed)
    temperature = options.temperature or recommended_temperature(model) or 1.0
    fields = {"max_branches": options.max_branches}
    programs = [program_of(problem, options, temperature, fields) for problem in problems]
    rows = []
    with started_engine(model, options.seed, {}) as engine:
        for turn, budget in enumerate(options.budgets):
            for arm in ARMS if turn % 2 == 0 else ARMS[::-1]:
                results = run_arm(engine, arm, programs, budget * len(programs))
                for problem, result in zip(problems, results, strict=True):
                    if result.error:
                        raise ValueError(f"problem {problem.id}: {result.error}")
                rows.append(summarise(arm, budget, problems, results))
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    options.model_path = model
    told = facts(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *told])
        writer.writeheader()
        writer.writerows({**row, **told} for row in rows)
    middle = options.budgets[len(options.budgets) // 2]
    split, pool = (
        next(row for row in rows if (row["arm"], row["budget"]) == (arm, middle)) for arm in ARMS
    )
    equal = at_equal_tokens(rows, pool["tokens"])
    summary = {
        "budget": middle,
        **{
            f"{row['arm']}_{key}": row[key]
            for row in (split, pool)
            for key in ("accuracy", "tokens")
        },
        "split_at_equal_tokens": round(equal, 4),
        "gain_at_equal_tokens": round(pool["accuracy"] - equal, 4),
    }
    print(json.dumps({"benchmark": "batch_budget", **summary, **told}))


if __name__ == "__main__":
    main()
