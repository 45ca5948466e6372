"""The soak test as its users run it, for a few seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmark" / "soak.py"


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *flags], capture_output=True, text=True)


@pytest.mark.slow
def test_a_short_soak_leaves_the_pool_as_it_was_and_answers_everyone() -> None:
    done = run("--minutes", "0.3", "--in-flight", "24")
    assert done.stdout, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["left"], result["faults"], result["unanswered"]) == ([], [], 0)
    assert result["ok"] and result["alive"] and done.returncode == 0
    for kind in ("program", "cancelled", "hung_up", "aborted", "malformed", "duplicate"):
        assert result["counts"][kind] > 0
    assert result["counts"]["halves_aborted"] > 0


def test_settings_that_are_no_json_are_refused() -> None:
    done = run("--settings", "{")
    assert done.returncode == 2
    assert "--settings" in done.stderr
