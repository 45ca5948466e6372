"""Programs that run while something else happens: disconnects, duplicates, other tenants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from support.openai_calls import post
from support.servers import server_state
from support.waiting import wait_until

BRANCHES = 16
LENGTH = 450
PROMPT = "+".join(str(10 + 7 * i % 83) for i in range(7))
POOL_TOKENS = 32_768


def endless(program_id: str) -> dict[str, Any]:
    """A program that runs for many seconds unless something ends it."""
    fields = {
        "algorithm": "self_consistency",
        "program_id": program_id,
        "max_branches": BRANCHES,
        "grants": str(BRANCHES),
    }
    params = {"max_new_tokens": LENGTH, "ignore_eos": True}
    return {"text": PROMPT, "sampling_params": params, "dynasor": fields}


def wait_for_requests(url: str, count: int) -> None:
    wait_until(lambda: server_state(url)["requests"] >= count, f"{count} requests run")


def wait_until_idle(url: str) -> dict[str, Any]:
    wait_until(lambda: server_state(url)["requests"] == 0, "no request is left", 20)
    state = server_state(url)
    assert (state["programs"], state["protected_tokens"]) == (0, 0)
    assert state["available_tokens"] + state["evictable_tokens"] == POOL_TOKENS
    return state


@contextmanager
def running(
    url: str, program_id: str, headers: dict[str, str] | None = None
) -> Iterator[Future[httpx.Response]]:
    """An endless program with all of its branches in the scheduler; aborted at the end."""
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(post, url, "/generate", headers, **endless(program_id))
        try:
            wait_for_requests(url, BRANCHES)
            yield call
        finally:
            httpx.post(f"{url}/abort_request", json={"rid": program_id}, timeout=60)
            call.result(timeout=60)


async def hang_up_once_running(url: str, route: str, body: dict[str, Any]) -> None:
    """Send a program, close the connection when all of its branches are in the scheduler."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        call = asyncio.create_task(client.post(route, json=body))
        async with asyncio.timeout(30):
            while (await asyncio.to_thread(server_state, url))["requests"] < BRANCHES:
                await asyncio.sleep(0.02)
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.fixture(autouse=True)
def _empty_pool(server_url: str) -> None:
    wait_until_idle(server_url)
    httpx.post(f"{server_url}/flush_cache", timeout=60).raise_for_status()
    assert server_state(server_url)["available_tokens"] == POOL_TOKENS


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions", "/generate"])
def test_a_client_that_hangs_up_ends_its_program(server_url: str, route: str) -> None:
    body = endless("hung-up")
    if route != "/generate":
        prompt: dict[str, Any] = {"prompt": PROMPT}
        if "chat" in route:
            prompt = {"messages": [{"role": "user", "content": PROMPT}]}
        options = {"model": "default", "max_tokens": LENGTH, "ignore_eos": True}
        body = {**options, **prompt, "dynasor": body["dynasor"]}
    asyncio.run(hang_up_once_running(server_url, route, body))
    state = wait_until_idle(server_url)
    # Had it run to its end, every branch would have left its tokens in the tree.
    assert state["evictable_tokens"] < 2 * len(PROMPT)


def test_a_program_id_that_is_running_is_refused_with_a_conflict(server_url: str) -> None:
    with running(server_url, "twice"):
        reply = post(
            server_url, "/generate", dynasor={"algorithm": "self_consistency"}, program_id="twice"
        )
        assert reply.status_code == 409
        assert "program_id: twice is already running" in reply.text
    wait_until_idle(server_url)
    fields = {"algorithm": "self_consistency", "program_id": "twice", "max_branches": 1}
    assert post(server_url, "/generate", dynasor=fields).status_code == 200


def test_a_retry_after_a_hung_up_client_is_answered(server_url: str) -> None:
    asyncio.run(hang_up_once_running(server_url, "/generate", endless("retried")))
    fields = {"algorithm": "self_consistency", "program_id": "retried", "max_branches": 1}
    assert post(server_url, "/generate", dynasor=fields).status_code == 200


