"""Deadlines hold whatever the engine is doing: paused, compiling a grammar, or busy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.openai_calls import post
from support.servers import server_state
from support.waiting import wait_until

GRACE_S = 0.2


@pytest.fixture(autouse=True)
def _idle(server_url: str) -> Iterator[None]:
    yield
    wait_until(lambda: server_state(server_url)["requests"] == 0, "no request is left", 20)
    state = server_state(server_url)
    assert (state["programs"], state["protected_tokens"]) == (0, 0)


def endless(deadline_ms: int, **params: Any) -> dict[str, Any]:
    return {
        "sampling_params": {"max_new_tokens": 450, "ignore_eos": True, **params},
        "dynasor": {
            "algorithm": "self_consistency",
            "max_branches": 8,
            "grants": "8",
            "deadline_ms": deadline_ms,
        },
    }


def assert_in_time(reply: httpx.Response, deadline_ms: int) -> dict[str, Any]:
    assert reply.status_code == 200, reply.text
    report: dict[str, Any] = reply.json()["meta_info"]["dynasor"]
    assert report["stop_reason"] == "deadline"
    assert report["seconds"] <= deadline_ms / 1000 + GRACE_S
    assert reply.json()["meta_info"]["finish_reason"]["type"] in ("stop", "length")
    return report


def set_paused(url: str, paused: bool) -> None:
    route = "pause_generation" if paused else "continue_generation"
    body = {"mode": "in_place"} if paused else {}
    httpx.post(f"{url}/{route}", json=body, timeout=60).raise_for_status()


def test_a_paused_engine_is_not_waited_for(server_url: str) -> None:
    set_paused(server_url, True)
    try:
        report = assert_in_time(post(server_url, "/generate", **endless(300)), 300)
    finally:
        set_paused(server_url, False)
    assert report["tokens"]["total"] == report["tokens"]["prompt"]


def test_an_engine_that_is_paused_meanwhile_is_not_waited_for(server_url: str) -> None:
    pause = threading.Thread(target=lambda: pause_once_running(server_url, 8))
    pause.start()
    try:
        report = assert_in_time(post(server_url, "/generate", **endless(2500)), 2500)
    finally:
        pause.join()
        set_paused(server_url, False)
    assert report["branches"]["cancelled"] == 8
    assert report["tokens"]["cancelled"] > 0


def pause_once_running(url: str, requests: int) -> None:
    wait_until(lambda: server_state(url)["requests"] >= requests, "the program runs", 2)
    set_paused(url, True)


def test_a_grammar_is_not_waited_for(server_url: str) -> None:
    # A new one each time: a grammar that was compiled before is ready at once.
    for length in (41, 43):
        reply = post(server_url, "/generate", **endless(1, regex=f"[0-9]{{1,{length}}}"))
        assert_in_time(reply, 1)


def test_a_prompt_is_echoed_where_nothing_has_finished(server_url: str) -> None:
    body = {**endless(1), "echo": True, "logprobs": 1, "ignore_eos": True}
    del body["sampling_params"]
    reply = post(server_url, "/v1/completions", **body)
    assert reply.status_code == 200
    (choice,) = reply.json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("12+34", "length")
    assert reply.json()["sglext"]["dynasor"]["stop_reason"] == "deadline"
