"""Searches on a real engine, with the embedded reward model in an engine of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from sglang_dynasor import Program, ProgramResult
from sglang_dynasor.models import default_model_path
from support.pool import settled_pool

if TYPE_CHECKING:
    from sglang_dynasor import DynasorEngine

pytestmark = pytest.mark.own_engine

POOL_TOKENS = 8192
PROBLEMS = {"37+58": "95", "37+58+91": "186", "12+34+56+78": "180", "15+26": "41"}
STEPPED = ("rebase", "mcts", "beam", "dvts")


@pytest.fixture(scope="module")
def judged() -> Iterator[DynasorEngine]:
    from sglang_dynasor import DynasorEngine

    engine = DynasorEngine(
        model_path=str(default_model_path()),
        sampling_backend="keyed",
        random_seed=1,
        max_total_tokens=POOL_TOKENS,
        sleep_on_idle=True,
        dynasor={
            "reward_model_path": "tiny_reward",
            "reward_server_args": "--sleep-on-idle --max-total-tokens 8192",
            "reward_time_limit_ms": 3000,
        },
    )
    yield engine
    engine.shutdown()


def searches(
    algorithm: str, problems: Iterable[str] = tuple(PROBLEMS), **fields: Any
) -> list[Program]:
    fields = {"algorithm": algorithm, **fields}
    if algorithm in STEPPED:
        fields["step_stop"] = ";"
    return [
        Program(
            messages=[{"role": "user", "content": problem}],
            sampling_params={"temperature": 1.0, "max_new_tokens": 128, "sampling_seed": seed},
            dynasor=fields,
        )
        for seed, problem in enumerate(problems)
    ]


def answered(results: list[ProgramResult]) -> list[str]:
    assert not [result.error for result in results if result.error]
    return [result.answer for result in results]


@pytest.mark.parametrize("algorithm", ["best_of_n", *STEPPED])
def test_a_search_answers_and_its_steps_are_judged(judged: DynasorEngine, algorithm: str) -> None:
    results = judged.run_batch(searches(algorithm))
    assert answered(results) == list(PROBLEMS.values())
    for result in results:
        assert result.stop_reason in ("certain", "completed")
        assert not result.report["inactive"]
    paid = sum(result.report["tokens"]["reward"] for result in results)
    assert paid > 0 or algorithm != "best_of_n"  # later ones may meet paths that are known
    settled_pool(judged, POOL_TOKENS)


@pytest.mark.parametrize("algorithm", STEPPED)
def test_what_a_step_continues_is_in_the_cache(judged: DynasorEngine, algorithm: str) -> None:
    judged.flush_cache()
    results = judged.run_batch(searches(algorithm, grants="8", mode="shadow"))
    tokens = [result.report["tokens"] for result in results]
    continued = sum(count["continued"] for count in tokens)
    assert sum(count["reused"] for count in tokens) >= 0.95 * continued


def test_a_path_reads_as_if_it_had_been_generated_at_once(judged: DynasorEngine) -> None:
    for result in judged.run_batch(searches("rebase", detail="branches")):
        assert result.text.count("\\boxed{") == 1
        assert result.text.count(";") >= 1
        assert f"\\boxed{{{result.answer}}}" in result.text


def test_a_deadline_answers_with_what_there_is(judged: DynasorEngine) -> None:
    programs = searches("rebase", width=64, grants="64", deadline_ms=400)
    for result in judged.run_batch(programs):
        assert result.error is None
        assert result.stop_reason in ("deadline", "certain", "decided")
    settled_pool(judged, POOL_TOKENS)


def test_a_reward_engine_that_dies_leaves_searches_that_vote(judged: DynasorEngine) -> None:
    """The last test of its engine."""
    children = psutil.process_iter(["cmdline", "status"])
    reward_engines = [
        child
        for child in children
        if "sglang_dynasor.managers.reward_server" in (child.info["cmdline"] or ())
    ]
    assert reward_engines
    for child in reward_engines:
        os.kill(child.pid, signal.SIGKILL)
    for start, algorithm in enumerate(("best_of_n", "rebase", "mcts")):
        unseen = [f"{61 + start}+{20 + index}+{77 - index}" for index in range(4)]
        results = judged.run_batch(searches(algorithm, unseen))
        assert all(answered(results))
        reasons = [result.report["inactive"].get("reward", "") for result in results]
        assert all(reason.startswith("the reward model: ") for reason in reasons)
    settled_pool(judged, POOL_TOKENS)