def test_a_branch_and_a_clients_own_request_id_do_not_collide(server_url: str) -> None:
    own = {"rid": "victim::0", "sampling_params": {"max_new_tokens": LENGTH, "ignore_eos": True}}
    fields = {"algorithm": "self_consistency", "max_branches": 3}
    with ThreadPoolExecutor(1) as pool:
        plain = pool.submit(post, server_url, "/generate", **own)
        program = post(server_url, "/generate", program_id="victim", dynasor=fields)
        assert plain.result(timeout=60).status_code == program.status_code == 200


def test_tenants_may_use_the_same_program_id_at_the_same_time(server_url: str) -> None:
    fields = {"algorithm": "self_consistency", "max_branches": 3}
    with running(server_url, "shared-name", {"authorization": "Bearer one"}) as first:
        other = post(
            server_url,
            "/generate",
            {"authorization": "Bearer two"},
            dynasor=fields,
            program_id="shared-name",
        )
        assert other.status_code == 200
        report = other.json()["meta_info"]["dynasor"]
        assert report["program_id"] == "shared-name"
        assert report["branches"]["started"] == 3
        assert not first.done()
        assert server_state(server_url)["requests"] == BRANCHES
    wait_until_idle(server_url)


def test_one_tenants_stop_does_not_touch_the_other(server_url: str) -> None:
    fields = {
        "algorithm": "self_consistency",
        "max_branches": 4,
        "grants": "4",
        "deadline_ms": 1,
        "program_id": "shared-name",
    }
    with running(server_url, "shared-name", {"authorization": "Bearer one"}) as first:
        other = post(server_url, "/generate", {"authorization": "Bearer two"}, dynasor=fields)
        assert other.json()["meta_info"]["dynasor"]["stop_reason"] == "deadline"
        assert server_state(server_url)["requests"] == BRANCHES
        assert not first.done()


def test_aborting_a_program_by_its_id_answers_its_client(server_url: str) -> None:
    with running(server_url, "abort-me") as call:
        httpx.post(f"{server_url}/abort_request", json={"rid": "abort-me"}, timeout=60)
        reply = call.result(timeout=20)
    assert reply.status_code == 200
    report = reply.json()["meta_info"]["dynasor"]
    assert report["stop_reason"] == "aborted"
    assert report["tokens"]["branch"] + report["tokens"]["cancelled"] < BRANCHES * LENGTH
    wait_until_idle(server_url)


def test_plain_requests_go_on_beside_a_program(server_url: str) -> None:
    with running(server_url, "busy") as call:
        replies = [post(server_url, "/v1/chat/completions") for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200] * 3
        assert all("sglext" not in reply.json() for reply in replies)
        assert not call.done()


def test_a_program_the_scheduler_refuses_is_answered_at_once_on_a_busy_engine(
    server_url: str,
) -> None:
    """Upstream refuses such a request through its output stream, past the queue."""
    fields = {"algorithm": "self_consistency", "program_id": "refused"}
    with running(server_url, "busy") as call:
        started = time.perf_counter()
        reply = post(server_url, "/generate", return_sampling_mask=True, dynasor=fields)
        assert reply.status_code == 400, reply.text
        assert "sampling" in reply.text
        assert time.perf_counter() - started < 5
        assert server_state(server_url)["requests"] == BRANCHES
        assert not call.done()


def test_many_programs_at_once_each_get_their_own_answer(server_url: str) -> None:
    fields = {"algorithm": "self_consistency", "max_branches": 4, "detail": "branches"}

    def solve(index: int) -> dict[str, Any]:
        problem = f"{10 + index}+{20 + index}"
        message = {"role": "user", "content": problem}
        body = {"messages": [message], "max_tokens": 60, "temperature": 0}
        reply = post(
            server_url, "/v1/chat/completions", **body, program_id=f"many-{index}", dynasor=fields
        )
        assert reply.status_code == 200
        return reply.json()

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(solve, range(24)))
    for index, answer in enumerate(answers):
        report = answer["sglext"]["dynasor"]
        assert report["program_id"] == f"many-{index}"
        text = answer["choices"][0]["message"]["content"]
        assert text.startswith(f"{10 + index}+{20 + index}=")
    wait_until_idle(server_url)
