"""`sglang-dynasor run`: problems through the engine, answered or recorded as a trace."""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sglang_dynasor.allocation import RULES
from sglang_dynasor.certaindex import CERTAINTY_TOP_K
from sglang_dynasor.config import DynasorConfig, from_flags
from sglang_dynasor.demo import (
    Problem,
    add_sampling_flags,
    is_right,
    load_problems,
    program_of,
    started_engine,
)
from sglang_dynasor.models import recommended_temperature, resolve_model
from sglang_dynasor.programs import ALGORITHMS, Program, ProgramResult, ProgramSpec
from sglang_dynasor.programs.search_params import SearchParams

TABLE_ROWS = 20
DEFAULT_PROBLEMS = 60
# A probe that finds no place is dropped: recorded chains leave room for theirs.
PROBED_IN_FLIGHT = 8
_CERTAINTY_FIELDS = ("mean", "tail", "lowest_group", "entropy", "self_certainty", "logprob")


def add_parser(commands: Any) -> None:
    """Add the subcommand to what `ArgumentParser.add_subparsers` returned."""
    parser = commands.add_parser("run", help="answer problems, or record every branch of them")
    parser.add_argument(
        "--problems",
        type=int,
        help=f"how many (default: all of the file, or {DEFAULT_PROBLEMS} held-out sums)",
    )
    add_sampling_flags(parser)
    parser.add_argument("--max-branches", type=int, help="default: the profile's, or 16")
    # The names of the server's flags: both are settings of the engine.
    parser.add_argument(
        "--rule", dest="dynasor_rule", choices=RULES, default=argparse.SUPPRESS, help="stop rule"
    )
    parser.add_argument(
        "--profile",
        dest="dynasor_profile",
        default=argparse.SUPPRESS,
        help="file of `sglang-dynasor calibrate`",
    )
    parser.add_argument(
        "--record",
        type=Path,
        help="stop no branch and write all of them to this .jsonl.gz, as `calibrate` reads them",
    )
    parser.add_argument("--texts", action="store_true", help="record what branches wrote, too")
    parser.add_argument(
        "--probe-interval",
        type=int,
        help="record what each branch would have answered each so many tokens, too",
    )
    parser.add_argument(
        "--fields",
        type=json_object,
        default={},
        help="further fields of `dynasor` as JSON; of a search `--record` writes its trees",
    )
    parser.add_argument(
        "--reward-model-path",
        dest="dynasor_reward_model_path",
        default=argparse.SUPPRESS,
        help="of a search: a folder, or tiny_reward",
    )
    parser.add_argument(
        "--thinking", action="store_true", help="have the chat template open a thought"
    )
    parser.set_defaults(run=run)


