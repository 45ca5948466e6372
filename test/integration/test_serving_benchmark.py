"""The serving benchmark as its users run it, on a few programs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmark" / "serving.py"
LISTS = {
    "mean_latency_s",
    "p50_latency_s",
    "p90_latency_s",
    "p95_latency_s",
    "p99_latency_s",
    "attainment",
    "accuracy",
    "tokens",
    "idle_tokens",
    "fairness",
}


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *flags], capture_output=True, text=True)


@pytest.mark.slow
def test_the_last_line_compares_the_systems_over_the_loads(tmp_path: Path) -> None:
    flags = ["--systems", "client_side,gang_sjf_fixed,full", "--loads", "0.5,1.2"]
    flags += ["--programs", "10", "--overload-programs", "15", "--in-flight", "6"]
    flags += ["--search-seconds", "2", "--output-dir", str(tmp_path)]
    done = run(*flags, "--full", '{"policy": "value", "draw": "offer"}', "--max-branches", "8")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    systems = ("lpm_fixed", "client_side", "gang_sjf_fixed", "full")
    for system in systems:
        assert result[system].keys() >= LISTS
        assert all(len(result[system][name]) == 2 for name in LISTS)
        assert result[system]["unfinished"] == [0, 0]
    # Same work: the order of programs alone changes neither samples nor votes.
    for name in ("tokens", "accuracy"):
        assert result["gang_sjf_fixed"][name] == result["lpm_fixed"][name]
    assert result["full"]["tokens"][0] < result["lpm_fixed"]["tokens"][0]
    assert result["client_side"]["tokens"][0] < result["lpm_fixed"]["tokens"][0]
    assert result["loads"] == [0.5, 1.2]
    assert result["capacity"] > 0
    assert result["rate_gain_at_p90"] > 0 and result["rate_gain_client_side"] > 0
    assert [entry["n"] for entry in result["harm"]] == [9, 13]
    for system in systems[1:]:
        for value, low, high in result["ratios"][system]["p95"]:
            assert 0 < low <= high and value > 0
    assert result["label"].startswith("measured")

    with (tmp_path / "serving_tiny_reasoner_1x10.csv").open() as file:
        rows = [(row["system"], row["load"]) for row in csv.DictReader(file)]
    assert rows == [(system, load) for system in systems for load in ("0.5", "1.2")]
    for chart in ("curves", "ladder"):
        path = tmp_path / f"serving_tiny_reasoner_1x10_{chart}.png"
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--systems", "full,oracle"), "unknown oracle; known: lpm_fixed, fcfs_fixed"),
        (("--full", '{"policy": "best"}'), "policy: must be one of"),
        (("--full", "{"), "--full"),
        (("--loads", "0.5,none"), "--loads must be positive numbers"),
        (("--programs", "0"), "--programs must be positive"),
        (("--arrivals", "nowhere.csv"), "--arrivals: nowhere.csv is no file"),
    ],
)
def test_a_bad_flag_is_refused_before_any_engine_starts(flags: tuple[str, ...], named: str) -> None:
    done = run(*flags)
    assert done.returncode == 2
    assert named in done.stderr
