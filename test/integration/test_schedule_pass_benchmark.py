"""The benchmark of the ordering pass as its users run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmark" / "schedule_pass.py"


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *flags], capture_output=True, text=True)


def test_the_last_line_holds_our_policies_and_upstreams() -> None:
    done = run("--sizes", "40", "100", "--repetitions", "3", "--policy", "value")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    sizes = {"ms_at_40", "ms_at_100"}
    assert sizes <= result.keys()
    assert result["policy"] == "value"
    assert result["value"]["typical"] == {name: result[name] for name in sizes}
    for name in ("fcfs", "lpm"):
        assert result[name].keys() == sizes
    for name in ("gang", "gang-sjf", "value"):
        passes = result[name]
        assert all(
            passes[kind].keys() == sizes for kind in ("typical", "cold", "unchanged", "after")
        )
        for size in sizes:
            assert 0 < passes["unchanged"][size] < passes["cold"][size]


def test_a_queue_below_the_fewest_programs_is_refused() -> None:
    done = run("--sizes", "9")
    assert done.returncode == 2
    assert "--sizes must be at least 10" in done.stderr
