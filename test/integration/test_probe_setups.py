"""Probes where KV is short, and on several ranks."""

from __future__ import annotations

import pytest

import sglang_dynasor.platforms as platforms
from sglang_dynasor import DynasorEngine
from sglang_dynasor.models import default_model_path
from support.chains import EAGER, PROBLEMS, chain, run
from support.pool import settled_pool


@pytest.mark.own_engine
def test_probes_cause_no_retraction_and_survive_those_that_come() -> None:
    """A pool too small for its chains: upstream retracts some, with probes underway."""
    small = DynasorEngine(
        model_path=str(default_model_path()),
        sampling_backend="keyed",
        random_seed=1,
        max_total_tokens=1500,
        chunked_prefill_size=64,
        sleep_on_idle=True,
    )
    try:
        programs = [chain(PROBLEMS[index % 4], seed=index, **EAGER) for index in range(24)]
        results = run(small, *programs)
        assert all(result.answer for result in results)
        settled_pool(small, 1500)
    finally:
        small.shutdown()


@pytest.mark.own_engine
@pytest.mark.slow
@pytest.mark.skipif(platforms.activate() is None, reason="the machine has an accelerator")
@pytest.mark.parametrize("setup", [{"tp_size": 2}, {"dp_size": 2}], ids=["tp", "dp"])
def test_probes_work_on_several_ranks(
    setup: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    monkeypatch.setenv("SYNC_TOKEN_IDS_ACROSS_TP", "1")
    engine = DynasorEngine(
        model_path=str(default_model_path()),
        sampling_backend="keyed",
        random_seed=1,
        max_total_tokens=8192,
        **setup,
    )
    try:
        results = run(engine, *(chain(PROBLEMS[n % 4], seed=n, **EAGER) for n in range(12)))
        assert sum(result.report["stop_reason"] == "certain" for result in results) >= 9
        assert all(result.answer for result in results)
        for state in engine.get_server_info()["internal_states"]:
            assert state["dynasor"]["requests"] == 0
            assert state["dynasor"]["protected_tokens"] == 0
    finally:
        engine.shutdown()


@pytest.mark.own_engine
@pytest.mark.slow
def test_a_server_default_makes_chains_of_requests_that_ask_for_nothing() -> None:
    engine = DynasorEngine(
        model_path=str(default_model_path()),
        max_total_tokens=4096,
        dynasor={"default": '{"algorithm": "cot", "probe_interval": 8, "window": 3}'},
    )
    try:
        params = {"max_new_tokens": 60}
        report = engine.generate(PROBLEMS[0], params)["meta_info"]["dynasor"]
        assert report["algorithm"] == "cot"
        both = engine.generate([PROBLEMS[0], PROBLEMS[1]], params)
        assert not any("dynasor" in output["meta_info"] for output in both)  # no program
    finally:
        engine.shutdown()
