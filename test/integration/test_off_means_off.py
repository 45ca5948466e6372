"""Without program fields the plugin changes nothing (DESIGN section 5)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import upstream_sequence


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same requests on a fresh engine without ("0") and with ("1") the plugin."""
    folder = tmp_path_factory.mktemp("arms")
    script = Path(upstream_sequence.__file__)
    processes = {}
    for switch in ("0", "1"):
        with (folder / f"{switch}.log").open("wb") as log:
            processes[switch] = subprocess.Popen(
                [sys.executable, str(script), str(folder / f"{switch}.json")],
                env={**os.environ, "SGLANG_DYNASOR": switch, "SGLANG_DYNASOR_CONFIG": ""},
                stdout=log,
                stderr=log,
            )
    try:
        for switch, process in processes.items():
            code = process.wait(timeout=400)
            assert code == 0, (folder / f"{switch}.log").read_text()[-4000:]
    finally:
        for process in processes.values():
            process.kill()
    return {switch: json.loads((folder / f"{switch}.json").read_text()) for switch in processes}


def test_the_switch_decides_which_classes_run(arms: dict[str, dict[str, Any]]) -> None:
    assert arms["0"]["tokenizer_manager"] == "TokenizerManager"
    assert not arms["0"]["scheduler_is_ours"]
    assert arms["1"]["tokenizer_manager"] == "DynasorTokenizerManager"
    assert arms["1"]["scheduler_is_ours"]


@pytest.mark.parametrize("index", range(len(upstream_sequence.REQUESTS)))
def test_an_ordinary_request_is_answered_alike(arms: dict[str, dict[str, Any]], index: int) -> None:
    assert arms["1"]["outputs"][index] == arms["0"]["outputs"][index]


def test_the_sequence_really_samples_and_really_refuses(arms: dict[str, dict[str, Any]]) -> None:
    outputs = arms["0"]["outputs"]
    texts = {item["text"] for item in outputs if isinstance(item, dict)}
    refusals = [item for item in outputs if isinstance(item, list)]
    assert len(texts) >= 8
    assert len(refusals) == 2
    assert outputs[2]["meta_info"]["cached_tokens"] > 0
