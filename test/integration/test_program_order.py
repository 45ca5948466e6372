"""Programs in the queue of a real engine: four places, a small pool, chunked prefill."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from sglang_dynasor import Program
from sglang_dynasor.models import default_model_path
from support.endless import PROMPT, assert_ran_in_full, endless_program
from support.pool import settled_pool

if TYPE_CHECKING:
    from sglang_dynasor import DynasorEngine

pytestmark = pytest.mark.own_engine

PLACES = 4
POOL_TOKENS = 1024
LONG_PROMPT = "+".join(str(10 + 3 * i % 87) for i in range(60))  # 179 tokens: three chunks


@pytest.fixture(scope="module")
def small_engine() -> Iterator[DynasorEngine]:
    from sglang_dynasor import DynasorEngine

    engine = DynasorEngine(
        model_path=str(default_model_path()),
        sampling_backend="keyed",
        random_seed=1,
        max_total_tokens=POOL_TOKENS,
        max_running_requests=PLACES,
        chunked_prefill_size=64,
        sleep_on_idle=True,
        dynasor={"policy": "gang-sjf", "speculative_share": 1.0},
    )
    yield engine
    engine.shutdown()


@pytest.fixture
def engine(small_engine: DynasorEngine) -> Iterator[DynasorEngine]:
    """The engine; afterwards nothing of the test is left in it."""
    yield small_engine
    settled_pool(small_engine, POOL_TOKENS)


def run(engine: DynasorEngine, scenario: Coroutine[Any, Any, Any]) -> Any:
    return engine.loop.run_until_complete(scenario)


def request_params(tokens: int, program_id: str | None) -> dict[str, Any]:
    params: dict[str, Any] = {"max_new_tokens": tokens, "ignore_eos": True}
    if program_id is not None:
        params["custom_params"] = {"dynasor": {"program_id": program_id}}
    return params


def generate(
    engine: DynasorEngine, tokens: int, program_id: str | None = None
) -> asyncio.Task[Any]:
    """A request of exactly so many tokens, alone or of a client's program."""
    return asyncio.ensure_future(engine.async_generate(PROMPT, request_params(tokens, program_id)))


async def filled(engine: DynasorEngine, tokens: int = 150) -> list[asyncio.Task[Any]]:
    """All places taken by a program that runs, so that what comes next waits."""
    params = request_params(tokens, "filler")

    async def run_one(runs: asyncio.Event) -> None:
        async for _ in await engine.async_generate(PROMPT, params, stream=True):
            runs.set()

    events = [asyncio.Event() for _ in range(PLACES)]
    tasks = [asyncio.ensure_future(run_one(event)) for event in events]
    await asyncio.gather(*[event.wait() for event in events])
    return tasks


async def finishing_order(tasks: dict[str, list[asyncio.Task[Any]]]) -> list[str]:
    order: list[str] = []
    for name, group in tasks.items():
        for task in group:
            task.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
    await asyncio.gather(*[task for group in tasks.values() for task in group])
    return order


def test_the_shortest_program_that_waits_goes_first(engine: DynasorEngine) -> None:
    async def scenario() -> list[str]:
        tasks = {"filler": await filled(engine)}
        for name, size in (("large", 12), ("small", 1), ("middle", 4)):
            tasks[name] = [generate(engine, 1, name) for _ in range(size)]
        return (await finishing_order(tasks))[PLACES:]

    assert run(engine, scenario()) == ["small"] + ["middle"] * 4 + ["large"] * 12


def test_the_requests_of_a_program_are_served_together(engine: DynasorEngine) -> None:
    async def scenario() -> list[str]:
        tasks: dict[str, list[asyncio.Task[Any]]] = {"filler": await filled(engine)}
        for _ in range(4):
            for name in ("a", "b", "c"):
                tasks.setdefault(name, []).append(generate(engine, 1, name))
        return (await finishing_order(tasks))[PLACES:]

    assert run(engine, scenario()) == ["a"] * 4 + ["b"] * 4 + ["c"] * 4


