"""Search with a reward model: every algorithm at its cap, at its cheapest knob, and stopped.

    python benchmark/search.py --problems 1000

On the real engine, with the reward model in an engine of its own; arms follow each other in blocks
of problems, in turns of order, and node i of a problem is the same keyed sample in all.

- fixed: the knob (leaves, for mcts iterations) at its cap;
- fixed_equal: the cheapest knob that is as accurate as that, of a ladder of knobs;
- ours: waves of the fewest leaves that could settle the vote, until it is settled;
- vote: the full majority vote of as many samples, for comparison.

`harm` counts problems that `fixed` has right and the arm wrong, `gain` the reverse. Tokens are
means per problem: `all_tokens` generated, cancelled ones included, `reward_tokens` computed by the
reward model; `cached_share` of the tokens that nodes continue were in the cache. The last line of
stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from arms import Arm, compared, measure, rounded, table_of
from serving_report import facts
from sglang_dynasor.demo import (
    Problem,
    add_sampling_flags,
    load_problems,
    program_of,
    started_engine,
)
from sglang_dynasor.models import recommended_temperature, resolve_model
from sglang_dynasor.programs import Program

RESULTS = Path(__file__).parent / "results" / "search.csv"
ALGORITHMS = ("best_of_n", "rebase", "mcts", "beam")
KNOBS = {"best_of_n": "max_branches", "mcts": "iterations", "rebase": "width", "beam": "width"}
LADDER = (1, 2, 3, 4, 6, 8, 12)
COLUMNS = (
    *("accuracy", "harm", "gain", "all_tokens", "all_tokens_saved", "reward_tokens"),
    *("sequential_tokens", "seconds", "cached_share"),
)
SHARES = ("accuracy", "all_tokens_saved", "cached_share")


def fields_of(
    algorithm: str, knob: int, stops: bool, options: argparse.Namespace
) -> dict[str, Any]:
    """The program of one arm; one that does not stop begins all of its leaves at once."""
    fields: dict[str, Any] = {"algorithm": algorithm, KNOBS[algorithm]: knob}
    if algorithm != "best_of_n":
        fields["step_stop"] = options.step_stop
    return fields if stops else {**fields, "mode": "shadow", "grants": str(knob)}


def arm_fields(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """`name` is ALGORITHM/ours, ALGORITHM/KNOB, or vote."""
    if name == "vote":
        return {"algorithm": "self_consistency", "max_branches": options.cap, "mode": "shadow"}
    algorithm, arm = name.split("/")
    knob = options.cap if arm == "ours" else int(arm)
    return fields_of(algorithm, knob, arm == "ours", options)


def programs_of(
    name: str, problems: Sequence[Problem], options: argparse.Namespace
) -> list[Program]:
    fields = arm_fields(name, options)
    return [program_of(problem, options, options.temperature, fields) for problem in problems]


def row_of(arm: Arm, against: Arm, problems: Sequence[Problem]) -> dict[str, Any]:
    """What is held against `fixed`, with what the reward model and the cache did."""
    tokens = [result.report["tokens"] for result in arm.results]
    continued = sum(count.get("continued", 0) for count in tokens)
    reused = sum(count.get("reused", 0) for count in tokens)
    return compared(arm, against, problems) | {
        "reward_tokens": arm.tokens("reward"),
        "cached_share": reused / continued if continued else 0.0,
    }


def cheapest_equal(arms: dict[str, Arm], algorithm: str, cap: int, problems: Any) -> str:
    """The arm with the fewest tokens among those as accurate as the cap."""
    names = [f"{algorithm}/{knob}" for knob in (*LADDER, cap) if f"{algorithm}/{knob}" in arms]
    least = sum(arms[f"{algorithm}/{cap}"].right(problems))
    equal = [name for name in names if sum(arms[name].right(problems)) >= least]
    return min(equal, key=lambda name: arms[name].all_tokens)


def main() -> None:
    """Measure, print a table, write CSV rows, end with one line of JSON."""
    options = parse_options()
    model = resolve_model(options.model_path)
    if options.temperature is None:
        options.temperature = recommended_temperature(model) or 1.0
    problems = load_problems(options.problems_file, options.problems, options.seed)
    cap = options.cap
    names = ["vote"]
    for algorithm in options.algorithms:
        knobs = [knob for knob in LADDER if knob < cap] if options.ladder else []
        names += [f"{algorithm}/{arm}" for arm in (*knobs, cap, "ours")]
    console = Console(stderr=True)
    console.print(f"starting the engines; {len(problems)} problems, {len(names)} arms")
    settings = {"reward_model_path": options.reward_model_path, "speculative_share": 0.0}
    with started_engine(model, options.seed, settings) as engine:
        engine.run_batch(programs_of(f"{options.algorithms[0]}/ours", problems[:16], options))
        arms = measure(
            engine, names, problems, lambda name, block: programs_of(name, block, options)
        )
    rows: dict[str, dict[str, Any]] = {}
    for algorithm in options.algorithms:
        fixed = arms[f"{algorithm}/{cap}"]
        equal = cheapest_equal(arms, algorithm, cap, problems)
        rows[f"{algorithm} fixed"] = {"knob": cap, **row_of(fixed, fixed, problems)}
        rows[f"{algorithm} fixed_equal"] = {
            "knob": int(equal.split("/")[1]),
            **row_of(arms[equal], fixed, problems),
        }
        ours = arms[f"{algorithm}/ours"]
        saved_vs_equal = 1 - ours.all_tokens / arms[equal].all_tokens
        rows[f"{algorithm} ours"] = {
            "knob": cap,
            **row_of(ours, fixed, problems),
            "saved_vs_equal": saved_vs_equal,
        }
    first = arms[f"{options.algorithms[0]}/{cap}"]
    rows["vote"] = {"knob": cap, **row_of(arms["vote"], first, problems)}
    title = "per problem; held against the algorithm at its cap"
    Console(width=150).print(table_of(title, rows, ("knob", *COLUMNS), SHARES))
    facts_of = facts(options)
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["arm", *columns, *facts_of], restval="")
        writer.writeheader()
        for name, row in rows.items():
            writer.writerow({"arm": name, **rounded(row), **facts_of})
    result = {
        "problems": len(problems),
        "cap": cap,
        "arms": {name: rounded(row) for name, row in rows.items()},
        **facts_of,
    }
    print(json.dumps(result))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=1000)
    add_sampling_flags(parser)
    parser.add_argument("--reward-model-path", default="tiny_reward")
    parser.add_argument("--cap", type=int, default=16, help="of every knob (default: 16)")
    parser.add_argument("--step-stop", default=";", help="ends a step (default: %(default)s)")
    parser.add_argument(
        "--algorithms",
        type=lambda text: text.split(","),
        default=list(ALGORITHMS),
        help=f"of {','.join(ALGORITHMS)}",
    )
    parser.add_argument(
        "--no-ladder", dest="ladder", action="store_false", help="leave the cheaper knobs out"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
