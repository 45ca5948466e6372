"""What clients get back: every choice its own program, and only finish reasons OpenAI has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.managers.program_output import add_member_report, program_output
from sglang_dynasor.programs.program_run import ProgramRun
from sglang_dynasor.programs.protocol import Outcome
from sglang_dynasor.programs.spec import ProgramSpec, ResolvedProgram

REPORT = {"program_id": "p", "tokens": {"prompt": 5, "total": 12}, "seconds": 0.5}


def member(program_id: str) -> ResolvedProgram:
    return ProgramSpec.parse({"program_id": program_id}).resolve(DynasorConfig())


def outcome(node: str | None, stop_reason: Any = "completed") -> ProgramRun:
    return ProgramRun(Outcome(stop_reason, "", node, 0.0, (), {}, 1), {})


def output_of(run: ProgramRun, finish_reason: dict[str, Any] | None = None) -> dict[str, Any]:
    output = {"text": "so", "meta_info": {"finish_reason": finish_reason}}
    paths = SimpleNamespace(closed=lambda node, closing: {"0": output}[node])
    nodes = SimpleNamespace(paths=paths)
    return program_output(nodes, run, REPORT, "r", "v")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("programs", "samples", "expected"),
    [
        ("ab", 2, "aabb"),
        ("abc", 1, "abc"),
        ("a", 3, "aaa"),
        ("a", 1, "a"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_every_choice_is_told_its_own_program(
    programs: str, samples: int, expected: str, streamed: bool
) -> None:
    members = [member(name) for name in programs]
    outputs: list[dict[str, Any]] = [{"meta_info": {}} for _ in expected]
    if streamed:
        for index, output in reversed(list(enumerate(outputs))):
            output["index"] = index
            add_member_report(output, members, samples, None)
    else:
        add_member_report(outputs, members, samples, None)
    told = [output["meta_info"]["dynasor"]["program_id"] for output in outputs]
    assert told == list(expected)


def test_prompts_without_a_program_are_told_nothing() -> None:
    outputs: list[dict[str, Any]] = [{"meta_info": {}}, {"meta_info": {}}]
    add_member_report(outputs, [None, member("a")], 1, None)
    assert [sorted(output["meta_info"]) for output in outputs] == [[], ["dynasor"]]


@pytest.mark.parametrize(
    ("finish_reason", "expected"),
    [
        ({"type": "stop", "matched": 7}, {"type": "stop", "matched": 7}),
        ({"type": "length", "length": 9}, {"type": "length", "length": 9}),
        ({"type": "abort", "message": "branch certain"}, {"type": "stop", "matched": None}),
    ],
)
def test_the_branch_that_answers_ended_by_itself_whatever_stopped_it(
    finish_reason: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert output_of(outcome("0"), finish_reason)["meta_info"]["finish_reason"] == expected


@pytest.mark.parametrize(
    ("stop_reason", "expected"),
    [("deadline", "length"), ("budget", "length"), ("aborted", "abort")],
)
def test_a_program_without_a_finished_branch_was_cut_off(stop_reason: str, expected: str) -> None:
    output = output_of(outcome(None, stop_reason))
    assert (output["text"], output["output_ids"]) == ("", [])
    assert output["meta_info"]["finish_reason"]["type"] == expected
    # Upstream reads both where log probabilities were asked for.
    assert output["meta_info"]["input_token_logprobs"] == []
    assert output["meta_info"]["output_token_logprobs"] == []


def test_a_result_has_its_clients_id_and_the_programs_counts() -> None:
    meta = output_of(outcome("0"), {"type": "stop"})["meta_info"]
    assert meta["id"] == "r"
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (5, 7)
    assert (meta["e2e_latency"], meta["dynasor"]) == (0.5, REPORT)
