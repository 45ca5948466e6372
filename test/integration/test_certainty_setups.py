"""Measuring and ordering in setups that disturb the batch or spread it over processes.

Every token is measured once, under the right request; ranks that ordered differently would hang.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

import sglang_dynasor.platforms as platforms
from sglang_dynasor import DynasorEngine, Program
from sglang_dynasor.certaindex import CERTAINTY_GROUP_TOKENS
from sglang_dynasor.models import default_model_path
from support.certainty import PRUNED_AT_ONCE, WITH_LOGPROBS, assert_measured, assert_pruned
from support.endless import assert_ran_in_full, endless_program

CHUNK_TOKENS = 32
pytestmark = [
    pytest.mark.own_engine,
    pytest.mark.skipif(platforms.activate() is None, reason="the machine has an accelerator"),
]

SETUPS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "retracted": ({"SGLANG_TEST_RETRACT": "1"}, {}),
    "no-overlap": ({"SGLANG_TEST_RETRACT": "1"}, {"disable_overlap_schedule": True}),
    "tp2": (
        {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "SYNC_TOKEN_IDS_ACROSS_TP": "1"},
        {"tp_size": 2},
    ),
    "dp2": ({"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}, {"dp_size": 2}),
}


def prompts(count: int) -> list[str]:
    """Sums of 2 to 45 terms: shorter and longer than a chunk."""
    source = random.Random(7)
    return [
        "+".join(str(source.randrange(10, 99)) for _ in range(source.randrange(2, 46)))
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "setup",
    [
        "retracted",
        pytest.param("no-overlap", marks=pytest.mark.slow),
        pytest.param("tp2", marks=pytest.mark.slow),
        pytest.param("dp2", marks=pytest.mark.slow),
    ],
)
def test_every_token_is_measured_and_every_program_ends(
    setup: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, arguments = SETUPS[setup]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    engine = DynasorEngine(
        model_path=str(default_model_path()),
        sampling_backend="keyed",
        random_seed=1,
        max_total_tokens=8192,
        chunked_prefill_size=CHUNK_TOKENS,
        dynasor={"speculative_share": 1.0},
        **arguments,
    )
    try:
        check_certainty(engine, retracts="SGLANG_TEST_RETRACT" in environment)
        check_order(engine)
    finally:
        engine.shutdown()


def check_certainty(engine: DynasorEngine, retracts: bool) -> None:
    asked = prompts(16)
    params = [
        {
            "temperature": float(index % 2),
            "max_new_tokens": 30,
            "ignore_eos": True,
            "sampling_seed": index,
            # Every fourth is an ordinary request.
            **({} if index % 4 == 3 else {"custom_params": {"dynasor": {"token_certainty": True}}}),
        }
        for index in range(len(asked))
    ]
    outputs = engine.generate(asked, sampling_params=params, **WITH_LOGPROBS)
    for index, output in enumerate(outputs):
        if index % 4 == 3:
            assert "dynasor" not in output["meta_info"]
        else:
            assert_measured(output)
    assert max(output["meta_info"]["prompt_tokens"] for output in outputs) > 2 * CHUNK_TOKENS
    if retracts:
        assert sum(output["meta_info"]["num_retractions"] for output in outputs) > 0
    # One rank decides; the others must end the same branches in the same step, or all would hang.
    endless = {"temperature": 1.0, "max_new_tokens": 100, "ignore_eos": True}
    program = Program(prompt="12+34", sampling_params=endless, dynasor=PRUNED_AT_ONCE)
    assert_pruned(engine.run(program).report, CERTAINTY_GROUP_TOKENS)


def check_order(engine: DynasorEngine) -> None:
    """More branches than the pool holds, some drawn by the engine, some retracted."""
    program = endless_program(8, 60, draw="offer", min_branches=1)
    results = engine.run_batch([program] * 24, branches_in_flight=24 * 8)
    assert_ran_in_full(results, 8, 60)
