"""Arms of a comparison on the real engine: blocks of the same problems, in turns of order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from sglang_dynasor.demo import Problem, is_right
from sglang_dynasor.programs import Program, ProgramResult

BLOCK = 250
ProgramsOf = Callable[[str, Sequence[Problem]], list[Program]]


@dataclass
class Arm:
    """The results of one arm, problem by problem, and the seconds they took."""

    results: list[ProgramResult] = field(default_factory=list)
    seconds: float = 0.0

    def right(self, problems: Sequence[Problem]) -> list[bool]:
        return [is_right(p, r.answer) for p, r in zip(problems, self.results, strict=True)]

    def tokens(self, name: str) -> float:
        """Mean per problem of one of the report's counts."""
        return sum(r.report["tokens"][name] for r in self.results) / len(self.results)

    @property
    def all_tokens(self) -> float:
        return self.tokens("total") - self.tokens("prompt")


def measure(
    engine: Any, names: Sequence[str], problems: Sequence[Problem], programs_of: ProgramsOf
) -> dict[str, Arm]:
    """Every arm on every problem, in blocks and turns."""
    arms = {name: Arm() for name in names}
    for turn, begin in enumerate(range(0, len(problems), BLOCK)):
        block = problems[begin : begin + BLOCK]
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            engine.flush_cache()
            started = time.perf_counter()
            results = engine.run_batch(programs_of(name, block))
            arms[name].seconds += time.perf_counter() - started
            if errors := [result.error for result in results if result.error]:
                raise SystemExit(f"{name}: {errors[0]}")
            arms[name].results += results
    return arms


def compared(arm: Arm, against: Arm, problems: Sequence[Problem]) -> dict[str, Any]:
    """Accuracy, harm and gain, tokens and seconds of an arm, held against another."""
    right, base = arm.right(problems), against.right(problems)
    pairs = list(zip(base, right, strict=True))
    return {
        "accuracy": sum(right) / len(right),
        "harm": sum(b and not r for b, r in pairs),
        "gain": sum(r and not b for b, r in pairs),
        "all_tokens": arm.all_tokens,
        "all_tokens_saved": 1 - arm.all_tokens / against.all_tokens,
        "sequential_tokens": arm.tokens("sequential"),
        "seconds": arm.seconds,
        "seconds_saved": 1 - arm.seconds / against.seconds,
    }


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()}


def table_of(
    title: str, rows: dict[str, dict[str, Any]], columns: Sequence[str], shares: Sequence[str]
) -> Table:
    """A row per arm; `shares` are shown in percent."""
    table = Table(title=title)
    for column in ("arm", *columns):
        table.add_column(column.replace("_", " "), justify="left" if column == "arm" else "right")
    for name, row in rows.items():
        table.add_row(name, *(_cell(row[column], column in shares) for column in columns))
    return table


def _cell(value: Any, is_share: bool) -> str:
    if is_share:
        return f"{value:.1%}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
