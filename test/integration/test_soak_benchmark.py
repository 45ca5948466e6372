"""The soak test as its users run it, for a few seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmark" / "soak.py"
KINDS = ("program", "twin", "aborted", "client_driven", "plain", "batch")


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *flags], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["gang-sjf", "fcfs"])
def test_a_short_soak_leaves_nothing_and_answers_everyone(policy: str) -> None:
    done = run("--minutes", "0.5", "--policy", policy)
    assert done.stdout, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    bars = ("unanswered", "wrong_tenant", "kv_tokens_leaked", "table_entries", "faults")
    assert {name: result[name] for name in bars} == dict.fromkeys(bars, 0), result["examples"]
    assert result["alive"] and result["programs"] > 100
    counts = result["counts"]
    assert all(counts[f"{kind} 200"] > 0 for kind in KINDS)
    assert counts["vanishing"] and counts["vanishing_stream"] and counts["malformed 400"]
    assert counts["halves aborted"] and counts["deadly 400"]


@pytest.mark.parametrize(("flag", "value"), [("--policy", "oracle"), ("--minutes", "0")])
def test_options_that_make_no_sense_are_refused(flag: str, value: str) -> None:
    done = run(flag, value)
    assert done.returncode == 2
    assert flag in done.stderr
