"""Reading recorded samples: what is kept, and malformed lines by file, line and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sglang_dynasor.offline.traces import TraceCertainty, TraceProblem, TraceSample, read_traces

SAMPLE = {"answer": "4", "correct": 1, "n_tokens": 12, "text": "2 + 2 = 4", "reward": -0.5}
PROBLEM = {"id": 0, "problem": "2 + 2?", "gold": "4", "model": "m", "samples": [SAMPLE]}


def written(path: Path, *lines: Any) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["traces.jsonl", "traces.jsonl.gz"])
def test_plain_and_gzip_files_give_the_same_problems(tmp_path: Path, name: str) -> None:
    bare = {"answer": None, "n_tokens": 1}
    path = written(tmp_path / name, PROBLEM, "", {**PROBLEM, "id": "b", "samples": [bare, SAMPLE]})
    kept = TraceSample("4", 12, True, -0.5)
    assert read_traces(path) == [
        TraceProblem("0", "4", "m", (kept,)),
        TraceProblem("b", "4", "m", (TraceSample("", 1), kept)),
    ]


def test_recorded_certainty_is_kept_with_how_it_was_measured(tmp_path: Path) -> None:
    sample = SAMPLE | {"certainty": {"mean": 9.5, "lowest_group": 8.0}}
    line = PROBLEM | {"samples": [sample], "certainty": {"k": 20, "group_tokens": 16}}
    (problem,) = read_traces(written(tmp_path / "t.jsonl", line))
    assert problem.certainty == TraceCertainty(20, 16)
    assert problem.samples[0].certainty == {"mean": 9.5, "lowest_group": 8.0}


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({**PROBLEM, "certainty": {"k": 20, "group_tokens": 0}}, "group_tokens"),
        ({**PROBLEM, "samples": [{**SAMPLE, "certainty": {"mean": "x"}}]}, "mean"),
        ("{", "Invalid JSON"),
        ("[]", "object"),
        ({**PROBLEM, "gold": None}, "gold"),
        ({**PROBLEM, "model": 3}, "model"),
        ({**PROBLEM, "id": [1]}, "id"),
        ({**PROBLEM, "samples": []}, "samples"),
        ({**PROBLEM, "samples": [SAMPLE, {"n_tokens": 1}]}, r"samples\.1\.answer"),
        ({**PROBLEM, "samples": [{**SAMPLE, "correct": "perhaps"}]}, r"samples\.0\.correct"),
        ({**PROBLEM, "samples": [{**SAMPLE, "n_tokens": -1}]}, r"samples\.0\.n_tokens"),
        ({**PROBLEM, "samples": [{**SAMPLE, "reward": float("nan")}]}, r"samples\.0\.reward"),
        ({**PROBLEM, "gold": "5"}, "id: 0 came before"),
    ],
)
def test_a_malformed_line_is_refused_by_file_line_and_field(
    tmp_path: Path, line: Any, field: str
) -> None:
    path = written(tmp_path / "bad.jsonl", PROBLEM, line)
    with pytest.raises(ValueError, match=rf"bad\.jsonl:2: .*{field}"):
        read_traces(path)


@pytest.mark.parametrize("answer", ["", None, "4"])
def test_an_empty_generation_is_an_empty_answer_of_no_tokens(tmp_path: Path, answer: Any) -> None:
    """It refused the whole file."""
    empty = {"answer": answer, "n_tokens": 0, "correct": False}
    path = written(tmp_path / "t.jsonl", {**PROBLEM, "samples": [empty, SAMPLE, empty]})
    (problem,) = read_traces(path)
    kept = TraceSample("", 0, False)
    assert problem.samples == (kept, TraceSample("4", 12, True, -0.5), kept)


def test_many_faults_are_told_in_three_lines(tmp_path: Path) -> None:
    bad = {**PROBLEM, "id": 1, "samples": [{**SAMPLE, "n_tokens": "many"}] * 41}
    path = written(tmp_path / "bad.jsonl", PROBLEM, bad, {**PROBLEM, "id": 2, "gold": 4}, "[")
    with pytest.raises(ValueError) as caught:
        read_traces(path)
    first, second, rest = str(caught.value).splitlines()
    assert first.startswith(f"{path}:2: samples.0.n_tokens: ")
    assert second.startswith(f"{path}:2: samples.1.n_tokens: ")
    assert rest == "and 41 more faults"


def test_few_faults_are_told_one_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "bad.jsonl", {**PROBLEM, "gold": 4}, "[")
    with pytest.raises(ValueError) as caught:
        read_traces(path)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        f"{path}:1",
        f"{path}:2",
    ]


def test_a_file_without_a_problem_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"empty\.jsonl: holds no problem"):
        read_traces(written(tmp_path / "empty.jsonl", ""))


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"plain" + data])
def test_a_damaged_gzip_file_is_refused_by_name(tmp_path: Path, damage: Any) -> None:
    path = written(tmp_path / "cut.jsonl.gz", PROBLEM)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"cut\.jsonl\.gz: not a whole gzip file"):
        read_traces(path)
