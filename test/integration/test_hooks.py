"""Every hook is in force, and each one that is taken away is noticed by name."""

from __future__ import annotations

import io
import pkgutil
from typing import Any

import psutil
import pytest
from rich.console import Console
from sglang.srt.plugins import load_plugins

from sglang_dynasor import DynasorEngine, doctor, plugin
from sglang_dynasor.config import CONFIG_VARIABLE, SWITCH_VARIABLE
from sglang_dynasor.handshake import HandshakeError, check_this_process, unpatched_hooks
from sglang_dynasor.models import default_model_path

each_hook = pytest.mark.parametrize(
    "hook", plugin.HOOKS, ids=lambda hook: hook.target.rpartition(".")[2]
)


@pytest.fixture(autouse=True)
def _patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH_VARIABLE, raising=False)
    monkeypatch.setenv(CONFIG_VARIABLE, "")
    load_plugins()


def unpatch(monkeypatch: pytest.MonkeyPatch, hook: plugin.Hook) -> None:
    """Put upstream's own object back, as if the plugin had failed on this one."""
    owner_path, _, name = hook.target.rpartition(".")
    owner = pkgutil.resolve_name(owner_path)
    original: Any
    if hook.kind == "replace":
        bases = pkgutil.resolve_name(hook.ours).__mro__
        original = next(base for base in bases if base.__module__.startswith("sglang."))
    else:
        wrapper = vars(owner)[name]
        is_class_method = isinstance(wrapper, classmethod)
        original = (
            classmethod(wrapper.__func__.__wrapped__) if is_class_method else wrapper.__wrapped__
        )
    monkeypatch.setattr(owner, name, original)


def examine() -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = doctor.examine(console)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def test_every_hook_is_in_force() -> None:
    assert unpatched_hooks() == []
    check_this_process()


def test_the_doctor_finds_a_sound_setup() -> None:
    code, text = examine()
    assert code == 0
    assert "READY: programs run on this machine" in text
    assert text.count(" ok") == len(plugin.HOOKS)
    assert "0.5.23" in text


@each_hook
def test_the_doctor_names_a_missing_hook(
    monkeypatch: pytest.MonkeyPatch, hook: plugin.Hook
) -> None:
    unpatch(monkeypatch, hook)
    code, text = examine()
    assert code == 1
    assert f"NOT READY: not patched: {hook.target}" in text
    assert text.count("NOT PATCHED") == 1


@each_hook
def test_the_engine_refuses_to_start_without_a_hook_and_starts_no_process(
    monkeypatch: pytest.MonkeyPatch, hook: plugin.Hook
) -> None:
    unpatch(monkeypatch, hook)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(HandshakeError, match=hook.target.replace(".", r"\.")) as caught:
        DynasorEngine(model_path=str(default_model_path()))
    assert set(psutil.Process().children(recursive=True)) <= before
    for other in plugin.HOOKS:
        assert (other.target in str(caught.value)) == (other == hook)


def test_the_doctor_names_both_versions_when_sglang_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugin, "version", lambda name: "0.5.99")
    code, text = examine()
    assert code == 1
    assert "0.5.99" in text and plugin.SGLANG_VERSION in text


def test_the_doctor_names_a_bad_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, '{"max_branches": 0}')
    code, text = examine()
    assert code == 1
    assert "max_branches" in text


def test_the_doctor_says_that_the_plugin_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH_VARIABLE, "0")
    code, text = examine()
    assert code == 0
    assert "OFF: SGLANG_DYNASOR=0" in text


def test_the_doctor_names_a_bad_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH_VARIABLE, "maybe")
    code, text = examine()
    assert code == 1
    assert SWITCH_VARIABLE in text


def test_bad_engine_settings_are_refused_before_any_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(ValueError, match="max_branches"):
        DynasorEngine(model_path=str(default_model_path()), dynasor={"max_branches": 0})
    assert set(psutil.Process().children(recursive=True)) <= before
