"""The paper's evaluation on a small scale: votes, searches and chains on the virtual clock."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from paper_rates import figures
from paper_runs import Served, asked, simulation
from paper_systems import System, systems_of
from paper_trees import SearchWorkload
from paper_workloads import PaperProgram, Workload, programs_of, votes, workload
from sglang_dynasor.simulate import WorkloadProgram

STEPS = {"linear": [10.0, 0.05, 0.0, 0.01]}
LIMITS = {"max_new_tokens": 512, "chunked_prefill": 4096, "kv_tokens": 12_000, "max_running": 32}


def simulated(
    work: Workload | SearchWorkload,
    programs: list[PaperProgram],
    system: System,
    hash_seed: int = 0,
    **limits: Any,
) -> dict[str, Any]:
    spec = simulation(work, programs, system, STEPS, **{**LIMITS, **limits})
    found: dict[str, Any] = asked("paper_worker.py", spec, hash_seed)
    return found


def served(rows: list[dict[str, Any]]) -> Served:
    return Served(
        [row["latency_s"] for row in rows],
        [row["tokens"] for row in rows],
        [row["is_right"] for row in rows],
    )


@pytest.mark.parametrize(
    "name", ["sc_gsm8k", "mcts_asdiv", pytest.param("rebase_gsm8k", marks=pytest.mark.slow)]
)
def test_the_package_spends_less_and_answers_sooner_than_the_fixed_knob(name: str) -> None:
    work = replace(workload(name), programs=12, cap=8)
    made = programs_of(work, 2.0, 0)
    every = systems_of(work)
    coarse = 4 if isinstance(work, Workload) else 1
    base, found = (
        figures(made, served(simulated(work, made, system, coarse=coarse)["rows"]), work, 0)
        for system in (every["lpm_fixed"], every["full"])
    )
    assert found["tokens"] < base["tokens"]
    assert found["mean_s"] < base["mean_s"]
    assert found["accuracy"] >= base["accuracy"] - 1 / 12


def test_a_search_is_the_same_whatever_the_hash_seed() -> None:
    work = replace(workload("mcts_asdiv"), programs=6, cap=6)
    made = programs_of(work, 2.0, 0)
    runs = [simulated(work, made, systems_of(work)["full"], seed) for seed in (1, 2)]
    assert runs[0] == runs[1]


def test_a_chain_is_cut_where_its_probes_agree_and_answers_as_they_do() -> None:
    interim = [(40, "3"), (120, "1")]
    program = WorkloadProgram("p0", 0.0, 30, "1", [(400, "1", interim)])
    work = replace(votes("sc_gsm8k"), cap=1)
    chain = {"algorithm": "cot", "probe_interval": 32, "window": 3, "probe_text": "\\boxed{"}
    whole = {"algorithm": "cot", "saving_effort": "none"}
    made = [PaperProgram(program, 1)]
    (cut,) = simulated(work, made, System({}, chain))["rows"]
    (natural,) = simulated(work, made, System({}, whole))["rows"]
    assert natural["tokens"] == 400
    assert (cut["answer"], cut["stop_reason"]) == ("1", "certain")
    assert 120 < cut["tokens"] < 300
    assert cut["latency_s"] < natural["latency_s"]


def test_the_engine_of_several_processes_does_what_the_clock_foretells() -> None:
    work = replace(votes("sc_gsm8k"), programs=5, cap=4, mean_tokens=60)
    made = programs_of(work, 2.0, 0)
    system = systems_of(work)["lpm_fixed"]
    spec = simulation(work, made, system, STEPS, **LIMITS)
    virtual = asked("paper_worker.py", spec)["rows"]
    real = asked("paper_worker.py", {**spec, "engine": "stub"})["rows"]
    for name in ("answer", "tokens", "branches", "stop_reason"):
        assert [row[name] for row in virtual] == [row[name] for row in real]


def test_a_device_that_blocks_gives_each_result_a_pass_later() -> None:
    work = replace(votes("sc_gsm8k"), cap=1)
    made = [PaperProgram(WorkloadProgram("p0", 0.0, 30, "1", [(40, "1")]), 1)]
    system = System({"policy": "lpm"}, {"algorithm": "self_consistency", "max_branches": 1})
    free, blocked = (
        simulated(work, made, system, blocks=blocks, input_s=0.001)["rows"][0]["latency_s"]
        for blocks in (False, True)
    )
    assert blocked - free == pytest.approx(0.01, rel=0.1)


def test_a_spec_is_data() -> None:
    work = replace(workload("mcts_asdiv"), programs=2)
    made = programs_of(work, 1.0, 0)
    spec = simulation(work, made, systems_of(work)["full"], STEPS, **LIMITS)
    assert spec["trees"]["p1"] == asdict(made[1].tree)  # type: ignore[call-overload]
