"""The benchmark of one decision as its users run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from sglang_dynasor.allocation import RULES

SCRIPT = Path(__file__).parents[2] / "benchmark" / "decision.py"


def test_the_last_line_holds_every_rule_and_what_grouping_costs() -> None:
    command = [sys.executable, str(SCRIPT), "--branches", "8", "--repetitions", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["rules"]) == set(RULES)
    assert result["grouping"].keys() == {"event_loop", "worker"}
    for figures in (*result["rules"].values(), *result["grouping"].values()):
        assert 0 < figures["median_us"] <= figures["p99_us"]
