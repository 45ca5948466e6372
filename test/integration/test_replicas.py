"""With data parallelism a program lives on one replica, and nobody waits for another."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import pytest

import sglang_dynasor.platforms as platforms
from sglang_dynasor import DynasorEngine
from sglang_dynasor.models import default_model_path
from support.endless import PROMPT, assert_ran_in_full, endless_program
from support.waiting import wait_until

pytestmark = [
    pytest.mark.own_engine,
    pytest.mark.slow,
    pytest.mark.skipif(platforms.activate() is None, reason="the machine has an accelerator"),
]
REPLICAS = 2


def states(engine: DynasorEngine) -> list[dict[str, Any]]:
    internal = engine.get_server_info()["internal_states"]
    return [state["dynasor"] for state in internal]


def record_replicas(engine: DynasorEngine) -> dict[str, set[int]]:
    """The replicas that generated nodes of each program, by the first part of their ids."""
    manager = engine.tokenizer_manager
    generate_node = type(manager).generate_node
    seen: dict[str, set[int]] = defaultdict(set)

    async def record(obj: Any) -> Any:
        async for output in generate_node(manager, obj):
            meta = output["meta_info"]
            seen[meta["id"].split("::")[0]].add(meta["dp_rank"])
            yield output

    manager.generate_node = record
    return seen


def test_every_program_has_one_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    engine = DynasorEngine(
        model_path=str(default_model_path()),
        sampling_backend="keyed",
        random_seed=1,
        max_total_tokens=8192,
        dp_size=REPLICAS,
        dynasor={"speculative_share": 1.0},
    )
    try:
        check_programs(engine)
        check_deadline(engine)
        check_members(engine)
    finally:
        engine.shutdown()


def check_programs(engine: DynasorEngine) -> None:
    seen = record_replicas(engine)
    programs = [
        endless_program(4, 40, draw="offer", min_branches=1, program_id=f"p{index}")
        for index in range(12)
    ]
    assert_ran_in_full(engine.run_batch(programs), 4, 40)
    assert len(seen) == len(programs)
    assert all(len(ranks) == 1 for ranks in seen.values())
    assert set.union(*seen.values()) == set(range(REPLICAS))
    wait_until(lambda: all(state["programs"] == 0 for state in states(engine)), "all have ended")
    assert len(states(engine)) == REPLICAS


def check_deadline(engine: DynasorEngine) -> None:
    # An end that waited for a replica which was never asked would be at its limit of seconds.
    begun = time.perf_counter()
    result = engine.run(endless_program(4, 400, deadline_ms=300))
    assert time.perf_counter() - begun < 1.0
    assert result.stop_reason == "deadline"
    assert result.report["tokens"]["cancelled"] > 0


def check_members(engine: DynasorEngine) -> None:
    params = [
        {
            "max_new_tokens": 4,
            "custom_params": {"dynasor": {"program_id": f"own-{index % 4}"}},
        }
        for index in range(16)
    ]
    ranks: dict[str, set[int]] = defaultdict(set)
    for output in engine.generate([PROMPT] * len(params), sampling_params=params):
        meta = output["meta_info"]
        ranks[meta["dynasor"]["program_id"]].add(meta["dp_rank"])
    assert len(ranks) == 4
    assert all(len(replicas) == 1 for replicas in ranks.values())
