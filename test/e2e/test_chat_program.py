"""A whole self-consistency program in one OpenAI request."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from support.openai_calls import RUN, WANDERING_TEMPERATURE, ask, client_of, post, report_of

REPORT_FIELDS = {
    *("program_id", "algorithm", "mode", "stop_reason", "certaindex", "answer", "votes"),
    *("branches", "tokens", "rounds", "seconds", "inactive"),
}


def assert_usage_agrees(usage: Any, report: dict[str, Any]) -> None:
    tokens = report["tokens"]
    spent = tokens["branch"] + tokens["cancelled"] + tokens["probe"] + tokens["idle"]
    assert usage.prompt_tokens == tokens["prompt"]
    assert usage.completion_tokens == spent
    assert usage.total_tokens == tokens["total"] == tokens["prompt"] + spent


def test_one_chat_request_returns_the_majority_answer_as_a_normal_completion(
    server_url: str,
) -> None:
    response = ask(server_url, extra_body={"dynasor": {"algorithm": "self_consistency"}})
    report = report_of(response)
    assert set(report) == REPORT_FIELDS
    assert response.object == "chat.completion"
    (choice,) = response.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert report["answer"] == report["votes"][0]["answer"] != ""
    assert f"\\boxed{{{report['answer']}}}" in choice.message.content
    assert response.id == report["program_id"]
    assert report["stop_reason"] in ("certain", "decided", "completed")
    assert report["branches"]["started"] >= 3
    assert_usage_agrees(response.usage, report)


def test_the_prompt_is_counted_once_however_many_branches_ran(server_url: str) -> None:
    one = ask(server_url, extra_body={"dynasor": {**RUN, "max_branches": 1}})
    eight = ask(server_url, extra_body={"dynasor": {**RUN, "max_branches": 8, "min_branches": 8}})
    plain = ask(server_url)
    assert report_of(eight)["branches"]["started"] == 8
    assert one.usage.prompt_tokens == eight.usage.prompt_tokens == plain.usage.prompt_tokens


def test_cancelled_branches_are_counted(server_url: str) -> None:
    fields = {**RUN, "answer_format": "text", "grants": "12", "max_branches": 12}
    response = ask(
        server_url,
        temperature=WANDERING_TEMPERATURE,
        extra_body={"dynasor": {**fields, "threshold": 0.0, "min_branches": 1}},
    )
    report = report_of(response)
    assert report["stop_reason"] == "certain"
    assert report["branches"]["cancelled"] > 0
    assert report["tokens"]["cancelled"] > 0
    details = report["branch_details"]
    assert sum(item["tokens"] for item in details) == response.usage.completion_tokens
    assert_usage_agrees(response.usage, report)


def test_the_shown_text_is_that_of_the_branch_that_won(server_url: str) -> None:
    response = ask(server_url, "57+68+79+12", extra_body={"dynasor": RUN})
    report = report_of(response)
    texts = [b["text"] for b in report["branch_details"] if b["answer"] == report["answer"]]
    assert response.choices[0].message.content == texts[0]


def test_text_completions_run_programs_too(server_url: str) -> None:
    response = client_of(server_url).completions.create(
        model="default",
        prompt="12+34",
        max_tokens=60,
        temperature=1.0,
        extra_body={"dynasor": {"algorithm": "self_consistency", "answer_format": "number"}},
    )
    report = report_of(response)
    assert set(report) == REPORT_FIELDS
    assert report["answer"] in response.choices[0].text
    assert_usage_agrees(response.usage, report)


def test_generate_runs_programs_too(server_url: str) -> None:
    reply = post(server_url, "/generate", dynasor={**RUN, "answer_format": "number"})
    assert reply.status_code == 200
    meta = reply.json()["meta_info"]
    report = meta["dynasor"]
    assert set(report) == REPORT_FIELDS | {"branch_details"}
    assert meta["prompt_tokens"] == report["tokens"]["prompt"]
    assert meta["completion_tokens"] == report["tokens"]["branch"] + report["tokens"]["cancelled"]


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_the_fields_may_travel_in_custom_params(server_url: str, route: str) -> None:
    reply = post(server_url, route, custom_params={"dynasor": {**RUN, "program_id": "carried"}})
    assert reply.status_code == 200
    report = reply.json()["sglext"]["dynasor"]
    assert report["program_id"] == "carried"
    assert report["branches"]["started"] >= 1


def test_the_fields_may_travel_in_sampling_params_of_generate(server_url: str) -> None:
    params = {"max_new_tokens": 20, "custom_params": {"dynasor": RUN}}
    reply = post(server_url, "/generate", sampling_params=params)
    assert reply.json()["meta_info"]["dynasor"]["branches"]["started"] >= 1


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions", "/generate"])
def test_a_program_id_alone_marks_a_request_of_a_client_driven_program(
    server_url: str, route: str
) -> None:
    reply = post(server_url, route, program_id="client-1")
    assert reply.status_code == 200
    body = reply.json()
    report = body["meta_info"]["dynasor"] if route == "/generate" else body["sglext"]["dynasor"]
    assert report == {"program_id": "client-1", "algorithm": "none", "mode": "on"}


def test_shadow_mode_runs_everything_and_changes_nothing(server_url: str) -> None:
    fields = {**RUN, "max_branches": 8}
    shadow = ask(server_url, "57+68+79", extra_body={"dynasor": {**fields, "mode": "shadow"}})
    # Without a chance to stop, and all branches granted at once: the plain majority vote.
    full = ask(
        server_url, "57+68+79", extra_body={"dynasor": {**fields, "min_branches": 8, "grants": "8"}}
    )
    shadow_report, full_report = report_of(shadow), report_of(full)
    assert shadow.choices[0].message.content == full.choices[0].message.content
    for name in ("answer", "votes", "certaindex", "branches", "branch_details", "stop_reason"):
        assert shadow_report[name] == full_report[name]
    assert shadow_report["branches"]["finished"] == 8
    noted = shadow_report["shadow"]
    assert noted["branches"] <= 8
    assert noted["tokens"] <= shadow_report["tokens"]["branch"]
    assert noted["stop_reason"] in ("certain", "decided", "completed")


def test_what_shadow_notes_is_what_acting_in_rounds_does(server_url: str) -> None:
    fields = {**RUN, "max_branches": 8, "draw": "rounds"}
    shadow = ask(server_url, "57+68", extra_body={"dynasor": {**fields, "mode": "shadow"}})
    acting = ask(server_url, "57+68", extra_body={"dynasor": fields})
    noted, report = report_of(shadow)["shadow"], report_of(acting)
    assert noted["answer"] == report["answer"]
    assert noted["stop_reason"] == report["stop_reason"]
    assert noted["rounds"] == report["rounds"]
    assert noted["branches"] == report["branches"]["started"]


def test_a_deadline_ends_the_program_in_time(server_url: str) -> None:
    response = ask(
        server_url,
        max_tokens=400,
        extra_body={"ignore_eos": True, "dynasor": {**RUN, "grants": "16", "deadline_ms": 300}},
    )
    report = report_of(response)
    assert report["stop_reason"] == "deadline"
    assert 0.3 <= report["seconds"] < 3.0
    assert report["branches"]["cancelled"] == 16
    assert_usage_agrees(response.usage, report)


def test_a_deadline_is_answered_even_with_log_probabilities_asked_for(server_url: str) -> None:
    response = ask(
        server_url,
        max_tokens=400,
        logprobs=True,
        extra_body={"ignore_eos": True, "dynasor": {**RUN, "grants": "2", "deadline_ms": 1}},
    )
    assert report_of(response)["stop_reason"] == "deadline"


@pytest.mark.parametrize("cap", [1, 60, 150])
def test_the_token_cap_is_kept(server_url: str, cap: int) -> None:
    response = ask(
        server_url,
        extra_body={
            "ignore_eos": True,
            "dynasor": {**RUN, "max_branches": 8, "grants": "4", "max_total_tokens": cap},
        },
    )
    report = report_of(response)
    assert response.usage.completion_tokens <= cap + 2 * report["branches"]["cancelled"]
    assert report["stop_reason"] == "budget"


def test_an_answer_that_was_never_given_is_empty_and_a_text_is_still_shown(
    server_url: str,
) -> None:
    response = ask(server_url, max_tokens=3, extra_body={"dynasor": {**RUN, "max_branches": 4}})
    report = report_of(response)
    assert (report["answer"], report["votes"]) == ("", [])
    assert response.choices[0].finish_reason == "length"
    assert response.choices[0].message.content == report["branch_details"][0]["text"]


def test_a_hostile_answer_pattern_costs_milliseconds_and_gives_no_answer(server_url: str) -> None:
    # Nested quantifiers over everything, and an end that never comes.
    fields = {**RUN, "answer_format": "regex", "answer_pattern": r"(?:(?:.|[^\x00])+)+\x00"}
    response = ask(server_url, extra_body={"dynasor": {**fields, "max_branches": 6}})
    report = report_of(response)
    assert report["answer"] == ""
    assert report["branches"]["finished"] == 6
    assert report["seconds"] < 10


def test_an_answer_pattern_picks_the_answer(server_url: str) -> None:
    fields = {**RUN, "answer_format": "regex", "answer_pattern": r"^(\d)"}
    report = report_of(ask(server_url, extra_body={"dynasor": fields}))
    assert report["answer"] == "1"


def test_a_plain_request_has_no_program_in_its_response(server_url: str) -> None:
    response = ask(server_url)
    assert "dynasor" not in ((response.model_extra or {}).get("sglext") or {})
    assert response.usage.completion_tokens <= 80


def test_a_plain_streaming_request_streams(server_url: str) -> None:
    whole = ask(server_url).choices[0].message.content
    chunks = list(ask(server_url, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len(chunks) > 2
    assert "".join(pieces) == whole


def test_the_openai_client_sees_a_bad_field_as_a_bad_request(server_url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="max_branches"):
        ask(server_url, extra_body={"dynasor": {**RUN, "max_branches": 0}})
