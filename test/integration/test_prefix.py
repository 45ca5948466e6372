"""Branches of one program prefill their prompt once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from sglang_dynasor import Program
from support.pool import emptied_pool, settled_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sglang_dynasor import DynasorEngine

LONG = "+".join(str(10 + 5 * i % 83) for i in range(40))  # 119 tokens
SHORT = "12+34"


@contextmanager
def recorded_nodes(engine: DynasorEngine) -> Iterator[list[dict[str, Any]]]:
    """The last output of every node that finishes inside the block."""
    manager = engine.tokenizer_manager
    generate_node = type(manager).generate_node
    outputs: list[dict[str, Any]] = []

    async def record(obj: Any) -> AsyncIterator[dict[str, Any]]:
        async for output in generate_node(manager, obj):
            yield output
        outputs.append(output)

    manager.generate_node = record
    try:
        yield outputs
    finally:
        del manager.generate_node


def run_branches(engine: DynasorEngine, prompt: str, branches: int) -> list[int]:
    """Cached prompt tokens of each branch of one program, in finishing order."""
    with recorded_nodes(engine) as outputs:
        result = engine.run(
            Program(
                prompt=prompt,
                sampling_params={"temperature": 1.0, "max_new_tokens": 8, "ignore_eos": True},
                dynasor={
                    "algorithm": "self_consistency",
                    "max_branches": branches,
                    "grants": str(branches),
                },
            )
        )
    assert result.report["branches"]["finished"] == len(outputs) == branches
    return [output["meta_info"]["cached_tokens"] for output in outputs]


def test_a_long_prompt_is_prefilled_by_one_branch_only(engine: DynasorEngine) -> None:
    emptied_pool(engine)
    cached = run_branches(engine, LONG, 8)
    assert sorted(cached) == [0] + [len(LONG) - 1] * 7
    pool = settled_pool(engine)
    assert pool.evictable_tokens < 2 * len(LONG) + 8 * 8


def test_a_second_program_with_the_same_prompt_prefills_nothing_again(
    engine: DynasorEngine,
) -> None:
    emptied_pool(engine)
    run_branches(engine, LONG, 2)
    assert run_branches(engine, LONG, 4) == [len(LONG) - 1] * 4


def test_a_prompt_below_the_threshold_is_not_held_back(engine: DynasorEngine) -> None:
    emptied_pool(engine)
    assert sum(run_branches(engine, SHORT, 4)) == 0  # all prefilled in one step


def test_programs_with_different_prompts_do_not_wait_for_each_other(
    engine: DynasorEngine,
) -> None:
    emptied_pool(engine)
    programs = [
        Program(
            prompt=f"{index}+{LONG}",
            sampling_params={"temperature": 1.0, "max_new_tokens": 8, "ignore_eos": True},
            dynasor={"algorithm": "self_consistency", "max_branches": 4, "grants": "4"},
        )
        for index in range(4)
    ]
    with recorded_nodes(engine) as outputs:
        results = engine.run_batch(programs)
    assert [result.error for result in results] == [None] * 4
    cached = [output["meta_info"]["cached_tokens"] for output in outputs]
    assert len(cached) == 16
    assert cached.count(0) == 4
    settled_pool(engine)


@pytest.mark.parametrize("ended", [0, 1])
def test_siblings_go_on_when_the_branch_they_wait_for_is_aborted(
    engine: DynasorEngine, ended: int
) -> None:
    emptied_pool(engine)
    params = {"temperature": 1.0, "max_new_tokens": 20, "ignore_eos": True}

    async def scenario() -> list[Any]:
        tasks = [
            asyncio.ensure_future(
                engine.async_generate(
                    LONG, sampling_params=params, program={"program_id": "p"}, rid=f"own-{index}"
                )
            )
            for index in range(4)
        ]
        async with asyncio.timeout(30):
            while f"own-{ended}" not in engine.tokenizer_manager.rid_to_state:
                await asyncio.sleep(0)
        engine.tokenizer_manager.abort_request(f"own-{ended}")
        return await asyncio.gather(*tasks, return_exceptions=True)

    outputs = engine.loop.run_until_complete(asyncio.wait_for(scenario(), 60))
    kept = [output for index, output in enumerate(outputs) if index != ended]
    assert [output["meta_info"]["completion_tokens"] for output in kept] == [20] * 3
    settled_pool(engine)
