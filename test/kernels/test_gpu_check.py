"""`benchmark/gpu_check.py` as far as it goes without a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmark" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_exits_2(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--model-path", str(tmp_path)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (process.returncode, process.stdout) == (2, "no GPU found\n")
    assert list(tmp_path.iterdir()) == []


def test_the_result_of_a_check_is_its_last_line(gpu_check: ModuleType) -> None:
    result = gpu_check.run(["-c", "print('starting'); print('{\"passed\": true}')"], 60)
    assert result["passed"] is True


def test_a_check_that_crashes_is_reported_with_its_error(gpu_check: ModuleType) -> None:
    result = gpu_check.run(["-c", "raise SystemExit('device is on fire')"], 60)
    assert result == {"passed": False, "reason": "device is on fire"}


def test_a_check_that_hangs_is_ended_and_reported(gpu_check: ModuleType) -> None:
    """Its children hold the pipes: all of them have to go, or the wait never ends."""
    child = "import signal; signal.pause()"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    result = gpu_check.run(["-c", script], 2)
    assert result == {"passed": False, "reason": "longer than 2 s"}
