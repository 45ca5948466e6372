"""Searches where KV is short, and on several ranks."""

from __future__ import annotations

from typing import Any

import pytest

import sglang_dynasor.platforms as platforms
from sglang_dynasor import DynasorEngine, Program
from sglang_dynasor.models import default_model_path
from support.pool import settled_pool

SMALL_POOL = 1500
REWARD = {
    "reward_model_path": "tiny_reward",
    "reward_server_args": "--sleep-on-idle --max-total-tokens 8192",
}
ON_TWO_RANKS = pytest.mark.skipif(
    platforms.activate() is None, reason="the machine has an accelerator"
)


def searches(count: int, **fields: Any) -> list[Program]:
    return [
        Program(
            messages=[{"role": "user", "content": f"{21 + index}+{37 + index}+{58 - index}"}],
            sampling_params={"temperature": 1.0, "max_new_tokens": 128, "sampling_seed": index},
            dynasor={"algorithm": "rebase", "width": 8, "step_stop": ";", **fields},
        )
        for index in range(count)
    ]


def started(**arguments: Any) -> DynasorEngine:
    given = {"max_total_tokens": 8192, "sleep_on_idle": True, **arguments}
    return DynasorEngine(
        model_path=str(default_model_path()),
        sampling_backend="keyed",
        random_seed=1,
        dynasor=REWARD,
        **given,
    )


def gold(index: int) -> str:
    return str(21 + 37 + 58 + index)


@pytest.mark.own_engine
@pytest.mark.slow
def test_steps_are_prefix_hits_where_kv_is_short_too() -> None:
    """24 searches of 8 leaves side by side in a pool for a fifth of them."""
    engine = started(max_total_tokens=SMALL_POOL, chunked_prefill_size=64)
    try:
        results = engine.run_batch(searches(24, grants="8", mode="shadow"))
        assert all(result.answer for result in results)
        tokens = [result.report["tokens"] for result in results]
        reused = sum(count["reused"] for count in tokens)
        assert reused >= 0.95 * sum(count["continued"] for count in tokens)
        settled_pool(engine, SMALL_POOL)
    finally:
        engine.shutdown()


@pytest.mark.own_engine
@pytest.mark.slow
@ON_TWO_RANKS
@pytest.mark.parametrize("setup", [{"tp_size": 2}, {"dp_size": 2}], ids=["tp", "dp"])
def test_searches_work_on_several_ranks(
    setup: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    monkeypatch.setenv("SYNC_TOKEN_IDS_ACROSS_TP", "1")
    engine = started(**setup)
    try:
        results = engine.run_batch(searches(12))
        answers = [result.answer for result in results]
        assert sum(answer == gold(index) for index, answer in enumerate(answers)) >= 10
        assert not any(result.report["inactive"] for result in results)
        for state in engine.get_server_info()["internal_states"]:
            assert state["dynasor"]["requests"] == 0
            assert state["dynasor"]["protected_tokens"] == 0
    finally:
        engine.shutdown()
