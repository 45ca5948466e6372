"""A program that ends in the middle leaves nothing in the pool, and its counts are exact."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sglang_dynasor import Program, ProgramResult
from sglang_dynasor.scheduling import ProgramKey
from support.pool import (
    POOL_TOKENS,
    WANDERING,
    emptied_pool,
    pool_of,
    recorded_ends,
    settled_pool,
)

if TYPE_CHECKING:
    from sglang_dynasor import DynasorEngine

PROMPT = "+".join(str(10 + 3 * i % 87) for i in range(30))  # 89 tokens
ENDLESS = {"temperature": 1.0, "max_new_tokens": 400, "ignore_eos": True, "sampling_seed": 3}

# Stops with the first finished branch, whatever it answered, while the others still run.
STOPS_EARLY = {
    "algorithm": "self_consistency",
    "answer_format": "text",
    "max_branches": 16,
    "grants": "16",
    "rule": "dynasor",
    "threshold": 0.0,
    "min_branches": 1,
    "detail": "branches",
}


def run_wandering(engine: DynasorEngine, **fields: Any) -> ProgramResult:
    program = Program(
        prompt=PROMPT,
        sampling_params={**WANDERING, "skip_special_tokens": False},
        dynasor={**STOPS_EARLY, **fields},
    )
    return engine.run(program)


def assert_counts_agree(report: dict[str, Any]) -> None:
    details = report["branch_details"]
    branches, tokens = report["branches"], report["tokens"]
    assert [item["branch"] for item in details] == list(range(branches["started"]))
    cancelled = [item["tokens"] for item in details if item["stop_reason"] == "cancelled"]
    finished = [item["tokens"] for item in details if item["stop_reason"] != "cancelled"]
    assert (len(finished), len(cancelled)) == (branches["finished"], branches["cancelled"])
    assert (sum(finished), sum(cancelled)) == (tokens["branch"], tokens["cancelled"])
    assert tokens["total"] == tokens["prompt"] + sum(finished) + sum(cancelled)


def test_a_certain_stop_leaves_only_the_prompt_and_the_finished_branches(
    engine: DynasorEngine,
) -> None:
    emptied_pool(engine)
    with recorded_ends(engine) as ends:
        report = run_wandering(engine).report
    # No waiting here: the pool is read as soon as the answer is there.
    pool = pool_of(engine)
    assert (pool.programs, pool.requests, pool.protected_tokens) == (0, 0, 0)
    assert pool.available_tokens + pool.evictable_tokens == POOL_TOKENS
    tokens = report["tokens"]
    assert report["stop_reason"] == "certain"
    assert report["branches"]["cancelled"] >= 8
    assert tokens["cancelled"] > report["branches"]["cancelled"]
    assert tokens["prompt"] <= pool.evictable_tokens <= tokens["prompt"] + tokens["branch"]
    assert_counts_agree(report)
    (end,) = ends
    assert len(end.tokens) == report["branches"]["cancelled"]
    assert sum(end.tokens.values()) == tokens["cancelled"]


def test_at_most_two_tokens_are_committed_after_the_end_is_received(
    engine: DynasorEngine,
) -> None:
    late = []
    for seed in range(5):
        with recorded_ends(engine) as ends:
            engine.run(
                Program(
                    prompt=PROMPT,
                    sampling_params={**WANDERING, "sampling_seed": seed},
                    dynasor=STOPS_EARLY,
                )
            )
        (end,) = ends
        assert end.tokens.keys() == end.tokens_at_end.keys()
        late += [end.tokens[rid] - end.tokens_at_end[rid] for rid in end.tokens]
    assert len(late) > 30
    assert set(late) <= {0, 1, 2}
    assert max(late) > 0  # they were running when the message came


def test_the_count_of_a_finished_branch_is_its_number_of_tokens(engine: DynasorEngine) -> None:
    emptied_pool(engine)
    report = run_wandering(engine, min_branches=12).report
    encode = engine.tokenizer_manager.tokenizer.encode
    finished = [item for item in report["branch_details"] if item["stop_reason"] == "completed"]
    assert len(finished) >= 8
    for item in finished:
        text_tokens = len(encode(item["text"], add_special_tokens=False))
        assert item["tokens"] - text_tokens in (0, 1)  # the end token is counted, not shown
    cut = [item for item in report["branch_details"] if item["stop_reason"] == "cancelled"]
    for item in cut:
        text_tokens = len(encode(item["text"], add_special_tokens=False))
        assert 0 <= item["tokens"] - text_tokens <= 3


def test_a_deadline_ends_the_program_and_frees_its_pool(engine: DynasorEngine) -> None:
    emptied_pool(engine)
    program = Program(
        prompt=PROMPT,
        sampling_params=ENDLESS,
        dynasor={
            "algorithm": "self_consistency",
            "max_branches": 12,
            "grants": "12",
            "deadline_ms": 400,
            "detail": "branches",
        },
    )
    result = engine.run(program)
    report = result.report
    assert report["stop_reason"] == "deadline"
    assert result.text == "" and result.answer == ""
    counts = {"max": 12, "started": 12, "finished": 0, "cancelled": 12, "failed": 0}
    assert report["branches"] == counts
    assert 0 < report["tokens"]["cancelled"] < 12 * 400
    assert 0.4 <= report["seconds"] < 2.0
    assert_counts_agree(report)
    pool = settled_pool(engine)
    assert pool.evictable_tokens == report["tokens"]["prompt"]


async def running_program(
    engine: DynasorEngine, program_id: str, branches: int
) -> asyncio.Task[ProgramResult]:
    """Start an endless program and return once the scheduler has all of its branches."""
    program = Program(
        prompt=PROMPT,
        sampling_params=ENDLESS,
        dynasor={
            "algorithm": "self_consistency",
            "program_id": program_id,
            "max_branches": branches,
            "grants": str(branches),
            "detail": "branches",
        },
    )
    task = asyncio.ensure_future(engine.async_run(program))
    async with asyncio.timeout(30):
        while (await scheduler_state(engine))["requests"] < branches:
            await asyncio.sleep(0.01)
    return task


async def scheduler_state(engine: DynasorEngine) -> dict[str, Any]:
    (state,) = await engine.tokenizer_manager.get_internal_state()
    return state["dynasor"]


def test_ending_a_program_by_its_key_takes_waiting_branches_too(engine: DynasorEngine) -> None:
    emptied_pool(engine)
    branches = 60  # 60 * 400 tokens: more than the pool, so that some have to wait

    async def scenario() -> tuple[ProgramResult, dict[str, int]]:
        task = await running_program(engine, "to-be-ended", branches)
        tokens = await engine.tokenizer_manager.end_program(ProgramKey("", "to-be-ended"))
        return await task, tokens

    with recorded_ends(engine) as ends:
        result, tokens = engine.loop.run_until_complete(scenario())
    assert result.stop_reason == "aborted"
    assert len(tokens) == branches
    assert 0 in tokens.values() and max(tokens.values()) > 0  # waiting and running ones
    assert all(end.tokens[rid] - end.tokens_at_end[rid] <= 2 for end in ends for rid in end.tokens)
    pool = settled_pool(engine)
    assert pool.evictable_tokens <= result.report["tokens"]["prompt"]


def test_cancelling_the_caller_ends_the_program(engine: DynasorEngine) -> None:
    emptied_pool(engine)

    async def scenario() -> None:
        task = await running_program(engine, "abandoned", 8)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await scheduler_state(engine))["requests"] == 0

    engine.loop.run_until_complete(scenario())
    assert settled_pool(engine).evictable_tokens <= 89 + 1
    assert engine.tokenizer_manager.branches_in_flight == 0
    assert not engine.tokenizer_manager.rid_to_state


def test_ending_one_program_leaves_others_and_plain_requests_alone(
    engine: DynasorEngine,
) -> None:
    emptied_pool(engine)
    bounded = {**ENDLESS, "max_new_tokens": 120}

    async def scenario() -> tuple[Any, Any, Any]:
        manager = engine.tokenizer_manager
        doomed = await running_program(engine, "doomed", 4)
        member = asyncio.ensure_future(
            engine.async_generate(PROMPT, sampling_params=bounded, program={"program_id": "kept"})
        )
        plain = asyncio.ensure_future(
            engine.async_generate(PROMPT, sampling_params=bounded, rid="doomed::9")
        )
        async with asyncio.timeout(30):
            while (await scheduler_state(engine))["programs"] < 2:
                await asyncio.sleep(0.01)
        await manager.end_program(ProgramKey("", "doomed"))
        return await doomed, await member, await plain

    doomed, member, plain = engine.loop.run_until_complete(scenario())
    assert doomed.stop_reason == "aborted"
    for output in (member, plain):
        assert output["meta_info"]["finish_reason"] == {"type": "length", "length": 120}
    settled_pool(engine)


def test_upstreams_abort_of_a_program_id_ends_the_program(engine: DynasorEngine) -> None:
    emptied_pool(engine)

    async def scenario() -> ProgramResult:
        task = await running_program(engine, "aborted-by-id", 4)
        engine.tokenizer_manager.abort_request("aborted-by-id")
        return await task

    result = engine.loop.run_until_complete(scenario())
    assert result.stop_reason == "aborted"
    settled_pool(engine)


def test_ending_an_unknown_program_is_answered_with_nothing(engine: DynasorEngine) -> None:
    end = engine.tokenizer_manager.end_program(ProgramKey("", "never-started"))
    assert engine.loop.run_until_complete(end) == {}


def test_branches_survive_retraction_with_the_tokens_they_would_have_had(
    engine: DynasorEngine,
) -> None:
    emptied_pool(engine)
    fields = {"algorithm": "self_consistency", "detail": "branches", "min_branches": 1}

    def texts(branches: int) -> dict[int, str]:
        program = Program(
            prompt=PROMPT,
            sampling_params={**WANDERING, "ignore_eos": True, "max_new_tokens": 300},
            dynasor={**fields, "max_branches": branches, "grants": str(branches)},
        )
        report = engine.run(program).report
        assert {item["tokens"] for item in report["branch_details"]} == {300}
        return {item["branch"]: item["text"] for item in report["branch_details"]}

    crowded = texts(48)  # 48 * 300 tokens do not fit into the pool at once
    settled_pool(engine)
    alone = texts(6)
    assert {index: crowded[index] for index in alone} == alone
    settled_pool(engine)
