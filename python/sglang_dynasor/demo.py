"""`sglang-dynasor demo`: a fixed number of branches against Certaindex, on the real engine.

One shadow run gives both arms of the accuracy comparison on the same samples; acting runs,
alternated in one process, give tokens and seconds.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from sglang_dynasor.allocation import BetaRule, FixedGrants
from sglang_dynasor.certaindex import canonical_key
from sglang_dynasor.models import recommended_temperature, resolve_model
from sglang_dynasor.offline import Sample, cheapest_equal, fixed_curve, replay
from sglang_dynasor.programs import Program, ProgramResult

WARM_UP_PROBLEMS = 8
ALTERNATE_FROM_PROBLEMS = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """One question. `gold` is compared with a branch's answer by canonical key."""

    id: str
    messages: list[dict[str, Any]] | None
    prompt: str | None
    gold: str
    difficulty: str
    answer_format: str = "boxed"
    answer_pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """Measured means per problem of one system; `seconds` is the time for all problems."""

    accuracy: float
    tokens: float
    seconds: float


def load_problems(path: Path | None, count: int, seed: int) -> list[Problem]:
    """The first `count` problems of a JSON-lines file, or held-out ones of the embedded model.

    Raises ValueError naming file, line and field when a line is malformed, and where there is no
    problem or an id names two.
    """
    if count < 1:
        raise ValueError(f"--problems must be at least 1, got {count}")
    if path is None:
        from sglang_dynasor.models.arithmetic import held_out_problems

        return [
            Problem(
                item.id,
                [{"role": "user", "content": item.prompt}],
                None,
                item.gold,
                str(item.difficulty),
            )
            for item in held_out_problems(count, seed)
        ]
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    problems = [_parse_problem(line, f"{path}:{i}") for i, line in enumerate(lines[:count], 1)]
    if not problems:
        raise ValueError(f"{path}: has no problems")
    repeated = [name for name, times in Counter(p.id for p in problems).items() if times > 1]
    if repeated:
        raise ValueError(f"{path}: id {repeated[0]!r} stands for several problems")
    return problems


