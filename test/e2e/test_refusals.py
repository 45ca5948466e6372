"""What a server refuses: HTTP 400 naming the field, on every route."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from support.openai_calls import RUN, post
from support.servers import server_state

ROUTES = ["/v1/chat/completions", "/v1/completions", "/generate"]
BAD_FIELDS: list[tuple[str, Any]] = [
    ("dynasor", "self_consistency"),
    ("dynasor", [RUN]),
    ("dynasor", 1),
    ("algorithm", {"algorithm": "tot"}),
    ("unheard_of", {**RUN, "unheard_of": 1}),
    ("max_branches", {**RUN, "max_branches": 0}),
    ("max_branches", {**RUN, "max_branches": "8"}),
    ("min_branches", {**RUN, "min_branches": 9, "max_branches": 8}),
    ("threshold", {**RUN, "threshold": 1.5}),
    ("rule", {**RUN, "rule": "magic"}),
    ("rule", {"rule": "beta"}),
    ("mode", {"mode": "shadow"}),
    ("program_id", {**RUN, "program_id": "a b"}),
    ("answer_pattern", {**RUN, "answer_format": "regex", "answer_pattern": "("}),
    ("deadline_ms", {**RUN, "deadline_ms": 0}),
    ("max_total_tokens", {**RUN, "max_total_tokens": -1}),
    ("grants", {**RUN, "grants": "4,0"}),
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("named", "fields"), BAD_FIELDS)
def test_a_bad_field_is_a_bad_request_naming_it(
    server_url: str, route: str, named: str, fields: Any
) -> None:
    reply = post(server_url, route, dynasor=fields)
    assert reply.status_code == 400
    assert named in reply.text


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("value", [7, "a b", "", ["p"], {"a": 1}, "x" * 65])
def test_a_bad_program_id_is_a_bad_request_naming_it(
    server_url: str, route: str, value: Any
) -> None:
    reply = post(server_url, route, program_id=value)
    assert reply.status_code == 400
    assert "program_id" in reply.text


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_several_choices_are_refused_together_with_an_algorithm(
    server_url: str, route: str
) -> None:
    reply = post(server_url, route, n=2, dynasor=RUN)
    assert reply.status_code == 400
    assert "n: must be 1" in reply.text


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_a_malformed_program_is_refused_before_its_stream_begins(
    server_url: str, route: str
) -> None:
    reply = post(server_url, route, stream=True, dynasor={**RUN, "max_branches": 0})
    assert reply.status_code == 400
    assert "max_branches" in reply.text


def test_streaming_generate_reports_the_refusal_in_the_stream_and_keeps_the_connection(
    server_url: str,
) -> None:
    # Upstream has sent status 200 before anything is validated here.
    body = {"text": "12+34", "stream": True, "dynasor": {**RUN, "max_branches": 0}}
    with httpx.Client(base_url=server_url, timeout=60) as client:
        for _ in range(2):
            reply = client.post("/generate", json=body)
            assert '"code":400' in reply.text.replace(" ", "")
            assert "max_branches" in reply.text
            assert reply.text.rstrip().endswith("data: [DONE]")


def test_several_prompts_are_refused_together_with_an_algorithm(server_url: str) -> None:
    for reply in (
        post(server_url, "/v1/completions", prompt=["1+1", "2+2"], dynasor=RUN),
        post(server_url, "/generate", text=["1+1", "2+2"], dynasor=RUN),
    ):
        assert reply.status_code == 400
        assert "prompt" in reply.text


def test_fields_in_two_places_are_refused(server_url: str) -> None:
    reply = post(server_url, "/v1/chat/completions", dynasor=RUN, custom_params={"dynasor": RUN})
    assert reply.status_code == 400
    assert "custom_params" in reply.text


def test_two_different_program_ids_are_refused(server_url: str) -> None:
    reply = post(
        server_url, "/v1/chat/completions", program_id="a", dynasor={**RUN, "program_id": "b"}
    )
    assert reply.status_code == 400
    assert "program_id" in reply.text


def test_custom_params_that_would_kill_the_scheduler_are_refused(server_url: str) -> None:
    reply = post(server_url, "/v1/chat/completions", custom_params={"own": {"a": {"b": [1]}}})
    assert reply.status_code == 400
    assert "custom_params" in reply.text


def test_a_prompt_that_is_too_long_is_upstreams_bad_request(server_url: str) -> None:
    reply = post(server_url, "/v1/completions", prompt="1" * 600, dynasor=RUN)
    assert reply.status_code == 400
    assert "600" in reply.text


def test_nothing_that_was_refused_reached_the_scheduler(server_url: str) -> None:
    state = server_state(server_url)
    assert (state["programs"], state["requests"], state["protected_tokens"]) == (0, 0, 0)
