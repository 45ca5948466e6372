"""Which machines the portable CPU platform claims."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_dynasor import platforms
from sglang_dynasor.platforms import PLATFORM_CLASS, activate, find_accelerator


class FakeEntryPoint:
    """Stands in for importlib's entry point of another vendor's platform plugin."""

    def __init__(self, name: str, answer: Any) -> None:
        self.name = name
        self._answer = answer

    def load(self) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No accelerator, no variable, no other plugin, whatever machine the tests run on."""
    for variable in ("SGLANG_USE_CPU_ENGINE", "SGLANG_PLATFORM", "SGLANG_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "hip", None)
    for name in ("xpu", "mps", "npu", "hpu"):
        fake_accelerator(monkeypatch, name, available=False)
    monkeypatch.delattr(torch.version, "musa", raising=False)
    install(monkeypatch)


def fake_accelerator(monkeypatch: pytest.MonkeyPatch, name: str, available: bool) -> None:
    module = SimpleNamespace(is_available=lambda: available)
    monkeypatch.setattr(torch, name, module, raising=False)


def install(monkeypatch: pytest.MonkeyPatch, *points: FakeEntryPoint) -> None:
    own = FakeEntryPoint(platforms.ENTRY_POINT_NAME, activate)
    monkeypatch.setattr(platforms, "entry_points", lambda group: [own, *points])


def test_a_machine_without_accelerator_is_claimed() -> None:
    assert find_accelerator() is None
    assert activate() == PLATFORM_CLASS


@pytest.mark.parametrize("name", ["xpu", "npu", "hpu", "mps"])
def test_a_torch_accelerator_module_keeps_the_platform_out(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fake_accelerator(monkeypatch, name, available=True)
    assert find_accelerator() == name
    assert activate() is None


@pytest.mark.parametrize(("hip", "name"), [(None, "cuda"), ("6.4", "rocm")])
def test_cuda_and_rocm_keep_the_platform_out(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert find_accelerator() == name
    assert activate() is None


def test_musa_keeps_the_platform_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "musa", "4.0", raising=False)
    assert find_accelerator() == "musa"
    assert activate() is None


def test_upstreams_own_cpu_engine_keeps_the_platform_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert activate() is None
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "0")
    assert activate() == PLATFORM_CLASS


def test_another_active_platform_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeEntryPoint("vendor", lambda: "vendor.Platform"))
    assert activate() is None


def test_another_platform_that_stays_out_or_fails_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing() -> str:
        raise RuntimeError("driver not found")

    install(
        monkeypatch,
        FakeEntryPoint("absent", lambda: None),
        FakeEntryPoint("failing", failing),
        FakeEntryPoint("broken", ImportError("no module")),
    )
    assert activate() == PLATFORM_CLASS


def test_platforms_that_ask_each_other_do_not_recurse(monkeypatch: pytest.MonkeyPatch) -> None:
    def polite() -> str | None:
        return "vendor.Platform" if activate() is None else None

    install(monkeypatch, FakeEntryPoint("polite", polite))
    assert activate() is None
    assert activate() is None, "the guard must be lifted after each question"


def test_upstreams_selection_variables_rule_out_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeEntryPoint("vendor", lambda: "vendor.Platform"))
    monkeypatch.setenv("SGLANG_PLUGINS", "portable_cpu, dynasor")
    assert activate() == PLATFORM_CLASS, "upstream does not load a plugin outside the list"
    monkeypatch.setenv("SGLANG_PLUGINS", "portable_cpu,vendor")
    assert activate() is None
    monkeypatch.setenv("SGLANG_PLATFORM", "portable_cpu")
    assert activate() == PLATFORM_CLASS


def test_activation_initialises_nothing_and_writes_no_variable() -> None:
    code = (
        "import os, sys, torch\n"
        "before = dict(os.environ)\n"
        "from sglang_dynasor.platforms import activate\n"
        "activate()\n"
        "assert dict(os.environ) == before\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert 'sglang' not in sys.modules, 'the model code must not be loaded to answer'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