def json_object(text: str) -> dict[str, Any]:
    """The value of a flag. Raises ArgumentTypeError for anything but an object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be an object, not {text!r}")
    return value


def run(options: argparse.Namespace) -> int:
    """Run the programs, print a table; the last line of stdout is one JSON object.

    Raises ValueError and FileNotFoundError for unusable options, and ValueError naming the problem
    where a program is refused or, recording, loses a branch.
    """
    _check_options(options)
    config = from_flags(options)
    dynasor = config.model_dump(exclude_unset=True)
    model = resolve_model(options.model_path)
    count = options.problems
    if count is None:
        count = sys.maxsize if options.problems_file else DEFAULT_PROBLEMS
    problems = load_problems(options.problems_file, count, options.seed)
    if options.temperature is None:
        options.temperature = recommended_temperature(model) or 1.0
    programs = [_program(problem, options) for problem in problems]
    _check_programs(problems, programs, config)
    console = Console(stderr=True)
    console.print(f"starting the engine on {model} (30 to 85 seconds on a small CPU)")
    with started_engine(model, options.seed, dynasor) as engine:
        results = run_programs(
            engine,
            problems,
            programs,
            recording=bool(options.record),
            branches_in_flight=PROBED_IN_FLIGHT if options.probe_interval else None,
        )
    console.print(_table(problems, results))
    summary = _summary(problems, results)
    if options.record:
        name = model.resolve().name
        measured = {"k": CERTAINTY_TOP_K, "group_tokens": config.certainty_group_tokens}
        write_trace(options.record, problems, results, name, measured, options.texts)
        summary["record"] = str(options.record)
    print(json.dumps(summary))
    return 0


def _check_options(options: argparse.Namespace) -> None:
    path = options.record
    if path is None:
        for name in ("texts", "probe_interval"):
            if getattr(options, name):
                raise ValueError(f"--{name.replace('_', '-')}: needs --record")
        return
    if path.suffix != ".gz":
        raise ValueError(f"--record: {path} must end in .gz")
    if not path.parent.is_dir():  # known now, not after the samples are drawn
        raise FileNotFoundError(f"--record: no folder {path.parent}")


def _check_programs(
    problems: list[Problem], programs: list[Program], config: DynasorConfig
) -> None:
    """Find what the engine would refuse before it starts, which takes long."""
    for problem, program in zip(problems, programs, strict=True):
        try:
            ProgramSpec.parse(program.dynasor).resolve(config)
        except ValueError as error:
            raise ValueError(f"problem {problem.id}: {error}") from None


def run_programs(
    engine: Any,
    problems: list[Problem],
    programs: list[Program],
    *,
    recording: bool,
    branches_in_flight: int | None = None,
) -> list[ProgramResult]:
    """One result per problem. Raises ValueError where one is refused or loses a branch."""
    results = engine.run_batch(programs, progress=True, branches_in_flight=branches_in_flight)
    for problem, result in zip(problems, results, strict=True):
        if result.error:
            raise ValueError(f"problem {problem.id}: {result.error}")
        if recording and result.stop_reason != "completed":
            raise ValueError(f"problem {problem.id}: {result.stop_reason}, cannot be recorded")
    return results


def _program(problem: Problem, options: argparse.Namespace) -> Program:
    fields: dict[str, Any] = {
        "mode": "shadow" if options.record else "on",
        "detail": "branches" if options.record else "answer",
        "token_certainty": bool(options.record),
    }
    if options.max_branches is not None:
        fields["max_branches"] = options.max_branches
    if options.probe_interval is not None:
        fields["probe_interval"] = options.probe_interval
    fields |= options.fields
    program = program_of(problem, options, options.temperature, fields)
    if not options.thinking:
        return program
    return replace(program, chat_template_kwargs={"enable_thinking": True})


def write_trace(
    path: Path,
    problems: Sequence[Problem],
    results: Sequence[ProgramResult],
    model: str,
    measured: dict[str, int],
    texts: bool,
) -> None:
    """Write one line per problem. The same samples give the same bytes; never half a file."""
    unfinished = path.with_name(path.name + ".part")
    try:
        with (
            unfinished.open("wb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        ):
            for problem, result in zip(problems, results, strict=True):
                line = _trace_line(problem, result, model, texts) | {"certainty": measured}
                packed.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _trace_line(problem: Problem, result: ProgramResult, model: str, texts: bool) -> dict[str, Any]:
    question = problem.messages[-1]["content"] if problem.messages else problem.prompt
    described = {"id": problem.id, "problem": question, "gold": problem.gold, "model": model}
    if issubclass(ALGORITHMS[result.report["algorithm"]].params, SearchParams):
        nodes = [_node(problem, branch, texts) for branch in result.report["branch_details"]]
        return {**described, "algorithm": result.report["algorithm"], "nodes": nodes}
    samples = []
    for branch in result.report["branch_details"]:
        sample = {
            "answer": branch["answer"],
            "correct": is_right(problem, branch["answer"]),
            "n_tokens": branch["tokens"],
            "certainty": {
                name: float(f"{value:.6g}")
                for name, value in branch["certainty"].items()
                if name in _CERTAINTY_FIELDS and value is not None
            },
        }
        sample |= {"text": branch["text"]} if texts else {}
        samples.append(sample | ({"probes": branch["probes"]} if "probes" in branch else {}))
    return {**described, "samples": samples}


def _node(problem: Problem, branch: dict[str, Any], texts: bool) -> dict[str, Any]:
    """A node of a tree; one whose path has ended has an answer."""
    answer = branch["answer"]
    node = {
        "node": str(branch["branch"]),
        "parent": branch.get("parent"),
        "n_tokens": branch["tokens"],
        "reward": branch.get("reward"),
    }
    if answer is not None:
        node |= {"answer": answer, "correct": is_right(problem, answer)}
    return node | ({"text": branch["text"]} if texts else {})


def _table(problems: Sequence[Problem], results: Sequence[ProgramResult]) -> Table:
    shown = min(TABLE_ROWS, len(problems))
    table = Table(title=f"{shown} of {len(problems)} problems")
    for column in ("id", "answer", "gold", "stop reason"):
        table.add_column(column)
    for column in ("branches", "tokens"):
        table.add_column(column, justify="right")
    for problem, result in list(zip(problems, results, strict=True))[:shown]:
        table.add_row(
            *(escape(text) for text in (problem.id, result.answer, problem.gold)),
            result.stop_reason,
            str(result.report["branches"]["started"]),
            str(result.completion_tokens),
        )
    return table


def _summary(problems: Sequence[Problem], results: Sequence[ProgramResult]) -> dict[str, Any]:
    right = sum(is_right(p, r.answer) for p, r in zip(problems, results, strict=True))
    return {
        "n": len(problems),
        "accuracy": right / len(problems),
        "tokens": sum(result.completion_tokens for result in results) / len(problems),
        "stop_reasons": dict(Counter(result.stop_reason for result in results)),
    }
