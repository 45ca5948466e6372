"""Operator settings: environment, flags, and bad values by name."""

from __future__ import annotations

import argparse
import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sglang_dynasor.allocation.profile import CalibrationProfile
from sglang_dynasor.config import (
    CONFIG_VARIABLE,
    SWITCH_VARIABLE,
    DynasorConfig,
    add_flags,
    from_flags,
    is_enabled,
)

GOOD: dict[str, Any] = {
    "rule": "beta",
    "threshold": 0.9,
    "max_branches": 8,
    "min_branches": 2,
    "grants": "",
    "draw": "offer",
    "policy": "value",
    "starvation_factor": 7.5,
    "speculative_share": 0.25,
    "max_offered": 100,
    "pattern_time_limit_ms": 7,
    "equality_time_limit_ms": 0,
    "embeddings_threshold": 0.0,
    "vote": "majority",
    "branch_rule": "deepconf",
    "keep_top": 0.1,
    "confidence_bar": 7.5,
    "certainty_group_tokens": 2048,
    "stop_loops": True,
    "prefix_hold_tokens": 0,
    "profile": "",
    "default": '{"algorithm": "cot"}',
    "pace": 2.5,
    "probe_interval": 32,
    "window": 4,
    "probe_text": "so \\boxed{",
    "think_end": "</thought>",
    "chain_profile": "",
    "reward_model_path": "tiny_reward",
    "reward_server_args": "--mem-fraction-static 0.2",
    "reward_url": "",
    "reward_verifier": "",
    "reward_input": "text",
    "reward_scale": "none",
    "reward_time_limit_ms": 500,
}
BAD = [
    ("reward_url", "localhost:3000"),
    ("reward_verifier", "no function"),
    ("reward_server_args", "--tp 2"),
    ("reward_input", "Text"),
    ("reward_scale", "logit"),
    ("reward_time_limit_ms", 0),
    ("rule", "unknown"),
    ("rule", 3),
    ("threshold", 1.5),
    ("threshold", "0.5"),
    ("max_branches", 0),
    ("max_branches", 513),
    ("max_branches", "8"),
    ("min_branches", 0),
    ("min_branches", 17),
    ("grants", "4,x"),
    ("grants", 4),
    ("draw", "all"),
    ("policy", "sjf"),
    ("policy", ""),
    ("starvation_factor", 0.0),
    ("starvation_factor", "1"),
    ("speculative_share", -0.1),
    ("max_offered", -1),
    ("pattern_time_limit_ms", 0),
    ("pattern_time_limit_ms", 10_001),
    ("vote", "best"),
    ("branch_rule", "none "),
    ("keep_top", 1.0),
    ("keep_top", 0.0),
    ("confidence_bar", 0.0),
    ("certainty_group_tokens", 0),
    ("stop_loops", "true"),
    ("prefix_hold_tokens", -1),
    ("prefix_hold_tokens", 1.5),
    ("profile", 3),
    ("profile", "no/such/file.json"),
    ("default", 7),
    ("pace", 0.5),
    ("pace", "5"),
    ("probe_interval", 0),
    ("window", 0),
    ("window", 1001),
    ("probe_text", 1),
    ("think_end", ""),
    ("chain_profile", "no/such/file.json"),
    ("unheard_of", 1),
]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what a test publishes is undone even where nothing was set before.
    for variable in (CONFIG_VARIABLE, SWITCH_VARIABLE):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)


def parse_flags(*argv: str) -> DynasorConfig:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    return from_flags(parser.parse_args(argv))


def test_the_good_values_cover_every_setting() -> None:
    assert set(GOOD) == set(DynasorConfig.model_fields)


def test_settings_survive_the_way_through_the_environment() -> None:
    config = DynasorConfig.parse(GOOD)
    config.to_environment()
    assert DynasorConfig.from_environment() == config


def test_without_a_variable_the_defaults_hold() -> None:
    assert DynasorConfig.from_environment() == DynasorConfig()


def test_only_what_differs_from_the_defaults_is_published() -> None:
    DynasorConfig(max_branches=5).to_environment()
    assert json.loads(os.environ[CONFIG_VARIABLE]) == {"max_branches": 5}


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_refused_naming_the_setting(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        DynasorConfig.parse({field: value})


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_in_the_environment_is_refused_naming_the_setting(
    monkeypatch: pytest.MonkeyPatch, field: str, value: Any
) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, json.dumps({field: value}))
    with pytest.raises(ValueError, match=field):
        DynasorConfig.from_environment()


@pytest.mark.parametrize("text", ["{", "[]", "1", "null", '"rule"'])
def test_a_variable_that_is_no_json_object_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, text)
    with pytest.raises(ValueError, match=CONFIG_VARIABLE):
        DynasorConfig.from_environment()


