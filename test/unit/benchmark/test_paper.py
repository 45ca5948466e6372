"""The paper's evaluation: its workloads, systems and figures, without an engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

import paper_workloads
from paper_rates import figures
from paper_runs import Served, Setup, spec_of
from paper_systems import (
    LADDER,
    STATIC,
    UNIFORM,
    System,
    register_static,
    systems,
    systems_of,
    with_fixed_knob,
)
from paper_trees import RIGHT
from paper_validate import WINDOW_S, drift_of, ranked_alike, relative_error
from paper_worker import (
    FEWEST_TOKENS,
    CoarseStepTimes,
    DriftingStepTimes,
    coarsened,
    requests_of,
    step_times_of,
)
from paper_workloads import (
    PaperProgram,
    assumptions,
    device,
    equal_knob,
    programs_of,
    varied,
    votes,
    workload,
)
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.platforms.virtual_clock.step_times import LinearStepTimes
from sglang_dynasor.programs import ProgramSpec
from sglang_dynasor.programs.registry import ALGORITHMS
from sglang_dynasor.simulate import WorkloadProgram

NAMES = paper_workloads.names()
VOTES = ("sc_gsm8k", "sc_math")


@pytest.fixture(autouse=True)
def known_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (STATIC, UNIFORM):
        monkeypatch.setitem(ALGORITHMS, name, ALGORITHMS["self_consistency"])


@pytest.mark.parametrize("name", NAMES)
def test_a_workload_is_the_same_for_every_system_and_another_for_every_seed(name: str) -> None:
    work = replace(workload(name), programs=30)
    made = programs_of(work, 2.0, 0)
    assert made == programs_of(work, 2.0, 0)
    assert made != programs_of(work, 2.0, 1)
    faster = programs_of(work, 4.0, 0)
    assert [entry.program.samples for entry in faster] == [e.program.samples for e in made]
    arrivals = [entry.program.arrival_s for entry in made]
    assert arrivals == sorted(arrivals)
    assert all(entry.tree or len(entry.program.samples) == work.cap for entry in made)
    assert 1 <= equal_knob(work, made) <= work.cap
    assert {entry.difficulty for entry in made} <= {1, 2, 3}


@pytest.mark.parametrize("name", VOTES)
def test_lengths_and_accuracy_are_those_of_the_frozen_file(name: str) -> None:
    work = replace(votes(name), programs=400)
    samples = [s for entry in programs_of(work, 1.0, 0) for s in entry.program.samples]
    right = sum(answer == RIGHT for _, answer in samples) / len(samples)
    expected = work.right[0] / sum(work.right)
    assert right == pytest.approx(expected, abs=0.05)
    mean = sum(n_tokens for n_tokens, _ in samples) / len(samples)
    assert mean == pytest.approx(
        work.mean_tokens * (1 + work.hard_factor * (1 - expected)), rel=0.1
    )


def test_every_number_of_the_frozen_file_says_where_it_is_from() -> None:
    for name in NAMES:
        moved = assumptions(name)
        assert "deadline_s" not in moved or name == "sc_gsm8k"
        for field in moved:
            changed = varied(workload(name), field, 1.25)
            assert changed != workload(name)


def test_the_steps_of_the_ladder_ask_for_what_the_papers_client_asks_for() -> None:
    every = systems(20, 5)
    assert [every[step].settings["policy"] for step in LADDER] == [
        *("lpm", "gang", "lpm", "gang", "value")
    ]
    for step in LADDER:
        assert every[step].fields["grants"] == "5,15"
    assert with_fixed_knob(every["lpm_fixed"], 7).fields["max_branches"] == 7


@pytest.mark.parametrize(
    ("name", "knob"), [("mcts_asdiv", "iterations"), ("rebase_gsm8k", "width")]
)
def test_searches_are_asked_for_as_the_papers_are(name: str, knob: str) -> None:
    work = workload(name)
    every = systems_of(work)
    assert with_fixed_knob(every["lpm_fixed"], 3).fields[knob] == 3
    for system in every.values():
        assert system.settings["reward_verifier"] == "paper_trees:reward_of"
        resolved = ProgramSpec.parse(dict(system.fields)).resolve(
            DynasorConfig.parse(dict(system.settings))
        )
        assert resolved.settings.max_branches == work.cap


def test_the_papers_policy_is_asked_once_and_the_uniform_one_never() -> None:
    register_static(5, 0.7, 20)
    rules = {
        name: ProgramSpec.parse({"algorithm": name, "max_branches": 20})
        .resolve(DynasorConfig())
        .settings.rule
        for name in (STATIC, UNIFORM)
    }
    assert (rules[STATIC].at, rules[STATIC].recheck) == (5, False)
    assert rules[UNIFORM].at == 20


def test_one_coarse_step_stands_for_several() -> None:
    fine = LinearStepTimes(10.0, 0.1, 0.001, 0.05)
    coarse = CoarseStepTimes(fine, 8)
    assert coarse.decode_ms(4, 100) == pytest.approx(8 * fine.decode_ms(4, 800))
    assert coarse.prefill_ms(2, 10, 5) == pytest.approx(fine.prefill_ms(2, 80, 40))
    program = WorkloadProgram("p", 1.0, 160, "1", [(800, "1"), (3, "2")])
    made = coarsened(program, 8)
    assert (made.prompt_tokens, made.samples) == (20, [(100, "1"), (FEWEST_TOKENS, "2")])
    assert step_times_of({"linear": [1.0, 0.0, 0.0, 0.0]}, 1).decode_ms(3, 5) == 1.0
    rows = {"rows": [[[1, 5.0]], [[1, 9.0]]]}
    assert step_times_of(rows, 1).prefill_ms(1, 1, 0) == 9.0


def test_a_clients_own_requests_generate_what_the_branches_of_its_program_do() -> None:
    program = WorkloadProgram("p", 1.0, 9, "1", [(30, "1"), (40, "2")])
    assert [(one.id, one.samples) for one in requests_of([program])] == [
        ("p~0", [(30, "1")]),
        ("p~1", [(40, "2")]),
    ]


def test_attainment_holds_each_program_against_its_own_deadline() -> None:
    work = replace(workload("sc_math"), deadline_s=10.0)
    program = WorkloadProgram("p", 0.0, 1, "1", [(1, "1")])
    made = [PaperProgram(program, difficulty) for difficulty in (1, 1, 2, 3)]
    served = Served([99.0, 9.0, 19.0, 31.0], [5.0] * 4, [True, True, True, False])
    found = figures(made, served, work, first=1)
    assert found["attainment"] == pytest.approx(2 / 3)
    assert found["slo_scale"] == pytest.approx(31 / 30)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["size_cv"] == 0


def test_a_spec_carries_the_modelled_device() -> None:
    work = replace(workload("sc_gsm8k"), programs=2)
    made = programs_of(work, 1.0, 0)
    spec: dict[str, Any] = spec_of(work, made, System(), Setup(device(), 1.0, 4))
    assert (spec["kv_tokens"], spec["coarse"]) == (device().kv_tokens, 4)
    assert spec["step_times"]["extra_ms"] == 1.0
    assert Counter(one["id"] for one in spec["workload"]) == {"p0": 1, "p1": 1}


def test_an_error_is_measured_against_what_happened() -> None:
    assert relative_error([1.1, 1.8], [1.0, 2.0]) == pytest.approx(0.1)


def test_policies_are_ranked_alike_unless_one_that_is_always_slower_is_foreseen_faster() -> None:
    real = {"a": [1.0, 1.2], "b": [2.0, 2.1], "c": [2.1, 2.0]}
    assert ranked_alike({"a": 5.0, "b": 7.0, "c": 6.0}, real)  # b and c: as it falls out
    assert not ranked_alike({"a": 6.5, "b": 7.0, "c": 6.0}, real)
    assert ranked_alike({"a": 6.0, "b": 6.0, "c": 6.0}, real)


def test_a_machine_that_is_half_as_fast_for_a_while_takes_twice_as_long_then() -> None:
    rows = [[(1, 10.0), (2, 20.0)], [(1, 30.0), (2, 31.0)]]
    steps = {
        "decode": [[1, 10.0, 0.0], [2, 40.0, WINDOW_S], [1, 20.0, 1.1 * WINDOW_S]],
        "prefill": [[1, 30.0, 3.2 * WINDOW_S]],
    }
    factors = drift_of(steps, rows)
    assert factors == pytest.approx([1.0, 2.0, 2.0, 1.0])
    now = [0.0]
    spec = {"rows": rows, "drift": [WINDOW_S, factors]}
    times = step_times_of(spec, 1)
    assert isinstance(times, DriftingStepTimes)
    times.now = lambda: now[0]
    assert times.decode_ms(1, 0) == 10.0
    now[0] = 1.5 * WINDOW_S
    assert (times.decode_ms(1, 0), times.prefill_ms(1, 1, 0)) == (20.0, 60.0)
    now[0] = 99.0  # after the last one it stays as it was
    assert times.decode_ms(1, 0) == 10.0
