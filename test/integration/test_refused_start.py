"""Starting without our classes in every process is refused, and nothing is left running."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sglang_dynasor import plugin
from sglang_dynasor.models import default_model_path
from support import refused_starts


@pytest.fixture(scope="module")
def refused() -> dict[str, Any]:
    script = Path(refused_starts.__file__)
    output = subprocess.run(
        [sys.executable, str(script), str(default_model_path())],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert output.returncode == 0, output.stderr[-4000:]
    return json.loads(output.stdout.splitlines()[-1])


@pytest.mark.parametrize("target", [hook.target for hook in plugin.HOOKS])
def test_the_server_refuses_to_start_without_a_hook_and_names_it(
    refused: dict[str, Any], target: str
) -> None:
    message = refused["launches"][target]
    assert message.startswith("sglang-dynasor refuses to start: not patched in the main process")
    assert [hook.target for hook in plugin.HOOKS if hook.target in message] == [target]


def test_the_server_refuses_an_unsupported_setup(refused: dict[str, Any]) -> None:
    assert refused["unsupported"].startswith("sglang-dynasor refuses to start")
    assert "--tokenizer-worker-num" in refused["unsupported"]


def test_an_unpatched_scheduler_process_stops_the_start(refused: dict[str, Any]) -> None:
    kind, message = refused["engine"]
    assert kind == "HandshakeError"
    assert message == "not patched in a scheduler process: sglang.srt.managers.scheduler.Scheduler"


def test_a_refused_start_leaves_no_process(refused: dict[str, Any]) -> None:
    left = [command for command in refused["children"] if "resource_tracker" not in command]
    assert left == []
