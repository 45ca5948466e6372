"""`sglang-dynasor run --record` on the real engine."""

from __future__ import annotations

import gzip
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sglang_dynasor import Program, cli, run
from sglang_dynasor.offline.traces import read_traces

if TYPE_CHECKING:
    from sglang_dynasor import DynasorEngine

RUN = {"algorithm": "self_consistency", "max_branches": 3, "detail": "branches"}


def test_a_recording_holds_every_branch_and_repeats_by_its_seed(
    engine: DynasorEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Ending an engine of the command's own would end the shared one with it.
    monkeypatch.setattr(run, "started_engine", lambda *_: nullcontext(engine))
    paths = [tmp_path / name for name in ("one.jsonl.gz", "two.jsonl.gz")]
    for path in paths:
        arguments = ["--problems", "6", "--max-branches", "5", "--seed", "3"]
        assert cli.main(["run", *arguments, "--record", str(path)]) == 0
    problems = read_traces(paths[0])
    for problem, again in zip(problems, read_traces(paths[1]), strict=True):
        for sample, other in zip(problem.samples, again.samples, strict=True):
            assert (sample.answer, sample.n_tokens) == (other.answer, other.n_tokens)
            # A batch of another size rounds its matrix products otherwise.
            assert sample.certainty == pytest.approx(other.certainty, rel=1e-3, abs=1e-4)
    assert [len(problem.samples) for problem in problems] == [5] * 6
    assert {sample.correct for problem in problems for sample in problem.samples} >= {True}
    for line in gzip.decompress(paths[0].read_bytes()).splitlines():
        for sample in json.loads(line)["samples"]:
            certainty = sample["certainty"]
            lowest = certainty["lowest_group"]
            assert 0 < lowest <= certainty["tail"]


def test_every_token_of_a_branch_counts_into_its_certainty(engine: DynasorEngine) -> None:
    params = {"temperature": 1.0, "max_new_tokens": 80, "sampling_seed": 11}
    for asked in (True, False):
        fields = {**RUN, "token_certainty": asked}
        report = engine.run(Program(prompt="12+34", sampling_params=params, dynasor=fields)).report
        for branch in report["branch_details"]:
            tokens = branch.get("certainty", {}).get("tokens")
            assert tokens == (branch["tokens"] if asked else None)
