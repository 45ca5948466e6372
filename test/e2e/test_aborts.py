"""Aborts by id over HTTP: at every stage, of every kind of program, and only by its tenant."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from support.openai_calls import post
from support.servers import server_state
from support.waiting import wait_until

OWNER = {"authorization": "Bearer owner"}
LENGTH = 450
ENDLESS = {"sampling_params": {"max_new_tokens": LENGTH, "ignore_eos": True}}
RUN = {"algorithm": "self_consistency", "max_branches": 8, "grants": "8", "program_id": "p"}
ENGINE_RUN = {**ENDLESS, "dynasor": RUN}
CLIENT_DRIVEN = {**ENDLESS, "program_id": "p"}


@pytest.fixture(autouse=True)
def _idle(server_url: str) -> Iterator[None]:
    yield
    wait_until(lambda: server_state(server_url)["requests"] == 0, "no request is left", 20)
    state = server_state(server_url)
    assert (state["programs"], state["protected_tokens"]) == (0, 0)


@contextmanager
def sent(url: str, *bodies: dict[str, Any]) -> Iterator[list[Future[httpx.Response]]]:
    """The owner's requests, on their way; aborted at the end."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        calls = [pool.submit(post, url, "/generate", OWNER, **body) for body in bodies]
        try:
            yield calls
        finally:
            abort(url, OWNER, abort_all=True)
            for call in calls:
                call.result(timeout=60)


@contextmanager
def paused(url: str) -> Iterator[None]:
    httpx.post(f"{url}/pause_generation", json={}, timeout=60).raise_for_status()
    try:
        yield
    finally:
        httpx.post(f"{url}/continue_generation", json={}, timeout=60).raise_for_status()


def abort(url: str, headers: dict[str, str] | None, **body: Any) -> None:
    reply = httpx.post(f"{url}/abort_request", json=body, headers=headers, timeout=60)
    assert reply.status_code == 200


def wait_for_requests(url: str, count: int) -> None:
    wait_until(lambda: server_state(url)["requests"] >= count, f"{count} requests run")


def finish_reason(call: Future[httpx.Response]) -> str:
    reply = call.result(timeout=20)
    assert reply.status_code == 200
    kind: str = reply.json()["meta_info"]["finish_reason"]["type"]
    return kind


def stop_reason(call: Future[httpx.Response]) -> str:
    reason: str = call.result(timeout=20).json()["meta_info"]["dynasor"]["stop_reason"]
    return reason


def test_another_tenants_abort_does_nothing_and_the_owners_ends_the_program(
    server_url: str,
) -> None:
    with sent(server_url, ENGINE_RUN) as (call,):
        wait_for_requests(server_url, 8)
        for headers in (None, {"authorization": "Bearer other"}):
            abort(server_url, headers, rid="p")
        assert server_state(server_url)["requests"] == 8
        assert not call.done()
        abort(server_url, OWNER, rid="p")
        assert stop_reason(call) == "aborted"


def test_another_tenants_program_of_the_same_id_goes_on(server_url: str) -> None:
    with sent(server_url, ENGINE_RUN) as (call,), ThreadPoolExecutor(1) as pool:
        other = {"authorization": "Bearer other"}
        theirs = pool.submit(post, server_url, "/generate", other, **ENGINE_RUN)
        wait_for_requests(server_url, 16)
        abort(server_url, other, rid="p")
        assert stop_reason(theirs) == "aborted"
        assert not call.done()


def test_a_clients_request_id_comes_back_and_ends_the_program(server_url: str) -> None:
    with sent(server_url, {**ENGINE_RUN, "rid": "mine"}) as (call,):
        wait_for_requests(server_url, 8)
        abort(server_url, None, rid="mine")
        assert server_state(server_url)["requests"] == 8
        abort(server_url, OWNER, rid="mine")
        assert stop_reason(call) == "aborted"
        assert call.result().json()["meta_info"]["id"] == "mine"


def test_all_requests_of_a_client_driven_program_end_by_its_id(server_url: str) -> None:
    with sent(server_url, *[CLIENT_DRIVEN] * 3) as calls:
        wait_for_requests(server_url, 3)
        abort(server_url, None, rid="p")
        assert server_state(server_url)["requests"] == 3
        abort(server_url, OWNER, rid="p")
        assert [finish_reason(call) for call in calls] == ["abort"] * 3


def test_everything_ends_with_abort_all(server_url: str) -> None:
    with sent(server_url, ENGINE_RUN, {**ENDLESS, "program_id": "q"}) as (program, member):
        wait_for_requests(server_url, 9)
        abort(server_url, None, abort_all=True)
        assert stop_reason(program) == "aborted"
        assert finish_reason(member) == "abort"


def test_a_program_that_waits_for_a_paused_engine_is_aborted_at_once(server_url: str) -> None:
    with paused(server_url), sent(server_url, ENGINE_RUN) as (call,):
        # a paused engine shows no request, so the abort is said until the program has been there
        def ended_by_an_abort() -> bool:
            abort(server_url, OWNER, rid="p")
            return call.done()

        wait_until(ended_by_an_abort, "the program has ended")
        assert stop_reason(call) == "aborted"
        assert call.result().json()["meta_info"]["completion_tokens"] == 0
