"""The response object `sglext.dynasor`: its fields and its arithmetic."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_dynasor.certaindex import Vote
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import (
    Finished,
    Generated,
    Outcome,
    Program,
    ProgramResult,
    ProgramRun,
    ProgramSpec,
    ShadowOutcome,
    build_report,
)

# DESIGN section 10.
REPORT_FIELDS = {
    *("program_id", "algorithm", "mode", "stop_reason", "certaindex", "answer", "votes"),
    *("branches", "tokens", "rounds", "seconds", "inactive"),
}


def report_of(
    shadow: ShadowOutcome | None = None, failed: bool = False, **fields: Any
) -> dict[str, Any]:
    spec = ProgramSpec.parse(
        {"algorithm": "self_consistency", "program_id": "p", "max_branches": 6, **fields}
    )
    outcome = Outcome(
        stop_reason="certain",
        answer="7",
        node="0",
        certaindex=0.5,
        votes=(Vote("7", 2, 2.0, 0), Vote("8", 1, 1.0, 3)),
        answers={"0": "7", "2": "7", "3": "8"},
        rounds=2,
        shadow=shadow,
    )
    run = ProgramRun(
        outcome,
        finished={
            "3": Finished("3", "c", 30, "completed"),
            "0": Finished("0", "a", 10, "completed"),
            "2": Finished("2", "b", 20, "completed"),
        },
        cancelled={"1": Generated("d", 5, "cancelled")},
        failed={"4": "refused"} if failed else {},
        started=tuple("01234"),
        sequential_tokens=35,
        inactive="2 answers were compared by spelling only" if failed else "",
    )
    return build_report(spec.resolve(DynasorConfig()), run, prompt_tokens=11, seconds=1.23456789)


def test_every_field_is_there() -> None:
    assert set(report_of()) == REPORT_FIELDS


def test_tokens_add_up() -> None:
    assert report_of()["tokens"] == {
        "prompt": 11,
        "branch": 60,
        "cancelled": 5,
        "probe": 0,
        "idle": 0,
        "total": 76,
        "reward": 0,
        "sequential": 35,
    }


def test_tokens_of_branches_that_only_an_idle_machine_ran_are_listed_apart() -> None:
    spec = ProgramSpec.parse({"algorithm": "self_consistency", "draw": "offer"})
    run = ProgramRun(
        Outcome("certain", "7", "0", 1.0, (), {"0": "7"}, 1),
        finished={
            "0": Finished("0", "a", 10, "completed"),
            "2": Finished("2", "c", 12, "completed"),
        },
        cancelled={"1": Generated("b", 5, "cancelled"), "3": Generated("d", 6, "cancelled")},
        trimmed=(("3", Generated("d", 2, "cancelled")),),
        drawn=frozenset("23"),
        started=tuple("0123"),
        sequential_tokens=12,
    )
    tokens = build_report(spec.resolve(DynasorConfig()), run, 11, 1.0)["tokens"]
    assert tokens == {
        "prompt": 11,
        "branch": 22,  # the drawn branch that finished took part in the vote
        "cancelled": 5,
        "probe": 0,
        "idle": 8,
        "total": 46,
        "reward": 0,
        "sequential": 12,
    }


def test_branches_add_up() -> None:
    assert report_of()["branches"] == {
        "max": 6,
        "started": 4,
        "finished": 3,
        "cancelled": 1,
        "failed": 0,
    }


def test_failed_branches_are_counted_and_named() -> None:
    report = report_of(failed=True, detail="branches")
    assert (report["branches"]["started"], report["branches"]["failed"]) == (5, 1)
    assert report["branch_details"][-1] == {
        "branch": 4,
        "answer": None,
        "stop_reason": "failed",
        "tokens": 0,
        "text": "",
        "error": "refused",
    }


def test_answers_that_could_not_be_compared_are_said() -> None:
    assert report_of(failed=True)["inactive"] == {
        "equality": "2 answers were compared by spelling only"
    }


def test_votes_come_leader_first() -> None:
    assert report_of()["votes"] == [
        {"answer": "7", "count": 2, "weight": 2.0},
        {"answer": "8", "count": 1, "weight": 1.0},
    ]


def test_detail_answer_leaves_votes_out() -> None:
    assert set(report_of(detail="answer")) == REPORT_FIELDS - {"votes"}


def test_detail_branches_lists_every_branch_by_index() -> None:
    details = report_of(detail="branches")["branch_details"]
    assert [item["branch"] for item in details] == [0, 1, 2, 3]
    assert [item["answer"] for item in details] == ["7", None, "7", "8"]
    assert [item["stop_reason"] for item in details] == ["completed", "cancelled"] + [
        "completed"
    ] * 2
    assert sum(item["tokens"] for item in details) == 65


def test_a_shadow_outcome_is_reported_beside_the_real_one() -> None:
    report = report_of(ShadowOutcome("decided", "8", 40, 3, 1), mode="shadow")
    assert report["answer"] == "7"
    assert report["shadow"] == {
        "stop_reason": "decided",
        "answer": "8",
        "tokens": 40,
        "branches": 3,
        "rounds": 1,
    }


def test_a_result_reads_its_report() -> None:
    result = ProgramResult("text", report_of())
    assert (result.answer, result.certaindex, result.stop_reason) == ("7", 0.5, "certain")
    assert result.completion_tokens == 65


def test_a_refused_program_has_an_empty_result() -> None:
    result = ProgramResult("", {}, error="no")
    assert (result.answer, result.certaindex, result.stop_reason) == ("", 0.0, "aborted")
    assert result.completion_tokens == 0


@pytest.mark.parametrize(
    "fields", [{}, {"prompt": "a", "input_ids": [1]}, {"prompt": "a", "messages": []}]
)
def test_a_program_takes_exactly_one_kind_of_input(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exactly one of prompt, input_ids and messages"):
        Program(**fields)