def _parse_problem(line: str, place: str) -> Problem:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON: {error}") from None
    if not isinstance(fields, dict) or "gold" not in fields:
        raise ValueError(f"{place}: needs an object with gold and one of messages and prompt")
    if ("messages" in fields) == ("prompt" in fields):
        raise ValueError(f"{place}: exactly one of messages and prompt is needed")
    return Problem(
        id=str(fields.get("id", place)),
        messages=fields.get("messages"),
        prompt=fields.get("prompt"),
        gold=str(fields["gold"]),
        difficulty=str(fields.get("difficulty", "all")),
        answer_format=fields.get("answer_format", "boxed"),
        answer_pattern=fields.get("answer_pattern"),
    )


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is asked of which model, for `program_of` and `load_problems`."""
    parser.add_argument(
        "--problems-file", type=Path, help="JSON lines: id, prompt|messages, gold, ..."
    )
    parser.add_argument("--model-path", default="tiny_reasoner", help="directory or embedded name")
    parser.add_argument("--temperature", type=float, help="default: the model's recommended one")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="per branch (default: 256)")
    parser.add_argument("--seed", type=int, default=0)


def program_of(
    problem: Problem,
    options: argparse.Namespace,
    temperature: float,
    fields: dict[str, Any],
) -> Program:
    """The self-consistency program of a problem; `fields` are further ones of `dynasor`."""
    return Program(
        prompt=problem.prompt,
        messages=problem.messages,
        sampling_params={
            "temperature": temperature,
            "max_new_tokens": options.max_new_tokens,
            # The same seed in every run: branch i of a problem is the same sample in all of them.
            "sampling_seed": problem_seed(problem, options.seed),
        },
        dynasor={
            "algorithm": "self_consistency",
            "answer_format": problem.answer_format,
            "answer_pattern": problem.answer_pattern,
            **fields,
        },
    )


def run_demo(options: argparse.Namespace) -> int:
    """Run both arms, print table and charts; the last line of stdout is one JSON object."""
    from sglang_dynasor.demo_report import print_report  # what it needs is missed now, not later

    console = Console(stderr=True)
    model = resolve_model(options.model_path)
    problems = load_problems(options.problems_file, options.problems, options.seed)
    temperature = options.temperature
    if temperature is None:
        temperature = recommended_temperature(model) or 1.0
    console.print(f"starting the engine on {model} (30 to 85 seconds on a small CPU)")
    with started_engine(model, options.seed) as engine:
        run = _Comparison(engine, problems, temperature, options, console)
        run.warm_up()
        fixed, ours, shadow = run.measure()
    summary = summarise(problems, shadow, fixed, ours, options.max_branches)

    print_report(summary, _curve(problems, shadow, options.max_branches), options.output_dir)
    print(json.dumps(summary))
    return 0


class started_engine:
    """The engine as a context manager: whatever happens, its processes end."""

    def __init__(self, model: Path, seed: int, dynasor: dict[str, Any] | None = None) -> None:
        from sglang_dynasor.engine import DynasorEngine
        from sglang_dynasor.platforms import activate

        # Without an accelerator the default sampler draws from one stream for the whole batch; the
        # keyed one makes a branch the same sample in both arms.
        keyed: dict[str, Any] = {"sampling_backend": "keyed"} if activate() else {}
        self._engine = DynasorEngine(
            model_path=str(model), random_seed=seed, dynasor=dynasor, **keyed
        )

    def __enter__(self) -> Any:
        return self._engine

    def __exit__(self, *exc_info: object) -> None:
        self._engine.shutdown()


class _Comparison:
    def __init__(
        self,
        engine: Any,
        problems: list[Problem],
        temperature: float,
        options: argparse.Namespace,
        console: Console,
    ) -> None:
        self._engine = engine
        self._problems = problems
        self._temperature = temperature
        self._options = options
        self._console = console

    def warm_up(self) -> None:
        for mode in ("shadow", "on"):
            self._run(self._problems[:WARM_UP_PROBLEMS], mode, visible=False)

    def measure(self) -> tuple[Arm, Arm, list[ProgramResult]]:
        """Both arms, over two halves of the problems in the order A B, B A when there are enough.

        Every block ends with a few stragglers in an almost empty engine; splitting a small set
        would measure mostly those.
        """
        few = len(self._problems) < ALTERNATE_FROM_PROBLEMS
        half = len(self._problems) if few else (len(self._problems) + 1) // 2
        blocks = [
            (self._problems[:half], ("shadow", "on")),
            (self._problems[half:], ("on", "shadow")),
        ]
        results: dict[str, list[ProgramResult]] = {"shadow": [], "on": []}
        seconds = {"shadow": 0.0, "on": 0.0}
        for problems, modes in blocks:
            for mode in modes if problems else ():
                label = "fixed" if mode == "shadow" else "certaindex"
                self._console.print(f"{label}: {len(problems)} problems")
                done, took = self._run(problems, mode, visible=True)
                results[mode] += done
                seconds[mode] += took
        fixed = self._arm(results["shadow"], seconds["shadow"])
        ours = self._arm(results["on"], seconds["on"])
        return fixed, ours, results["shadow"]

    def _run(
        self, problems: list[Problem], mode: str, visible: bool
    ) -> tuple[list[ProgramResult], float]:
        """All problems in one mode, from an empty prefix cache."""
        self._engine.flush_cache()
        programs = [self._program(problem, mode) for problem in problems]
        started = time.perf_counter()
        results = self._engine.run_batch(programs, progress=visible)
        seconds = time.perf_counter() - started
        for problem, result in zip(problems, results, strict=True):
            if result.error:
                raise ValueError(f"problem {problem.id}: {result.error}")
        return results, seconds

    def _program(self, problem: Problem, mode: str) -> Program:
        fields = {
            "mode": mode,
            "max_branches": self._options.max_branches,
            "detail": "branches",
        }
        return program_of(problem, self._options, self._temperature, fields)

    def _arm(self, results: list[ProgramResult], seconds: float) -> Arm:
        # Results come in the order of the problems: the blocks are consecutive halves.
        right = [is_right(p, r.answer) for p, r in zip(self._problems, results, strict=True)]
        return Arm(_mean(right), _mean(r.completion_tokens for r in results), seconds)


def summarise(
    problems: list[Problem], shadow: list[ProgramResult], fixed: Arm, ours: Arm, max_branches: int
) -> dict[str, Any]:
    """The JSON object of the demo; harm, gain, fixed_equal and beta are of the shadow run."""
    full_right = [is_right(p, r.answer) for p, r in zip(problems, shadow, strict=True)]
    ours_right = [
        is_right(p, r.report["shadow"]["answer"]) for p, r in zip(problems, shadow, strict=True)
    ]
    beta = [replay(_samples(r), BetaRule(), FixedGrants((1,)), "sequential") for r in shadow]
    beta_right = [is_right(p, o.outcome.answer) for p, o in zip(problems, beta, strict=True)]
    curve = _curve(problems, shadow, max_branches)
    # Where ours beats every fixed vote, the largest one is the fairest left to compare with.
    equal = cheapest_equal(curve, _mean(ours_right)) or curve[-1]
    saved = 1 - ours.tokens / fixed.tokens
    return {
        "n": len(problems),
        "fixed_max": vars_of(fixed),
        "certaindex": vars_of(ours),
        "fixed_equal": {"k": equal.k, "accuracy": equal.accuracy, "tokens": equal.tokens},
        "beta": {
            "accuracy": _mean(beta_right),
            "tokens": _mean(o.tokens for o in beta),
            "harm": _count(full_right, beta_right),
        },
        "tokens_saved": saved,
        "tokens_saved_vs_equal": 1 - ours.tokens / equal.tokens,
        "time_saved": 1 - ours.seconds / fixed.seconds,
        "harm": _count(full_right, ours_right),
        "gain": _count(ours_right, full_right),
    }


def vars_of(arm: Arm) -> dict[str, float]:
    return {"accuracy": arm.accuracy, "tokens": arm.tokens, "seconds": round(arm.seconds, 3)}


def _curve(problems: list[Problem], shadow: list[ProgramResult], max_branches: int) -> Any:
    golds = [problem.gold for problem in problems]
    return fixed_curve([_samples(result) for result in shadow], golds, max_branches)


def _samples(result: ProgramResult) -> list[Sample]:
    return [
        Sample(branch["answer"], branch["tokens"]) for branch in result.report["branch_details"]
    ]


def problem_seed(problem: Problem, seed: int) -> int:
    return zlib.crc32(f"{seed}:{problem.id}".encode())


def is_right(problem: Problem, answer: str) -> bool:
    return bool(answer) and canonical_key(answer) == canonical_key(problem.gold)


def _count(right: Iterable[bool], wrong: Iterable[bool]) -> int:
    """Problems the first has right and the second wrong."""
    return sum(a and not b for a, b in zip(right, wrong, strict=True))


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
