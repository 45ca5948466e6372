"""`sglang-dynasor run` around a fake engine, the trace it writes, and the committed one."""

from __future__ import annotations

import argparse
import gzip
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sglang_dynasor import cli, run
from sglang_dynasor.certaindex import canonical_key
from sglang_dynasor.demo import Problem
from sglang_dynasor.models import default_model_path, recommended_temperature
from sglang_dynasor.offline.traces import TraceSample, read_traces
from sglang_dynasor.offline.trees import read_trees
from sglang_dynasor.programs import Program, ProgramResult
from sglang_dynasor.run import json_object, write_trace

COMMITTED = Path(__file__).parents[1] / "data" / "tiny_reasoner_300x40.jsonl.gz"
CERTAINTY = {"tokens": 7, "mean": 3.14159265, "tail": 3.0, "lowest_group": 2.5, "logprob": None}


class FakeEngine:
    """Every program gets the answers 7, none and 07, or ends as told."""

    def __init__(self, stop_reason: str = "completed", error: str | None = None) -> None:
        self.programs: list[Program] = []
        self.settings: dict[str, Any] | None = None
        self._stop_reason = stop_reason
        self._error = error

    def run_batch(
        self, programs: list[Program], *, progress: bool, branches_in_flight: int | None
    ) -> list[ProgramResult]:
        self.programs = programs
        return [self._result(position) for position in range(len(programs))]

    def _result(self, position: int) -> ProgramResult:
        if self._error and position == 1:
            return ProgramResult("", {}, error=self._error)
        report = {
            "answer": "7",
            "algorithm": "self_consistency",
            "stop_reason": self._stop_reason,
            "branches": {"started": 3},
            "tokens": {"prompt": 4, "total": 34},
            "branch_details": [
                {"answer": answer, "tokens": tokens, "text": f"t{tokens}", "certainty": CERTAINTY}
                for answer, tokens in (("7", 9), ("", 10), ("07", 11))
            ],
        }
        return ProgramResult("t9", report)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    return share(FakeEngine(), monkeypatch)