def test_a_threshold_for_a_rule_without_one_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold"):
        DynasorConfig.parse({"rule": "decided", "threshold": 0.5})


@pytest.fixture
def profile(tmp_path: Path) -> str:
    path = tmp_path / "profile.json"
    CalibrationProfile(
        model="tiny",
        checkpoint_sha256=None,
        rule="beta",
        threshold=0.8,
        min_branches=4,
        max_branches=8,
        max_harm=0.01,
        confidence=0.95,
        problems=300,
        harm=0,
        harm_bound=0.00994,
        tokens_saved=0.5,
        created=date(2026, 1, 2),
    ).write(path)
    return str(path)


def test_a_profile_fills_what_is_not_set_and_yields_to_what_is(profile: str) -> None:
    filled = DynasorConfig.parse({"profile": profile})
    assert (filled.rule, filled.threshold) == ("beta", 0.8)
    assert (filled.min_branches, filled.max_branches) == (4, 8)
    given = {"rule": "beta", "threshold": 0.9, "min_branches": 3, "max_branches": 16}
    kept = DynasorConfig.parse({"profile": profile, **given})
    assert kept.model_dump(include=set(given)) == given


def test_a_default_that_was_set_against_a_profile_reaches_the_engines_processes(
    profile: str,
) -> None:
    config = DynasorConfig.parse({"profile": profile, "min_branches": 3})
    config.to_environment()
    assert DynasorConfig.from_environment() == config


def test_a_profile_flag_is_not_contradicted_by_unset_defaults_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, '{"min_branches": 2}')
    config = parse_flags("--dynasor-profile", profile)
    assert (config.rule, config.min_branches) == ("beta", 2)


def test_a_rule_that_contradicts_the_profile_is_refused_naming_both(profile: str) -> None:
    with pytest.raises(ValueError, match=r"'dynasor', but profile .* is for 'beta'"):
        DynasorConfig.parse({"profile": profile, "rule": "dynasor"})


def test_settings_cannot_change_under_a_running_engine() -> None:
    config = DynasorConfig()
    with pytest.raises(ValidationError):
        config.rule = "beta"  # type: ignore[misc]


def test_every_setting_has_a_flag() -> None:
    argv = [f"--dynasor-{name.replace('_', '-')}={value}" for name, value in GOOD.items()]
    assert parse_flags(*argv) == DynasorConfig.parse(GOOD)


def test_the_flags_that_users_of_the_released_code_asked_for_are_settings() -> None:
    config = parse_flags(
        "--enable-adaptive-compute",
        "--adaptive-compute-token-interval=32",
        "--adaptive-compute-window=4",
    )
    assert json.loads(config.default) == {"algorithm": "cot"}
    assert (config.probe_interval, config.window) == (32, 4)


def test_a_flag_overrides_the_environment_and_leaves_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, '{"rule": "beta", "max_branches": 9}')
    config = parse_flags("--dynasor-max-branches", "5")
    assert (config.rule, config.max_branches) == ("beta", 5)


def test_a_bad_flag_is_refused_naming_the_setting() -> None:
    with pytest.raises(ValueError, match="max_branches"):
        parse_flags("--dynasor-max-branches", "0")


@pytest.mark.parametrize(("value", "expected"), [(None, True), ("1", True), ("0", False)])
def test_the_switch_turns_the_plugin_off(
    monkeypatch: pytest.MonkeyPatch, value: str | None, expected: bool
) -> None:
    if value is not None:
        monkeypatch.setenv(SWITCH_VARIABLE, value)
    assert is_enabled() is expected


@pytest.mark.parametrize("value", ["", "false", "yes", "2", " 0"])
def test_any_other_switch_value_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(SWITCH_VARIABLE, value)
    with pytest.raises(ValueError, match=SWITCH_VARIABLE):
        is_enabled()


def test_grouping_by_embeddings_is_refused_without_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sglang_dynasor.config.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"embeddings_threshold: .*\[embeddings\]"):
        DynasorConfig.parse({"embeddings_threshold": 0.75})
    monkeypatch.setattr("sglang_dynasor.config.find_spec", lambda name: "found")
    assert DynasorConfig.parse({"embeddings_threshold": 0.75}).embeddings_threshold == 0.75


def test_settings_of_one_engine_are_not_those_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    with DynasorConfig(rule="beta").in_environment():
        assert DynasorConfig.from_environment().rule == "beta"
        with DynasorConfig(max_branches=4).in_environment():
            assert DynasorConfig.from_environment() == DynasorConfig(max_branches=4)
        assert DynasorConfig.from_environment().rule == "beta"
    assert DynasorConfig.from_environment() == DynasorConfig()
