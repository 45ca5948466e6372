"""Two thousand hostile bodies: each gets a 2xx or 4xx, and the engine does not notice."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Any

import httpx
import psutil
import pytest

from support.fuzz_bodies import fuzz_bodies
from support.servers import server_state
from support.waiting import wait_until

COUNT = 2000
CONCURRENCY = 16
SEED = 20


def scheduler_pids(url: str) -> list[int]:
    """Scheduler processes below the server that listens on `url`."""
    port = url.rpartition(":")[2]
    servers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if re.search(rf"launch_server .*--port {port}\b", " ".join(process.info["cmdline"] or []))
    ]
    assert servers
    return sorted(
        child.pid
        for server in servers
        for child in server.children()
        if "scheduler" in " ".join(child.cmdline())
    )


async def send_all(url: str) -> list[tuple[int, str, bytes, str]]:
    slots = asyncio.Semaphore(CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def send(route: str, body: bytes) -> tuple[int, str, bytes, str]:
            async with slots:
                headers = {"content-type": "application/json"}
                reply = await client.post(route, content=body, headers=headers)
                return reply.status_code, route, body, reply.text

        bodies = fuzz_bodies(COUNT, SEED)
        return await asyncio.gather(*(send(route, body) for route, body in bodies))


@pytest.fixture(scope="module")
def storm(server_url: str) -> dict[str, Any]:
    before = scheduler_pids(server_url)
    assert len(before) == 1
    answers = asyncio.run(send_all(server_url))
    return {"answers": answers, "before": before, "after": scheduler_pids(server_url)}


def test_no_body_gets_a_server_error(storm: dict[str, Any]) -> None:
    bad = [
        (status, route, body[:500], text[:500])
        for status, route, body, text in storm["answers"]
        if status not in (200, 400, 422)
    ]
    assert bad == []


def test_the_storm_reaches_both_sides_of_every_check(storm: dict[str, Any]) -> None:
    seen = Counter((route, status == 200) for status, route, _, _ in storm["answers"])
    assert len(seen) == 6
    assert min(seen.values()) >= 50
    ran = [text for status, _, _, text in storm["answers"] if '"stop_reason":"' in text]
    assert len(ran) >= 100


def test_the_scheduler_process_is_the_same(storm: dict[str, Any]) -> None:
    assert storm["after"] == storm["before"]


def test_nothing_is_left_and_a_normal_request_is_answered(
    storm: dict[str, Any], server_url: str
) -> None:
    wait_until(lambda: server_state(server_url)["requests"] == 0, "no request is left")
    state = server_state(server_url)
    assert (state["programs"], state["protected_tokens"]) == (0, 0)
    body = {"text": "12+34", "sampling_params": {"max_new_tokens": 5, "temperature": 0}}
    reply = httpx.post(f"{server_url}/generate", json=body, timeout=60)
    assert reply.status_code == 200
    assert reply.json()["meta_info"]["completion_tokens"] == 5
