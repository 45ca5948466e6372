"""Chains of thought with fewer tokens: what each way of ending them costs, on the same samples.

    python benchmark/token_deprivation.py --problems 1000

The paper's token deprivation (its Figure 6), on the real engine and one run: arms follow each other
in blocks of problems, in turns of order, and chain i of a problem is the same keyed sample in all.

- full: every chain to its own end;
- hard_budget: at most so many thinking tokens, then the answer is forced; the limit at which it
  spends what `ours` does;
- released_mid: the released rule and its preset "mid", 3 equal answers, 64 tokens apart;
- ours: probes from `--warmup` on, each `--interval` tokens; `--window` equal ones end the chain,
  where the newest is as probable as `--min-confidence`;
- sc: 8 chains and the full vote; sc_finished: the rule on finished ones; sc_running: the same with
  votes of running ones, once 4 finished agree.

`harm` counts problems that `full` (for votes `sc`) has right and the arm wrong, `gain` the reverse.
Token figures are means per problem; `all_tokens` hold probes and what was cancelled,
`sequential_tokens` are those of the longest path. With `--sweep` a table of interval x window
follows. `decode_ratio` is the parents' decode throughput with probes that stop nothing over that
without. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from arms import BLOCK, Arm, compared, measure, rounded, table_of
from serving_report import facts
from sglang_dynasor.demo import (
    Problem,
    add_sampling_flags,
    load_problems,
    program_of,
    started_engine,
)
from sglang_dynasor.models import resolve_model
from sglang_dynasor.programs import Program

RESULTS = Path(__file__).parent / "results" / "token_deprivation.csv"
CHAINS = ("full", "hard_budget", "released_mid", "ours")
VOTES = ("sc", "sc_finished", "sc_running")
VOTE = {"algorithm": "self_consistency", "max_branches": 8}
DECODE_TURNS = 5
COLUMNS = (
    *("accuracy", "harm", "gain", "thinking_tokens", "all_tokens", "all_tokens_saved"),
    *("sequential_tokens", "probe_token_share", "seconds"),
)
SHARES = ("accuracy", "all_tokens_saved", "probe_token_share")


def fields_of(arm: str, options: argparse.Namespace, budget: int) -> dict[str, Any]:
    """The program of one arm."""
    probed = {
        "algorithm": "cot",
        "on_exit": "insert",
        "probe_interval": options.interval,
        "window": options.window,
        "warmup_tokens": options.warmup,
        "probe_text": options.probe_text,
    }
    if options.min_confidence is not None:
        probed["min_confidence"] = options.min_confidence
    return {
        "full": {"algorithm": "cot", "saving_effort": "none"},
        "hard_budget": {
            "algorithm": "cot",
            "saving_effort": "none",
            "max_thinking_tokens": budget,
            "on_exit": "insert",
            "probe_text": options.probe_text,
        },
        "released_mid": {
            "algorithm": "cot",
            "probe_interval": 64,
            "window": 3,
            "on_exit": "insert",
        },
        "ours": probed,
        "never": {**probed, "window": 1000},
        "sc": {**VOTE, "mode": "shadow"},
        "sc_finished": {**VOTE, "pace": options.pace},
        "sc_running": {**VOTE, "pace": options.pace, "probe_interval": options.vote_interval},
    }[arm]


def programs_of(
    arm: str, problems: Sequence[Problem], options: argparse.Namespace, budget: int = 1
) -> list[Program]:
    fields = fields_of(arm, options, budget)
    thinking = {"enable_thinking": True}
    made = [program_of(problem, options, options.temperature, fields) for problem in problems]
    return [
        replace(program, chat_template_kwargs=thinking) if program.messages else program
        for program in made
    ]


def measured(
    engine: Any, names: Sequence[str], problems: list[Problem], options: Any, budget: int = 1
) -> dict[str, Arm]:
    return measure(
        engine, names, problems, lambda name, block: programs_of(name, block, options, budget)
    )


def equal_budget(full: Arm, tokens: float) -> int:
    """The limit of thinking tokens at which the chains of `full` would spend so many on average."""
    lengths = [result.report["tokens"]["branch"] for result in full.results]
    answer = 5  # tokens of the forced answer, about
    for budget in range(1, max(lengths) + 1):
        spent = sum(min(n, budget + answer) for n in lengths) / len(lengths)
        if spent >= tokens:
            return budget
    return max(lengths)


def row_of(arm: Arm, against: Arm, problems: Sequence[Problem]) -> dict[str, Any]:
    return compared(arm, against, problems) | {
        "thinking_tokens": arm.tokens("branch"),
        "probe_token_share": arm.tokens("probe") / arm.all_tokens,
    }


def decode_ratio(engine: Any, problems: list[Problem], options: Any) -> float:
    """Tokens of chains a second with probes that stop nothing, over that without; the median."""
    block = problems[:BLOCK]
    ratios = []
    for turn in range(DECODE_TURNS):
        rates = {}
        for name in ("full", "never") if turn % 2 else ("never", "full"):
            arm = measured(engine, [name], block, options)[name]
            rates[name] = arm.tokens("branch") / arm.seconds
        ratios.append(rates["never"] / rates["full"])
    return sorted(ratios)[DECODE_TURNS // 2]


def sweep(engine: Any, problems: list[Problem], options: Any, full: Arm) -> list[dict[str, Any]]:
    """Accuracy against tokens for interval x window (the paper's Figure 6)."""
    rows = []
    block = problems[: len(full.results)]
    for interval in (16, 32, 64):
        for window in (1, 2, 3, 5):
            changed = {"interval": interval, "window": window, "warmup": 0, "min_confidence": None}
            given = argparse.Namespace(**{**vars(options), **changed})
            arm = measured(engine, ["ours"], block, given)["ours"]
            rows.append({"interval": interval, "window": window, **row_of(arm, full, block)})
    return rows


def main() -> None:
    """Measure, print tables, write CSV rows, end with one line of JSON."""
    options = parse_options()
    model = resolve_model(options.model_path)
    problems = load_problems(options.problems_file, options.problems, options.seed)
    console = Console(stderr=True)
    console.print(f"starting the engine on {model}; {len(problems)} problems")
    settings = {"speculative_share": 0.0}
    with started_engine(model, options.seed, settings) as engine:
        engine.run_batch(programs_of("full", problems[:BLOCK], options))  # warm
        names = ["full", "released_mid", "ours"]
        arms = measured(engine, names, problems, options)
        budget = equal_budget(arms["full"], arms["ours"].all_tokens)
        arms |= measured(engine, ["hard_budget"], problems, options, budget)
        arms |= measured(engine, VOTES, problems[: options.vote_problems], options)
        ratio = decode_ratio(engine, problems, options)
        swept = (
            sweep(engine, problems[:200], options, _first(arms["full"], 200))
            if options.sweep
            else []
        )
    rows = {name: row_of(arms[name], arms["full"], problems) for name in CHAINS}
    voted = problems[: options.vote_problems]
    rows |= {name: row_of(arms[name], arms["sc"], voted) for name in VOTES}
    title = "per problem; votes are held against sc"
    Console(width=150).print(table_of(title, rows, COLUMNS, SHARES))
    facts_of = facts(options)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["arm", *next(iter(rows.values())), *facts_of])
        writer.writeheader()
        for name, row in rows.items():
            writer.writerow({"arm": name, **rounded(row), **facts_of})
    result = {
        "problems": len(problems),
        "vote_problems": len(voted),
        "budget": budget,
        "decode_ratio": round(ratio, 4),
        "arms": {name: rounded(row) for name, row in rows.items()},
        "sweep": [rounded(row) for row in swept],
        "temperature": options.temperature,
        "rule": {name: getattr(options, name) for name in _RULE},
        **facts_of,
    }
    print(json.dumps(result))


_RULE = ("interval", "window", "warmup", "min_confidence", "pace", "vote_interval")


def _first(arm: Arm, count: int) -> Arm:
    share = min(count, len(arm.results)) / len(arm.results)
    return Arm(arm.results[:count], arm.seconds * share)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--vote-problems", type=int, default=250, help="of these, for the votes")
    add_sampling_flags(parser)
    parser.set_defaults(temperature=0.6, max_new_tokens=400)
    parser.add_argument("--interval", type=int, default=56, help="tokens between probes of ours")
    parser.add_argument("--window", type=int, default=1, help="equal probes that end a chain")
    parser.add_argument(
        "--probe-text", default="</think>\\boxed{", help="what is forced (default: %(default)s)"
    )
    parser.add_argument("--warmup", type=int, default=0, help="tokens before the first probe")
    parser.add_argument(
        "--min-confidence", type=float, default=0.97, help="of the newest answer (default: 0.97)"
    )
    parser.add_argument("--pace", type=float, default=2.0, help="of both arms that stop a vote")
    parser.add_argument("--vote-interval", type=int, default=32, help="probes of sc_running")
    parser.add_argument("--sweep", action="store_true", help="add interval x window")
    return parser.parse_args()


if __name__ == "__main__":
    main()
