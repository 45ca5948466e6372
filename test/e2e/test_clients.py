"""What clients of other APIs get, and loops that read every chunk as OpenAI's documents say."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from support.openai_calls import RUN, ask, client_of, post, report_of

OLLAMA = {"options": {"num_predict": 8}}  # by default more than the model's context
PROBLEM = {"messages": [{"role": "user", "content": "12+34"}]}


def send(url: str, route: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}{route}", json=body, timeout=120)


def message(url: str, **body: Any) -> httpx.Response:
    return send(url, "/v1/messages", **{"model": "default", "max_tokens": 80, **PROBLEM, **body})


def test_anthropics_message_carries_the_report(server_url: str) -> None:
    reply = message(server_url, dynasor=RUN)
    assert reply.status_code == 200
    body = reply.json()
    report = body["sglext"]["dynasor"]
    assert (body["type"], body["role"]) == ("message", "assistant")
    assert report["answer"] in body["content"][0]["text"]
    assert body["stop_reason"] in ("end_turn", "max_tokens")
    assert body["usage"]["output_tokens"] == report["tokens"]["total"] - report["tokens"]["prompt"]


def test_anthropics_message_without_a_program_is_upstreams(server_url: str) -> None:
    assert "sglext" not in message(server_url).json()


def test_anthropics_stream_carries_the_report_with_its_last_counts(server_url: str) -> None:
    fields = {"program_id": "claude", "token_certainty": True}
    reply = message(server_url, stream=True, dynasor=fields)
    events = [json.loads(x[6:]) for x in reply.text.splitlines() if x.startswith("data: ")]
    (delta,) = (event for event in events if event["type"] == "message_delta")
    report = delta["sglext"]["dynasor"]
    assert report["program_id"] == "claude"
    assert report["certainty"]["tokens"] == delta["usage"]["output_tokens"]
    assert events[-1]["type"] == "message_stop"


def test_anthropics_refusal_names_the_field(server_url: str) -> None:
    reply = message(server_url, dynasor={**RUN, "max_branches": 0})
    assert (reply.status_code, reply.json()["type"]) == (400, "error")
    assert "dynasor.max_branches" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/responses", {"input": "12+34", "max_output_tokens": 8}),
        ("/api/chat", {**PROBLEM, **OLLAMA}),
        ("/api/chat", {**PROBLEM, **OLLAMA, "stream": False}),
        ("/api/generate", {"prompt": "12+34", **OLLAMA, "stream": False}),
    ],
)
def test_routes_that_would_lose_the_report_refuse_and_serve_the_rest(
    server_url: str, route: str, body: dict[str, Any]
) -> None:
    (served,) = httpx.get(f"{server_url}/v1/models").json()["data"]  # these routes look at it
    body = {"model": served["id"], **body}
    refused = send(server_url, route, **body, dynasor=RUN)
    assert refused.status_code == 400
    assert "dynasor: " in refused.text
    assert send(server_url, route, **body, program_id="p").status_code == 200
    assert send(server_url, route, **body).status_code == 200


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("usage", [False, True])
def test_every_chunk_has_a_choice_but_the_one_with_the_usage_that_was_asked_for(
    server_url: str, kind: str, usage: bool
) -> None:
    client = client_of(server_url)
    options: dict[str, Any] = {"stream": True, "max_tokens": 12, "model": "default"}
    options["extra_body"] = {"program_id": "s-2"}
    if usage:
        options["stream_options"] = {"include_usage": True}
    if kind == "chat":
        chunks = list(client.chat.completions.create(**PROBLEM, **options))
    else:
        chunks = list(client.completions.create(prompt="12+34", **options))
    if usage:
        *chunks, last = chunks
        assert (last.choices, last.usage.completion_tokens) == ([], 12)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]  # as most clients read them
    assert reasons[-1] == "length"
    assert report_of(chunks[-1])["program_id"] == "s-2"
    assert not any("sglext" in (chunk.model_extra or {}) for chunk in chunks[:-1])


def test_a_stream_of_a_program_ends_once(server_url: str) -> None:
    reply = post(server_url, "/v1/chat/completions", stream=True, program_id="s-3", n=2)
    events = [line for line in reply.text.splitlines() if line]
    assert events.count("data: [DONE]") == 1 and events[-1] == "data: [DONE]"


def test_a_program_without_an_answer_ends_by_a_reason_that_openai_knows(server_url: str) -> None:
    fields = {**RUN, "grants": "2", "deadline_ms": 1}
    response = ask(server_url, max_tokens=400, extra_body={"ignore_eos": True, "dynasor": fields})
    assert report_of(response)["stop_reason"] == "deadline"
    assert response.choices[0].finish_reason == "length"


def test_an_error_names_the_field_as_openais_do(server_url: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server_url, extra_body={"dynasor": {**RUN, "max_branches": 0}})
    assert caught.value.param == "dynasor.max_branches"


HOSTILE: list[tuple[str, str, dict[str, Any]]] = [
    ("prompt", "/v1/completions", {"prompt": [24, 999_999]}),
    ("prompt", "/v1/completions", {"prompt": [[24], [25, -1]]}),
    ("logprobs", "/v1/completions", {"logprobs": 200}),
    ("logprobs", "/v1/chat/completions", {"logprobs": True, "top_logprobs": 200}),
    ("logprobs", "/v1/chat/completions", {"logprobs": True, "top_logprobs": 200, "stream": True}),
    ("stop_token_ids", "/v1/completions", {"stop_token_ids": [999_999], "min_tokens": 4}),
    ("top_k", "/v1/chat/completions", {"top_k": 2**31}),
    ("n", "/v1/chat/completions", {"n": 2**40}),
]


@pytest.mark.parametrize("fields", [{}, {"dynasor": RUN}, {"program_id": "client"}])
@pytest.mark.parametrize(("param", "route", "body"), HOSTILE)
def test_no_openai_request_ends_the_server(
    server_url: str, param: str, route: str, body: dict[str, Any], fields: dict[str, Any]
) -> None:
    reply = post(server_url, route, **body, **fields)
    assert reply.status_code == 400
    if not fields:
        assert reply.json()["param"] == param
    assert post(server_url, route).status_code == 200


NATIVE: list[dict[str, Any]] = [
    {"text": None, "input_ids": [24, 999_999]},
    {"text": None, "input_ids": [[24], [25, -1]]},
    {"text": None, "input_ids": [[24], []]},
    {"return_logprob": True, "top_logprobs_num": 200},
    {"return_logprob": True, "logprob_start_len": -5},
    {"sampling_params": {"top_k": 2**40}},
    {"sampling_params": {"n": 2**40}},
    {"sampling_params": {"stop_token_ids": [-1], "min_new_tokens": 2}},
    {"sampling_params": {"max_new_tokens": 70, "stop_regex": "(.+)+\u0001"}},
    {"positional_embed_overrides": {"embeds": [], "positions": [1]}},
    {"session_params": {"id": 5}},
    {
        "sampling_params": {"max_new_tokens": 0},
        "return_logprob": True,
        "token_ids_logprob": [1],
        "token_indices_to_pool": [999],
    },
]


@pytest.mark.parametrize("body", NATIVE)
def test_no_native_request_ends_the_server(server_url: str, body: dict[str, Any]) -> None:
    assert post(server_url, "/generate", **body).status_code == 400
    assert post(server_url, "/generate").status_code == 200