def share(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    def start(model: Path, seed: int, dynasor: dict[str, Any]) -> Any:
        engine.settings = dynasor
        return nullcontext(engine)

    monkeypatch.setattr(run, "started_engine", start)
    return engine


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines: list[dict[str, Any]] = [
        {"id": "a", "prompt": "3+4", "gold": "7"},
        {"id": "b", "messages": [{"role": "user", "content": "4+4"}], "gold": "8"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def command(*arguments: str | Path) -> int:
    return cli.main(["run", *map(str, arguments)])


def test_programs_act_and_the_last_line_sums_them_up(
    fake: FakeEngine, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--problems-file", questions, "--max-branches", "5", "--temperature", "0.5") == 0
    output = capsys.readouterr()
    assert json.loads(output.out.splitlines()[-1]) == {
        "n": 2,
        "accuracy": 0.5,
        "tokens": 30.0,
        "stop_reasons": {"completed": 2},
    }
    assert "2 of 2 problems" in output.err
    first, second = fake.programs
    assert (first.prompt, second.messages) == ("3+4", [{"role": "user", "content": "4+4"}])
    assert first.dynasor["mode"] == "on"
    assert first.dynasor["max_branches"] == 5
    assert first.sampling_params["temperature"] == 0.5
    assert first.sampling_params["sampling_seed"] != second.sampling_params["sampling_seed"]
    assert not first.dynasor["token_certainty"]


def test_without_a_file_the_problems_are_held_out_and_sampled_as_the_model_recommends(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--problems", "25") == 0
    assert len(fake.programs) == 25
    temperature = fake.programs[0].sampling_params["temperature"]
    assert temperature == recommended_temperature(default_model_path())
    assert "max_branches" not in fake.programs[0].dynasor  # the engine's setting decides
    table = capsys.readouterr().err
    assert "20 of 25 problems" in table
    assert "sum-0-00019" in table and "sum-0-00020" not in table


def test_rule_and_profile_are_settings_of_the_engine(fake: FakeEngine, questions: Path) -> None:
    assert command("--problems-file", questions, "--rule", "beta") == 0
    assert fake.settings == {"rule": "beta"}


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("--record", ["--texts"]),
        (".gz", ["--record", "trace.jsonl"]),
        ("no folder", ["--record", "nowhere/trace.jsonl.gz"]),
        ("--problems", ["--problems", "0"]),
        ("max_branches", ["--max-branches", "0"]),
        ("profile", ["--profile", "nowhere.json"]),
        ("unknown model", ["--model-path", "gpt"]),
    ],
)
def test_what_cannot_work_is_refused_before_the_engine_starts(
    fake: FakeEngine, named: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == 2
    assert named in capsys.readouterr().err
    assert fake.settings is None


@pytest.mark.parametrize(
    ("named", "lines"),
    [
        ("has no problems", []),
        ("id 'a' stands for several problems", [{"id": "a"}, {"id": "b"}, {"id": "a"}]),
        ("problem x: dynasor.answer_pattern", [{"id": "x", "answer_format": "regex"}]),
        ("problem x: dynasor.answer_format", [{"id": "x", "answer_format": "roman"}]),
    ],
)
def test_problems_that_cannot_run_are_named_before_the_engine_starts(
    fake: FakeEngine,
    tmp_path: Path,
    named: str,
    lines: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "1+1", "gold": "2", **x}) for x in lines))
    assert command("--problems-file", path) == 2
    assert named in capsys.readouterr().err
    assert fake.settings is None


def test_a_refused_program_is_named(
    monkeypatch: pytest.MonkeyPatch, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share(FakeEngine(error="too long"), monkeypatch)
    assert command("--problems-file", questions) == 2
    assert "problem b: too long" in capsys.readouterr().err


def test_a_recording_stops_nothing_and_reads_back_as_a_trace(
    fake: FakeEngine, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.jsonl.gz"
    assert command("--problems-file", questions, "--record", path) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["record"] == str(path)
    assert {program.dynasor["mode"] for program in fake.programs} == {"shadow"}
    assert {program.dynasor["detail"] for program in fake.programs} == {"branches"}
    assert all(program.dynasor["token_certainty"] for program in fake.programs)

    problems = read_traces(path)
    assert [(p.id, p.gold, p.model) for p in problems] == [
        ("a", "7", "tiny_reasoner"),
        ("b", "8", "tiny_reasoner"),
    ]
    samples = (TraceSample("7", 9, True), TraceSample("", 10, False), TraceSample("07", 11, True))
    assert tuple(replace(sample, certainty=None) for sample in problems[0].samples) == samples
    assert not any(sample.correct for sample in problems[1].samples)
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert [line["problem"] for line in lines] == ["3+4", "4+4"]
    assert lines[0]["certainty"] == {"k": 20, "group_tokens": 16}
    certainty = {"mean": 3.14159, "tail": 3.0, "lowest_group": 2.5}
    assert lines[0]["samples"][0] == {
        "answer": "7",
        "correct": True,
        "n_tokens": 9,
        "certainty": certainty,
    }


def test_texts_are_recorded_only_when_asked_for(
    fake: FakeEngine, questions: Path, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl.gz"
    assert command("--problems-file", questions, "--record", path, "--texts") == 0
    first = json.loads(gzip.decompress(path.read_bytes()).splitlines()[0])
    assert [sample["text"] for sample in first["samples"]] == ["t9", "t10", "t11"]


def test_the_same_samples_give_the_same_bytes(
    fake: FakeEngine, questions: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("one.jsonl.gz", "two.jsonl.gz")]
    for path in paths:
        command("--problems-file", questions, "--record", path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_recording_that_lost_a_branch_leaves_the_old_trace_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    share(FakeEngine(stop_reason="aborted"), monkeypatch)
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(b"old")
    assert command("--problems-file", questions, "--record", path) == 2
    assert "problem a: aborted" in capsys.readouterr().err
    assert path.read_bytes() == b"old"


def test_a_failing_write_leaves_no_half_a_file(tmp_path: Path) -> None:
    problems = run.load_problems(None, 1, 0)
    with pytest.raises(KeyError):
        run.write_trace(tmp_path / "t.jsonl.gz", problems, [ProgramResult("", {})], "m", {}, False)
    assert list(tmp_path.iterdir()) == []


def test_the_committed_trace_holds_300_problems_of_40_samples_with_labels_that_agree() -> None:
    assert COMMITTED.stat().st_size < 2_000_000
    problems = read_traces(COMMITTED)
    assert len(problems) == 300
    assert {len(problem.samples) for problem in problems} == {40}
    for problem in problems:
        gold = canonical_key(problem.gold)
        for sample in problem.samples:
            assert sample.correct == (canonical_key(sample.answer) == gold)


def test_a_search_is_recorded_as_a_tree(tmp_path: Path) -> None:
    branches = [
        {"branch": 0, "answer": None, "tokens": 9, "text": "", "reward": 0.8},
        {"branch": 1, "answer": "7", "tokens": 5, "text": "", "reward": 0.9, "parent": "0"},
    ]
    result = ProgramResult("", {"algorithm": "rebase", "branch_details": branches})
    problem = Problem("p", None, "3+4", "7", "2")
    path = tmp_path / "trees.jsonl.gz"
    write_trace(path, [problem], [result], "tiny", {"k": 20}, texts=False)
    (tree,) = read_trees(path)
    assert [node.parent for node in tree.nodes] == [None, "0"]
    assert [node.answer for node in tree.nodes] == [None, "7"]
    assert tree.nodes[1].correct


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_fields_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        json_object(text)
