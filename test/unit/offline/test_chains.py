"""Single chains on recorded probes: the program that serves decides; promises are by problem."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sglang_dynasor.allocation.chain_profile import RISK_OF_EFFORT, ChainProfile
from sglang_dynasor.allocation.chain_rule import ChainRule
from sglang_dynasor.cli import main
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.offline import TraceProblem, TraceSample, read_traces
from sglang_dynasor.offline.chains import (
    WINDOWS,
    ChainEffects,
    budget_figures,
    mean_harm_bound,
    mean_harm_p_value,
    promised_levels,
    replay_chain,
    replay_chains,
    spacing_of,
)
from sglang_dynasor.offline.traces import TraceProbe
from sglang_dynasor.programs import ProgramSpec
from support.probe_traces import made_up_lines


def sample(answer: str, probes: str, n_tokens: int = 100) -> TraceSample:
    """Probed each 10 tokens; "-" gives no answer."""
    made = tuple(
        TraceProbe(10 * (index + 1), letter.strip("-")) for index, letter in enumerate(probes)
    )
    return TraceSample(answer, n_tokens, probes=made)


def problem(name: str, *samples: TraceSample, gold: str = "a") -> TraceProblem:
    return TraceProblem(name, gold, "m", samples)


@pytest.mark.parametrize(
    ("window", "probes", "answer", "tokens"),
    [
        (3, "bbb", "b", 30 + 60),
        (3, "abbb", "b", 40 + 80),
        (3, "ab-bb", "a", 100 + 100),  # never three in a row
        (2, "--aa", "a", 40 + 80),
        (9, "aaa", "a", 100 + 60),
    ],
)
def test_a_recorded_chain_ends_where_its_probes_agree(
    window: int, probes: str, answer: str, tokens: int
) -> None:
    run = replay_chain(sample("a", probes), ChainRule(window), 10)
    assert (run.outcome.answer, run.tokens) == (answer, tokens)


def test_a_wider_interval_asks_every_second_probe() -> None:
    run = replay_chain(sample("a", "aaaaaa"), ChainRule(2), 20)
    assert (run.tokens, run.probe_tokens) == (40 + 40, 40)


def test_harm_and_gain_are_means_over_the_chains_of_a_problem() -> None:
    harmed = problem("1", sample("a", "bb"), sample("a", "aa"))
    gained = problem("2", sample("b", "aa"), sample("b", "bb"))
    effects = replay_chains([harmed, gained], [ChainRule(2)], 10)
    np.testing.assert_array_equal(effects.harm, [[0.5, 0.0]])
    np.testing.assert_array_equal(effects.gain, [[0.0, 0.5]])
    assert effects.figures(0)["tokens_saved"] == 1 - (20 + 40) / 100


def test_a_budget_cuts_longer_chains_at_their_last_probe() -> None:
    figures = budget_figures([problem("1", sample("a", "-ab"), sample("a", "a", 15))], 20)
    assert (figures["accuracy"], figures["tokens"]) == (1.0, (20 + 15) / 2)
    assert budget_figures([problem("1", sample("a", "-ab"))], 30)["harm"] == 1.0


def test_the_spacing_is_that_of_the_probes_and_traces_without_any_are_refused() -> None:
    assert spacing_of([problem("1", sample("a", "aaa"))]) == 10
    with pytest.raises(ValueError, match="probe-interval"):
        spacing_of([problem("1", TraceSample("a", 5))])


@given(st.floats(0, 1), st.integers(1, 400), st.floats(0.01, 0.5))
def test_a_p_value_is_one_and_falls_with_the_mean(mean: float, n: int, max_harm: float) -> None:
    value = mean_harm_p_value(mean, n, max_harm)
    assert 0 <= value <= 1
    assert mean_harm_p_value(mean / 2, n, max_harm) <= value


def test_promises_are_broken_no_more_often_than_they_say() -> None:
    """Harms of a true mean just above the bound pass the test too rarely to matter."""
    rng = np.random.default_rng(0)
    harms = stats.beta.rvs(0.11, 0.89, size=(2000, 120), random_state=rng).mean(axis=1)
    passed = sum(mean_harm_p_value(float(mean), 120, 0.1) <= 0.1 for mean in harms)
    assert passed / 2000 <= 0.1


def test_the_bound_is_where_the_test_just_fails() -> None:
    bound = mean_harm_bound(0.02, 300, 0.9)
    assert mean_harm_p_value(0.02, 300, bound * 1.01) < 0.1 < mean_harm_p_value(0.02, 300, 0.02)


def effects_of(harm_by_window: list[float], problems: int) -> ChainEffects:
    harm = np.repeat(np.array(harm_by_window)[:, None], problems, axis=1)
    same, full = np.ones_like(harm), np.full(problems, 2.0)
    return ChainEffects(same, harm, 0 * harm, same, 0 * harm, full, np.ones(problems))


def test_windows_are_tested_from_the_most_careful_on_up_to_the_first_that_fails() -> None:
    levels = promised_levels(effects_of([0.0, 0.3, 0.0], 2000), 10, 0.9, (9, 5, 2))
    assert {effort: level.window for effort, level in levels.items()} == dict.fromkeys(
        RISK_OF_EFFORT, 9
    )


def test_ninety_problems_promise_no_two_percent() -> None:
    levels = promised_levels(effects_of([0.0] * 2, 90), 10, 0.9, (9, 5))
    assert "mild" not in levels and "low" not in levels
    assert levels["crazy"].window == 5


def test_calibrate_writes_a_profile_that_the_settings_take(tmp_path: Path) -> None:
    traces, out = tmp_path / "probes.jsonl", tmp_path / "chains.json"
    traces.write_text(made_up_lines(40, 4))
    assert main(["calibrate", "--chains", "--traces", str(traces), "--out", str(out)]) in (0, 3)
    right = problem("x", *[sample("a", "aaaaaaaa")] * 2)
    lines = [json.dumps(as_line(right, str(number))) for number in range(400)]
    traces.write_text("\n".join(lines))
    assert main(["calibrate", "--chains", "--traces", str(traces), "--out", str(out)]) == 0
    profile = ChainProfile.read(out)
    assert profile.levels["mild"].window == WINDOWS[-1]
    config = DynasorConfig(chain_profile=str(out))
    asked = {"algorithm": "cot", "saving_effort": "mild"}
    settings = ProgramSpec.parse(asked).resolve(config).settings
    assert settings.rule == ChainRule(2)  # type: ignore[attr-defined]
    assert not settings.inactive  # type: ignore[attr-defined]
    assert profile.created <= date.today()


def as_line(made: TraceProblem, name: str) -> dict[str, object]:
    samples = [
        {
            "answer": one.answer,
            "n_tokens": one.n_tokens,
            "probes": [{"at": probe.at, "answer": probe.answer} for probe in one.probes],
        }
        for one in made.samples
    ]
    return {"id": name, "gold": made.gold, "model": made.model, "samples": samples}


def test_probes_out_of_order_are_refused(tmp_path: Path) -> None:
    traces = tmp_path / "probes.jsonl"
    line = as_line(problem("x", sample("a", "aa")), "1")
    line["samples"][0]["probes"][0]["at"] = 90  # type: ignore[index]
    traces.write_text(json.dumps(line))
    with pytest.raises(ValueError, match="rising"):
        read_traces(traces)