def test_a_plain_request_does_not_wait_for_large_programs(engine: DynasorEngine) -> None:
    async def scenario() -> list[str]:
        tasks = {"filler": await filled(engine)}
        tasks["program"] = [generate(engine, 1, "program") for _ in range(16)]
        tasks["plain"] = [generate(engine, 1)]
        return (await finishing_order(tasks))[PLACES:]

    assert run(engine, scenario())[0] == "plain"


def test_a_gang_larger_than_the_pool_enters_partly_and_ends(engine: DynasorEngine) -> None:
    result = engine.run(endless_program(branches=24, tokens=100))
    assert_ran_in_full([result], 24, 100)


def test_programs_that_outgrow_the_pool_are_retracted_and_end(engine: DynasorEngine) -> None:
    """Three places of 400 tokens do not fit into the pool, which upstream cannot foresee here."""
    never_ending = {"max_new_tokens": 400, "logit_bias": {"40": 100}}

    async def scenario() -> list[Any]:
        requests = []
        for name in ["first", "first", None, "second"] * 2:
            params = {**request_params(400, name), **never_ending, "ignore_eos": False}
            requests.append(engine.async_generate(PROMPT, params))
        return await asyncio.gather(*requests)

    metas = [output["meta_info"] for output in run(engine, scenario())]
    assert [meta["completion_tokens"] for meta in metas] == [400] * 8
    assert sum(meta["num_retractions"] for meta in metas) > 0


def test_two_programs_that_wait_for_each_others_room_both_end(engine: DynasorEngine) -> None:
    program = endless_program(branches=8, tokens=120, prompt=LONG_PROMPT)
    assert_ran_in_full(engine.run_batch([program] * 3), 8, 120)


def offering_program(**fields: Any) -> Program:
    return Program(
        prompt="27+38+45+61",
        sampling_params={"max_new_tokens": 300, "temperature": 1.0, "sampling_seed": 3},
        dynasor={
            "algorithm": "self_consistency",
            "max_branches": 16,
            "draw": "offer",
            "detail": "branches",
            **fields,
        },
    )


def test_an_idle_engine_draws_offered_branches(engine: DynasorEngine) -> None:
    report = engine.run(offering_program(rule="dynasor")).report
    assert report["branches"]["started"] >= PLACES  # three are needed at first
    assert report["tokens"]["total"] - report["tokens"]["prompt"] == sum(
        item["tokens"] for item in report["branch_details"]
    )


def test_an_offer_and_rounds_come_to_the_same_decided_answer(engine: DynasorEngine) -> None:
    reports = [
        engine.run(offering_program(rule="decided", draw=draw)).report
        for draw in ("offer", "rounds")
    ]
    assert reports[0]["answer"] == reports[1]["answer"]
    assert {report["stop_reason"] for report in reports} <= {"decided", "completed", "consensus"}


def test_drawn_branches_make_room_and_nothing_is_lost(engine: DynasorEngine) -> None:
    """The program offers branches that run for ever; plain requests come while they run."""

    async def scenario() -> tuple[Any, list[Any]]:
        program = endless_program(16, 200, draw="offer", detail="branches", min_branches=1)
        running = asyncio.ensure_future(engine.async_run(program))
        plain = [generate(engine, 20) for _ in range(3 * PLACES)]
        return await running, await asyncio.gather(*plain)

    result, plain = run(engine, scenario())
    assert [output["meta_info"]["completion_tokens"] for output in plain] == [20] * 3 * PLACES
    report = result.report
    assert result.error is None and report["branches"]["finished"] == 16
    assert sum(item["tokens"] for item in report["branch_details"]) == (
        report["tokens"]["total"] - report["tokens"]["prompt"]
    )


def test_an_abort_of_everything_leaves_no_offer_behind(engine: DynasorEngine) -> None:
    async def scenario() -> Any:
        running = asyncio.ensure_future(
            engine.async_run(endless_program(64, 200, draw="offer", min_branches=1))
        )
        while engine.tokenizer_manager.branches_in_flight < PLACES:
            await asyncio.sleep(0.01)
        engine.tokenizer_manager.abort_request(abort_all=True)
        return await running

    result = run(engine, scenario())
    assert result.report["stop_reason"] == "aborted"
