"""`sglang-dynasor simulate`: the real scheduler on a virtual clock, the same to the last step."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CONSTANT_STEPS = "kind,size,ms\ndecode,1,10\ndecode,512,10\nprefill,1,20\nprefill,8192,20\n"
RISING_STEPS = "kind,size,ms\ndecode,1,10\ndecode,64,18\nprefill,1,12\nprefill,4096,240\n"


def program(
    number: int, arrival_s: float, samples: list[tuple[int, str]], prompt_tokens: int = 40
) -> dict[str, Any]:
    return {
        "id": f"p{number}",
        "arrival_s": arrival_s,
        "prompt_tokens": prompt_tokens,
        "gold": "1",
        "samples": [{"n_tokens": n_tokens, "answer": answer} for n_tokens, answer in samples],
    }


def simulate(
    folder: Path, steps: str, programs: list[dict[str, Any]], *flags: str, hash_seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the rows of one run in a process of its own."""
    (folder / "steps.csv").write_text(steps)
    (folder / "work.jsonl").write_text("".join(json.dumps(one) + "\n" for one in programs))
    out = folder / "rows.jsonl"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sglang_dynasor.cli", "simulate"),
            *("--workload", str(folder / "work.jsonl"), "--step-times", str(folder / "steps.csv")),
            *("--out", str(out), "--kv-tokens", "3000", "--max-running", "64", *flags),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return json.loads(done.stdout.splitlines()[-1]), rows


def test_a_chain_takes_one_prefill_and_a_step_for_each_further_token(tmp_path: Path) -> None:
    work = [program(0, 1.0, [(50, "1")]), program(1, 100.0, [(20, "2")])]
    fields = '{"algorithm": "self_consistency", "max_branches": 1, "min_branches": 1}'
    summary, rows = simulate(tmp_path, CONSTANT_STEPS, work, "--fields", fields)
    assert [row["latency_s"] for row in rows] == pytest.approx([0.51, 0.21])
    assert [row["tokens"] for row in rows] == [50, 20]
    assert summary["accuracy"] == 0.5
    assert summary["label"].startswith("virtual")


def test_two_runs_are_alike_whatever_the_hash_seed_with_retractions_too(tmp_path: Path) -> None:
    """16 branches of up to 150 tokens of many programs don't fit into 3,000 tokens of KV."""
    rng = random.Random(3)
    work = [
        program(
            number,
            0.3 * number,
            [(rng.randint(20, 150), str(rng.choice((1, 1, 1, 2, 3)))) for _ in range(16)],
        )
        for number in range(16)
    ]
    runs = [simulate(tmp_path, RISING_STEPS, work, hash_seed=seed)[0] for seed in (1, 2)]
    assert runs[0] == runs[1]
    shadow = '{"algorithm": "self_consistency", "mode": "shadow"}'
    fixed, _ = simulate(tmp_path, RISING_STEPS, work, "--fields", shadow)
    assert fixed["tokens"] > runs[0]["tokens"]
    assert fixed["mean_latency_s"] > runs[0]["mean_latency_s"]


def test_a_malformed_workload_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    path.write_text(
        '{"id": "p", "arrival_s": -1, "prompt_tokens": 4, "gold": "1", "samples": []}\n'
    )
    (tmp_path / "steps.csv").write_text(CONSTANT_STEPS)
    command = [sys.executable, "-m", "sglang_dynasor.cli", "simulate", "--workload", str(path)]
    done = subprocess.run(
        [*command, "--step-times", str(tmp_path / "steps.csv")], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "work.jsonl:1" in done.stderr
