"""The certainty study as its users run it, on the recorded branches of the embedded model."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmark" / "certainty_study.py"
TRACES = ROOT / "test" / "data" / "tiny_reasoner_300x40.jsonl.gz"
SIGNALS = {"agreement", "length", "mean", "lowest_group", "tail", "self_certainty", "entropy"}


def study(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_every_signal_has_its_figures_in_table_csv_and_json(tmp_path: Path) -> None:
    done = study("--traces", TRACES, "--max-branches", 4, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    levels = ("branch", "within_problem", "program")
    found = {level: set(rows) for level, rows in result["auroc"].items()}
    assert found == dict.fromkeys(levels, SIGNALS)
    for rows in result["auroc"].values():
        assert all(0 <= low <= auroc <= high <= 1 for auroc, low, high in rows.values())
    (path,) = tmp_path.glob("*.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(SIGNALS) + len(result["votes"])
    assert {row["label"] for row in rows} == {"replayed"}
    assert "self certainty" in done.stdout and "filtered, keep_top 0.1" in done.stdout


def test_traces_without_certainty_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bare.jsonl"
    samples = [{"answer": "a", "n_tokens": 5}] * 2
    path.write_text(json.dumps({"id": 1, "gold": "a", "model": "m", "samples": samples}))
    done = study("--traces", path)
    assert done.returncode != 0 and "without token certainty" in done.stderr
