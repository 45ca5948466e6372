"""The replay benchmark as its users run it."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.probe_traces import made_up_lines

SCRIPT = Path(__file__).parents[2] / "benchmark" / "replay.py"
FIGURES = {
    "accuracy",
    "harm",
    "gain",
    "disagreements",
    "tokens",
    "tokens_saved",
    "tokens_saved_vs_equal",
    "samples",
    "rounds",
    "critical_path",
    "sequential_tokens",
    "sequential_share",
    "probe_tokens",
    "probe_token_share",
}
RULES = {
    "threshold",
    "threshold_every_step",
    "esc",
    "adaptive_consistency",
    "dirichlet",
    "sprt",
    "e_process",
    "deepconf",
    "hopeless",
    "decided",
    "dynasor",
    "dynasor_offers",
    "dynasor_pace",
    "dynasor_running",
    "dynasor_all_at_once",
}


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """Four problems with eight samples each, from easy to hard."""
    rng = random.Random(5)
    path = tmp_path / "tiny.jsonl"
    with path.open("w") as file:
        for index in range(4):
            samples = [
                {
                    "answer": "b" if rng.random() < index / 6 else "a",
                    "n_tokens": rng.randint(5, 60),
                }
                for _ in range(8)
            ]
            line = {"id": index, "gold": "a", "model": "none", "samples": samples}
            file.write(json.dumps(line) + "\n")
    return path


def run(traces: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--traces", str(traces), "--seeds", "3"]
    command += ["--output-dir", str(traces.parent), *flags]
    return subprocess.run(command, capture_output=True, text=True)


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_last_line_holds_the_documented_figures_of_every_rule(traces: Path) -> None:
    result = result_of(run(traces))
    assert result.keys() == {"fixed", *RULES}
    for name, row in result.items():
        extra = {"concurrent", "curve"} if name == "fixed" else {"concurrent"}
        assert row.keys() == FIGURES | extra
        assert row["concurrent"].keys() == FIGURES
    curve = result["fixed"]["curve"]
    assert [point["k"] for point in curve] == list(range(1, 9))
    assert curve[-1]["tokens"] == pytest.approx(result["fixed"]["tokens"], abs=0.01)
    assert result["decided"]["harm"] == result["decided"]["disagreements"] == 0

    with (traces.parent / "replay_tiny_8.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["order"], row["rule"]) for row in rows} == {
        *((order, name) for order in ("sequential", "concurrent") for name in result),
        ("any", "fixed_k"),
    }
    assert (traces.parent / "replay_tiny_8.png").read_bytes().startswith(b"\x89PNG")


def test_traces_with_probes_give_running_votes_and_single_chains(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_text(made_up_lines(4, 16))
    result = result_of(run(path, "--rules", "dynasor_pace,dynasor_running"))
    assert result["dynasor_running"]["concurrent"]["probe_token_share"] < 0.05
    assert result["dynasor_pace"]["concurrent"]["probe_tokens"] == 0
    chains = result["chains"]
    assert {"whole", "window_2", "window_20", "promised"} <= chains.keys()
    assert chains["window_2"]["tokens_saved"] > chains["window_10"]["tokens_saved"]
    assert "mild" not in chains["promised"]  # four problems promise nothing


def test_a_study_adds_its_tables_and_one_key(traces: Path) -> None:
    done = run(traces, "--study", "--rules", "dynasor,decided", "--max-branches", "6")
    result = result_of(done)
    assert result.keys() == {"fixed", "dynasor", "decided", "study"}
    study = result["study"]
    assert (study["problems"], study["shuffles"]) == (4, 3)
    assert [at["step"] for at in study["signals"]] == [3, 5]
    assert len(study["thresholds"]) == 8
    assert study["ladder"][0]["policy"] == "even"
    assert "mean log-prob: not in this trace" in " ".join(done.stdout.split())
    assert (traces.parent / "replay_tiny_6.csv").exists()


def test_an_unknown_rule_is_refused_with_the_known_ones(traces: Path) -> None:
    done = run(traces, "--rules", "dynasor,oracle")
    assert done.returncode != 0
    assert "unknown oracle" in done.stderr
    assert all(rule in done.stderr for rule in RULES)
    assert list(traces.parent.iterdir()) == [traces]
