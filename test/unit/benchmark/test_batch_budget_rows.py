"""The pure parts of the benchmark of one budget for a batch."""

from __future__ import annotations

from typing import Any

import pytest

from batch_budget import at_equal_tokens, run_arm, summarise
from sglang_dynasor import Program, ProgramResult
from sglang_dynasor.demo import Problem

PROBLEMS = [Problem(str(i), None, "1+1", "2", "1") for i in range(4)]


class Engine:
    def __init__(self) -> None:
        self.calls: list[tuple[list[Any], Any]] = []

    def flush_cache(self) -> None: ...

    def run_batch(self, programs: list[Program], total_tokens: int | None = None) -> list[Any]:
        caps = [program.dynasor.get("max_total_tokens") for program in programs]
        self.calls.append((caps, total_tokens))
        return []


def test_both_arms_are_given_the_same_tokens() -> None:
    engine = Engine()
    programs = [Program(prompt="1+1") for _ in PROBLEMS]
    for arm in ("split", "pool"):
        run_arm(engine, arm, programs, 400)
    assert engine.calls == [([100] * 4, None), ([None] * 4, 400)]


def test_a_row_says_what_was_spent_and_what_is_right() -> None:
    results = [
        ProgramResult("", {"answer": answer, "stop_reason": reason, "tokens": tokens})
        for answer, reason, tokens in (
            ("2", "certain", {"prompt": 4, "total": 34}),
            ("2.0", "budget", {"prompt": 4, "total": 104}),
            ("3", "budget", {"prompt": 4, "total": 104}),
            ("", "completed", {"prompt": 4, "total": 74}),
        )
    ]
    assert summarise("pool", 100, PROBLEMS, results) == {
        "arm": "pool",
        "budget": 100,
        "problems": 4,
        "accuracy": 0.5,
        "tokens": 75.0,
        "ended_by_budget": 2,
    }


@pytest.mark.parametrize(("tokens", "accuracy"), [(50, 0.5), (75, 0.6), (100, 0.7), (200, 0.7)])
def test_the_even_split_is_read_between_its_budgets(tokens: float, accuracy: float) -> None:
    rows = [
        {"arm": "split", "tokens": 100.0, "accuracy": 0.7},
        {"arm": "split", "tokens": 50.0, "accuracy": 0.5},
        {"arm": "pool", "tokens": 60.0, "accuracy": 0.9},
    ]
    assert at_equal_tokens(rows, tokens) == pytest.approx(accuracy)
