"""The plugin's gate: exactly the pinned SGLang, or nothing is hooked."""

from __future__ import annotations

import pkgutil
from typing import Any

import pytest
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_dynasor import plugin
from sglang_dynasor.config import CONFIG_VARIABLE, SWITCH_VARIABLE


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Targets handed to upstream's registry; the real one stays as it is."""
    targets: list[str] = []
    monkeypatch.setattr(HookRegistry, "register", lambda target, *_: targets.append(target))
    monkeypatch.delenv(SWITCH_VARIABLE, raising=False)
    return targets


@pytest.mark.parametrize("installed", ["0.5.22", "0.5.24", "0.5.23.post1", "0.6.0"])
def test_another_sglang_is_refused_with_both_versions(
    monkeypatch: pytest.MonkeyPatch, registered: list[str], installed: str
) -> None:
    monkeypatch.setattr(plugin, "version", lambda name: installed)
    with pytest.raises(RuntimeError) as caught:
        plugin.register()
    assert installed in str(caught.value)
    assert f"sglang=={plugin.SGLANG_VERSION}," in str(caught.value)
    assert registered == []


def test_the_installed_sglang_passes_the_gate() -> None:
    plugin.check_version()


def test_the_gate_is_the_version_that_setup_pins() -> None:
    from importlib.metadata import requires

    assert f"sglang=={plugin.SGLANG_VERSION}" in (requires("sglang-dynasor") or [])


def test_every_hook_is_registered(registered: list[str]) -> None:
    plugin.register()
    assert registered == [hook.target for hook in plugin.HOOKS]


def test_switched_off_nothing_is_registered(
    monkeypatch: pytest.MonkeyPatch, registered: list[str]
) -> None:
    monkeypatch.setenv(SWITCH_VARIABLE, "0")
    monkeypatch.setattr(plugin, "version", lambda name: "0.0.0")  # not even looked at
    plugin.register()
    assert registered == []


def test_the_detokenizer_process_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, registered: list[str]
) -> None:
    monkeypatch.setattr(plugin, "_is_detokenizer", lambda: True)
    plugin.register()
    assert registered == []


def test_a_malformed_setting_stops_the_plugin(
    monkeypatch: pytest.MonkeyPatch, registered: list[str]
) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, '{"max_branches": 0}')
    with pytest.raises(ValueError, match="max_branches"):
        plugin.register()
    assert registered == []


@pytest.mark.parametrize("hook", plugin.HOOKS, ids=lambda hook: hook.target.rpartition(".")[2])
def test_each_hook_names_things_that_exist(hook: plugin.Hook) -> None:
    ours: Any = pkgutil.resolve_name(hook.ours)
    assert callable(ours)
    assert pkgutil.resolve_name(hook.target) is not None
    assert isinstance(ours, type) == (hook.kind == "replace")
