"""What the soak test counts as wrong, on answers written by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from soak import is_clean, tally
from soak_answers import (
    DEADLINE_SLACK_S,
    DIGITS,
    TENANTS,
    Call,
    Verdicts,
    is_of_other_tenant,
    status_of,
    sum_of,
)
from soak_server import growth, left_over

TEXTS = {"A": "12+34=46;\\boxed{46}", "B": "57+68=125;\\boxed{125}"}


def call_of(tenant: str = "A", **fields: Any) -> Call:
    own = {"program_id": "p", **fields}
    return Call("program", tenant, "/generate", {"dynasor": own}, program_id="p")


def answer(text: str = TEXTS["A"], **report: Any) -> dict[str, Any]:
    """What /generate answers for a program."""
    meta = {"finish_reason": {"type": "stop"}, "dynasor": {"program_id": "p", **report}}
    return {"text": text, "meta_info": meta}


def judged(call: Call, status: int = 200, payload: Any = None, seconds: float = 1.0) -> Verdicts:
    verdicts = Verdicts()
    verdicts.judge(call, status, payload if payload is not None else answer(), seconds)
    return verdicts


def found(verdicts: Verdicts) -> tuple[int, int, int]:
    return len(verdicts.unanswered), len(verdicts.wrong_tenant), len(verdicts.faults)


def test_a_right_answer_in_time_is_nothing_to_note() -> None:
    assert found(judged(call_of(deadline_ms=500))) == (0, 0, 0)


@pytest.mark.parametrize("tenant", TENANTS)
def test_a_text_tells_whose_sum_it_works_on(tenant: str) -> None:
    (other,) = set(TENANTS) - {tenant}
    assert not is_of_other_tenant(tenant, TEXTS[tenant])
    assert is_of_other_tenant(tenant, TEXTS[other])
    assert not is_of_other_tenant(tenant, "52+34=86;")  # a slip of one digit tells nothing


def test_the_sums_of_two_tenants_share_no_digit() -> None:
    rng = random.Random(0)
    sums = {tenant: set(sum_of(tenant, 40, rng)) - {"+"} for tenant in TENANTS}
    assert sums == {tenant: set(DIGITS[tenant]) for tenant in TENANTS}
    assert not sums["A"] & sums["B"]


def test_the_other_tenants_text_is_wrong_also_in_a_branch_or_in_a_chat() -> None:
    chat = {"choices": [{"message": {"content": TEXTS["B"]}, "finish_reason": "stop"}]}
    chat["sglext"] = {"dynasor": {"program_id": "p"}}  # type: ignore[assignment]
    in_a_branch = answer(branch_details=[{"text": TEXTS["B"]}])
    for payload in (answer(TEXTS["B"]), chat, in_a_branch, [answer(), answer(TEXTS["B"])]):
        assert found(judged(call_of(), payload=payload)) == (0, 1, 0)


def test_an_abort_its_tenant_did_not_ask_for_is_wrong_and_the_other_tenants_one_is_theirs() -> None:
    aborted = answer(stop_reason="aborted")
    assert found(judged(call_of(), payload=aborted)) == (0, 0, 1)
    for tenant, expected in (("A", (0, 0, 0)), ("B", (0, 1, 0))):
        call = call_of("A")
        call.note_abort(tenant, now=0.5)
        assert found(judged(call, payload=aborted)) == expected


def test_a_program_that_goes_on_long_after_its_abort_is_a_fault() -> None:
    for aborted_at, seconds, faults in ((2.0, 11.0, 0), (2.0, 13.0, 1), (0.5, 13.0, 0)):
        call = call_of()
        call.note_abort("A", now=aborted_at)
        assert found(judged(call, seconds=seconds)) == (0, 0, faults)


def test_a_deadline_that_was_not_kept_is_a_fault() -> None:
    late = judged(call_of(deadline_ms=500), seconds=DEADLINE_SLACK_S + 1)
    assert found(late) == (0, 0, 1)
    assert late.deadline_overrun_s == DEADLINE_SLACK_S + 0.5


def test_only_a_full_queue_may_refuse_and_other_errors_of_the_server_are_no_answers() -> None:
    full = judged(call_of(), 503, {"error": {"message": "The request queue is full."}})
    assert found(full) == (0, 0, 0) and full.refused == 1
    assert found(judged(call_of(), 503, {"error": {"message": "overloaded"}})) == (1, 0, 0)
    assert found(judged(call_of(), 500, {})) == (1, 0, 0)
    assert found(judged(call_of(), 400, {})) == (0, 0, 1)


def test_branches_and_tokens_that_do_not_add_up_and_a_report_of_another_program_are_faults() -> (
    None
):
    three = {"started": 5, "finished": 2, "cancelled": 1}
    five = {**three, "failed": 2}
    tokens = {"prompt": 5, "branch": 20, "cancelled": 2, "probe": 0, "idle": 3, "total": 30}
    for branches, total, faults in ((five, 30, 0), (three, 30, 1), (five, 31, 1)):
        report = answer(branches=branches, tokens={**tokens, "total": total})
        assert found(judged(call_of(), payload=report)) == (0, 0, faults)
    assert found(judged(call_of(), payload=answer(program_id="q"))) == (0, 0, 1)


def test_a_stream_has_the_status_of_its_last_event() -> None:
    assert status_of(200, answer()) == 200
    assert status_of(200, {"error": {"code": 409}}) == 409
    refused = {"meta_info": {"finish_reason": {"type": "abort", "status_code": 503}}}
    assert status_of(200, refused) == 503


def test_what_is_left_are_tokens_of_the_pool_and_entries_of_the_table() -> None:
    before = {"available_tokens": 90, "evictable_tokens": 10, "protected_tokens": 0, "programs": 0}
    assert left_over(before, before) == (0, 0)
    after = {**before, "available_tokens": 80, "evictable_tokens": 15, "programs": 2}
    assert left_over(after, before) == (5, 2)
    assert left_over({**before, "protected_tokens": 3}, before) == (3, 0)


def test_memory_grows_by_the_median_of_the_second_half() -> None:
    assert growth([1.0, 2.0, 90.0, 5.0, 6.0, 7.0]) == 4.0
    assert growth([1.0]) == 0.0


def test_every_bar_has_to_be_met() -> None:
    zeros = ("unanswered", "wrong_tenant", "kv_tokens_leaked", "table_entries", "faults")
    clean = {**dict.fromkeys(zeros, 0), "alive": True, "rss_growth_mb": 8.0}
    assert is_clean(clean)
    broken = [{name: -1} for name in zeros] + [{"alive": False}, {"rss_growth_mb": 8.1}]
    assert not any(is_clean({**clean, **change}) for change in broken)


def test_faults_are_counted_by_their_kind() -> None:
    assert tally(["p-1: 400", "p-22: 409", "other"]) == {"p-#: #": 2, "other": 1}
