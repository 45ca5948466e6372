"""Programs whose branches never answer: all of them run, each to its last token."""

from __future__ import annotations

from typing import Any

from sglang_dynasor import Program, ProgramResult

PROMPT = "12+34"


def endless_program(branches: int, tokens: int, prompt: str = PROMPT, **fields: Any) -> Program:
    """All branches run to `tokens`: nothing is settled early."""
    return Program(
        prompt=prompt,
        sampling_params={"max_new_tokens": tokens, "ignore_eos": True, "temperature": 1.0},
        dynasor={
            "algorithm": "self_consistency",
            "max_branches": branches,
            "rule": "decided",
            **({} if "draw" in fields else {"grants": str(branches)}),
            **fields,
        },
    )


def assert_ran_in_full(results: list[ProgramResult], branches: int, tokens: int) -> None:
    for result in results:
        assert result.error is None
        assert result.report["branches"]["finished"] == branches
        assert result.report["tokens"]["branch"] == branches * tokens
