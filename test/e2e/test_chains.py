"""Chains of thought over HTTP: released dialects as they are, streams, exits that answer."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest

from support.openai_calls import client_of, post

CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "12+34"}]}
COT = {"algorithm": "cot", "probe_interval": 8, "window": 3}
THINKING = {"chat_template_kwargs": {"enable_thinking": True}}
PROMPTING = {
    "mode": "prompting",
    "probe_text": "So the answer is \\boxed{",
    "certainty_window": 2,
    "token_interval": 32,
}


def events(url: str, route: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream that ends well, with one [DONE]."""
    given = {"model": "default", "stream": True, **body}
    reply = httpx.post(f"{url}{route}", json=given, timeout=120)
    assert reply.status_code == 200 and "text/event-stream" in reply.headers["content-type"]
    lines = [line for line in reply.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]" and lines.count("data: [DONE]") == 1
    found = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert not any("error" in event for event in found)
    return found


def text_of(chunks: list[dict[str, Any]]) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(
        choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        for choice in choices
    )


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        (CHAT, {**QUESTION, "dynasor": {"saving_effort": "mid"}}),
        ("/v1/completions", {"prompt": "12+34", "dynasor": {"saving_effort": "crazy"}}),
        (CHAT, {**QUESTION, "dynasor": {"probe_interval": 32, "certainty_window": 2}}),
        (
            "/v1/completions",
            {"prompt": "12+34", "adaptive_compute": {**PROMPTING, "probe_text_end": "}"}},
        ),
        (CHAT, {**QUESTION, "adaptive_compute": PROMPTING}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_requests_of_released_clients_are_served_as_they_are(
    server_url: str, route: str, fields: dict[str, Any], stream: bool
) -> None:
    if not stream:
        answer = post(server_url, route, max_tokens=200, **fields).json()
        assert answer["sglext"]["dynasor"]["algorithm"] == "cot"
        return
    chunks = events(server_url, route, max_tokens=200, **fields)
    assert text_of(chunks)
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert [reason for reason in reasons if reason] in (["stop"], ["length"])
    assert chunks[-1]["sglext"]["dynasor"]["algorithm"] == "cot"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"adaptive_compute": {**PROMPTING, "mode": "logprob"}}, "adaptive_compute.mode"),
        ({"adaptive_compute": 7}, "adaptive_compute"),
        ({"adaptive_compute": PROMPTING, "dynasor": COT}, "adaptive_compute"),
        ({"dynasor": {"saving_effort": "medium"}}, "dynasor.saving_effort"),
    ],
)
def test_malformed_dialects_are_refused_by_name(
    server_url: str, fields: dict[str, Any], named: str
) -> None:
    reply = post(server_url, CHAT, **QUESTION, **fields)
    assert (reply.status_code, reply.json()["param"]) == (400, named)


@pytest.mark.parametrize("on_exit", ["answer", "insert"])
def test_a_chain_streams_as_it_goes_and_ends_with_its_answer(server_url: str, on_exit: str) -> None:
    body = {**QUESTION, **THINKING, "max_tokens": 300, "temperature": 0.6, "seed": 3}
    chunks = events(server_url, CHAT, **body, dynasor={**COT, "on_exit": on_exit})
    text = text_of(chunks)
    assert len(chunks) > 5
    assert "\\boxed{46}" in text.partition("</think>")[2]
    report = chunks[-1]["sglext"]["dynasor"]
    assert (report["stop_reason"], report["answer"]) == ("certain", "46")


def test_the_openai_client_reads_such_a_stream_with_its_usage(server_url: str) -> None:
    stream = client_of(server_url).chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "12+34"}],
        max_tokens=300,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={**THINKING, "dynasor": COT},
    )
    *chunks, last = list(stream)
    assert isinstance(last, openai.types.chat.ChatCompletionChunk)
    report = next(c.sglext["dynasor"] for c in chunks if getattr(c, "sglext", None))
    tokens = report["tokens"]
    assert last.usage is not None
    assert last.usage.completion_tokens == tokens["total"] - tokens["prompt"]


def test_a_voting_program_streams_its_leader_once_it_is_decided(server_url: str) -> None:
    fields = {"algorithm": "self_consistency", "max_branches": 8}
    body = {**QUESTION, "max_tokens": 128, "temperature": 1.0}
    chunks = events(server_url, CHAT, **body, dynasor=fields)
    report = chunks[-1]["sglext"]["dynasor"]
    assert f"\\boxed{{{report['answer']}}}" in text_of(chunks)


def test_comments_tell_of_probes_and_finished_branches_on_the_way(server_url: str) -> None:
    body = {**QUESTION, **THINKING, "model": "default", "stream": True, "max_tokens": 300}
    reply = httpx.post(f"{server_url}{CHAT}", json={**body, "dynasor": COT}, timeout=120)
    lines = [line for line in reply.text.split("\n\n") if line.startswith(": dynasor ")]
    told = [json.loads(line.removeprefix(": dynasor ")) for line in lines]
    assert [item["probe"]["at"] for item in told if "probe" in item]
    assert any(item.get("stop_reason") for item in told)


def test_a_native_stream_holds_all_so_far_and_ends_with_the_report(server_url: str) -> None:
    params = {"max_new_tokens": 200, "temperature": 0.6}
    outputs = events(server_url, "/generate", text="12+34", sampling_params=params, dynasor=COT)
    texts = [output["text"] for output in outputs]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert outputs[-1]["meta_info"]["dynasor"]["algorithm"] == "cot"
    assert not any(output["meta_info"]["finish_reason"] for output in outputs[:-1])


def test_a_grammar_is_left_alone_and_the_report_says_so(server_url: str) -> None:
    reply = post(server_url, CHAT, **QUESTION, regex="[0-9]{2}", max_tokens=8, dynasor=COT)
    assert "grammar" in reply.json()["sglext"]["dynasor"]["inactive"]["probes"]


def test_a_client_that_vanishes_takes_its_chain_with_it(server_url: str) -> None:
    body = {**QUESTION, "model": "default", "stream": True, "max_tokens": 400}
    body |= {"ignore_eos": True, "dynasor": {**COT, "window": 1000, "program_id": "vanishing"}}
    with httpx.stream("POST", f"{server_url}{CHAT}", json=body, timeout=60) as reply:
        next(reply.iter_lines())
    again = post(server_url, CHAT, **QUESTION, dynasor={**COT, "program_id": "vanishing"})
    assert again.status_code == 200
