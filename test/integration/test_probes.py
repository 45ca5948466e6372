"""Probes forked inside a real engine: the chain is undisturbed, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from sglang_dynasor import ProgramResult
from support.chains import EAGER, NEVER, PROBLEMS, chain, run
from support.pool import emptied_pool, settled_pool

if TYPE_CHECKING:
    from sglang_dynasor import DynasorEngine

RULE = {"probe_interval": 8, "window": 1}


@pytest.fixture(autouse=True)
def nothing_is_left(engine: DynasorEngine) -> Iterator[None]:
    emptied_pool(engine)
    yield
    settled_pool(engine)


def test_a_chain_generates_the_same_whether_it_is_probed_or_not(engine: DynasorEngine) -> None:
    probed = run(engine, *(chain(problem, **NEVER) for problem in PROBLEMS))
    alone = run(engine, *(chain(problem, saving_effort="none") for problem in PROBLEMS))
    for with_probes, without in zip(probed, alone, strict=True):
        assert with_probes.report["tokens"]["probe"] > 0
        assert without.report["tokens"]["probe"] == 0
    # Batches of another shape may round a logit differently: at most one chain may part.
    assert sum(a.text == b.text for a, b in zip(probed, alone, strict=True)) >= 3


def test_probes_end_a_chain_and_it_answers(engine: DynasorEngine) -> None:
    (result,) = run(engine, chain(PROBLEMS[1], **EAGER))
    (whole,) = run(engine, chain(PROBLEMS[1], saving_effort="none"))
    report = result.report
    assert (report["stop_reason"], report["answer"]) == ("certain", "186")
    assert "</think>" in result.text and "\\boxed{186}" in result.text
    tokens = report["tokens"]
    assert tokens["total"] == tokens["prompt"] + tokens["branch"] + tokens["probe"]
    assert report["rounds"] * 3 <= tokens["probe"] <= report["rounds"] * 20
    assert whole.report["stop_reason"] == "completed"


def test_an_inserted_answer_costs_nothing_more(engine: DynasorEngine) -> None:
    (result,) = run(engine, chain(PROBLEMS[1], on_exit="insert", **EAGER))
    (whole,) = run(engine, chain(PROBLEMS[1], saving_effort="none"))
    assert result.text.endswith("</think>\n\n\\boxed{186}")
    assert result.report["tokens"]["branch"] < whole.report["tokens"]["branch"]
    thought = result.text.partition("</think>")[0]
    assert whole.text.startswith(thought[:20])


def test_a_continued_chain_shares_the_kv_of_its_thought(engine: DynasorEngine) -> None:
    cached: list[int] = []
    manager = engine.tokenizer_manager
    generate_node = type(manager).generate_node

    async def record(obj: Any) -> Any:
        async for output in generate_node(manager, obj):
            yield output
        cached.append(output["meta_info"]["cached_tokens"])

    manager.generate_node = record
    try:
        (result,) = run(engine, chain(PROBLEMS[2], max_thinking_tokens=40))
    finally:
        del manager.generate_node
    assert result.report["stop_reason"] == "budget"
    assert cached[-1] >= result.report["tokens"]["prompt"] + 38


def test_the_limit_of_the_request_is_that_of_the_whole_path(engine: DynasorEngine) -> None:
    (result,) = run(engine, chain(PROBLEMS[2], tokens=60, max_thinking_tokens=50))
    assert result.report["tokens"]["branch"] <= 60
    (spent,) = run(engine, chain(PROBLEMS[2], tokens=50, max_thinking_tokens=50))
    assert spent.report["tokens"]["branch"] == 50
    assert spent.finish_reason is not None and spent.finish_reason["type"] == "length"


def test_the_probability_of_a_probed_answer_is_measured_where_the_rule_asks(
    engine: DynasorEngine,
) -> None:
    never, soon = (
        run(engine, chain(PROBLEMS[0], on_exit="insert", min_confidence=bar, **RULE))[0]
        for bar in (1.0, 0.5)
    )
    assert soon.report["stop_reason"] == "certain"
    assert soon.report["tokens"]["branch"] < never.report["tokens"]["branch"]


def test_many_chains_share_the_places_of_probes(engine: DynasorEngine) -> None:
    programs = [chain(PROBLEMS[index % 4], seed=index, **EAGER) for index in range(24)]
    results = run(engine, *programs)
    assert sum(result.report["stop_reason"] == "certain" for result in results) >= 12
    assert all(result.answer for result in results)


def test_branches_that_run_confirm_a_vote(engine: DynasorEngine) -> None:
    vote = {"algorithm": "self_consistency", "max_branches": 32, "pace": 32.0, "rule": "decided"}

    def voted(**fields: Any) -> ProgramResult:
        program = chain(PROBLEMS[1], seed=3)
        program.sampling_params["temperature"] = 1.0
        program.dynasor.clear()
        program.dynasor.update(vote, **fields)
        return run(engine, program)[0]

    running, finished = voted(probe_interval=8), voted()
    assert running.answer == finished.answer
    # How many are probed before it is settled is the machine's; test_pace_and_probes pins it.
    assert finished.report["tokens"]["probe"] == 0
    assert running.report["stop_reason"] in ("certain", "decided")


def test_an_abort_ends_a_chain_and_its_probes(engine: DynasorEngine) -> None:
    async def scenario() -> Any:
        task = asyncio.ensure_future(
            engine.async_generate(
                PROBLEMS[2],
                {"max_new_tokens": 400, "ignore_eos": True},
                program={"algorithm": "cot", "program_id": "gone", **NEVER},
            )
        )
        while not engine.tokenizer_manager.rid_to_state:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        engine.tokenizer_manager.abort_request("gone")
        return await task

    output = engine.loop.run_until_complete(scenario())
    assert output["meta_info"]["dynasor"]["stop_reason"] == "aborted"
