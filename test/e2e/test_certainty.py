"""Token certainty over HTTP: chat and text completions, native route, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from support.openai_calls import RUN, ask, client_of, post, report_of

MEASURED = {"dynasor": {"token_certainty": True}}
ROUTES = ("/v1/chat/completions", "/v1/completions", "/generate")


def streamed(url: str, route: str, **body: Any) -> list[dict[str, Any]]:
    """The JSON of every event of a stream, and proof that it ended well."""
    minimal: dict[str, Any] = {"model": "default", "max_tokens": 20, "temperature": 0, "seed": 5}
    if route == "/generate":
        minimal = {"text": "12+34", "sampling_params": {"max_new_tokens": 20, "temperature": 0}}
    elif route == "/v1/completions":
        minimal["prompt"] = "12+34"
    else:
        minimal["messages"] = [{"role": "user", "content": "12+34"}]
    reply = httpx.post(f"{url}{route}", json={**minimal, "stream": True, **body}, timeout=120)
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def assert_complete(report: dict[str, Any], tokens: int) -> None:
    assert report["certainty"]["tokens"] == tokens
    assert {len(values) for values in report["token_certainty"].values()} == {tokens}
    assert min(report["token_certainty"]["confidence"]) > 0


@pytest.mark.parametrize("route", ROUTES)
def test_a_plain_request_is_told_the_certainty_of_every_token(server_url: str, route: str) -> None:
    answer = post(server_url, route, **MEASURED).json()
    if route == "/generate":
        meta = answer["meta_info"]
        assert_complete(meta["dynasor"], meta["completion_tokens"])
    else:
        assert_complete(answer["sglext"]["dynasor"], answer["usage"]["completion_tokens"])


def test_each_of_several_choices_has_its_own(server_url: str) -> None:
    answer = ask(server_url, n=3, seed=None, extra_body=MEASURED)
    report = report_of(answer)
    assert "token_certainty" not in report
    assert [choice["index"] for choice in report["choices"]] == [0, 1, 2]
    for choice in report["choices"]:
        assert_complete(choice, choice["certainty"]["tokens"])
    tokens = sum(choice["certainty"]["tokens"] for choice in report["choices"])
    assert tokens == answer.usage.completion_tokens


@pytest.mark.parametrize("route", ROUTES[:2])
def test_an_openai_stream_ends_with_the_certainty_of_all_its_tokens(
    server_url: str, route: str
) -> None:
    options = {"stream_options": {"include_usage": True}}
    *before, last, usage = streamed(server_url, route, **options, **MEASURED)
    assert (usage["choices"], "sglext" in usage) == ([], False)
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert_complete(last["sglext"]["dynasor"], usage["usage"]["completion_tokens"])
    assert not any("sglext" in event for event in before)


def test_the_openai_client_reads_such_a_stream(server_url: str) -> None:
    chunks = list(
        client_of(server_url).completions.create(
            model="default", prompt="12+34", max_tokens=9, stream=True, extra_body=MEASURED
        )
    )
    assert_complete(report_of(chunks[-1]), 9)


def test_a_native_stream_brings_each_tokens_values_with_it(server_url: str) -> None:
    for event in streamed(server_url, "/generate", **MEASURED):
        meta = event["meta_info"]
        values = meta["dynasor"]["token_certainty"]["entropy"]
        assert len(values) == meta["completion_tokens"]
    assert_complete(meta["dynasor"], meta["completion_tokens"])


def test_a_program_reports_the_branch_that_answers(server_url: str) -> None:
    fields = {**RUN, "max_branches": 4, "token_certainty": True}
    report = report_of(ask(server_url, extra_body={"dynasor": fields}))
    for branch in report["branch_details"]:
        if branch["stop_reason"] != "cancelled":
            assert_complete(branch, branch["tokens"])
    assert_complete(report, report["certainty"]["tokens"])


@pytest.mark.parametrize("route", ROUTES[:2])
def test_a_stream_without_a_program_is_upstreams(server_url: str, route: str) -> None:
    assert not any("sglext" in event for event in streamed(server_url, route))


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_wish_that_is_not_a_boolean_is_refused_by_name(server_url: str, value: object) -> None:
    reply = post(server_url, "/v1/completions", dynasor={"token_certainty": value})
    assert reply.status_code == 400
    assert "token_certainty" in reply.text
