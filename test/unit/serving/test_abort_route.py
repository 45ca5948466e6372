"""The route that aborts knows who asks."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from sglang_dynasor.managers.request_fields import DEFAULT_TENANT, tenant_of
from sglang_dynasor.serving import abort_route

SERVER = "sglang.srt.entrypoints.http_server"
OWNER = {"authorization": "Bearer owner"}


class FakeManager:
    def __init__(self, admin_api_key: str | None) -> None:
        self.server_args = SimpleNamespace(admin_api_key=admin_api_key)
        self.calls: list[Any] = []

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        self.calls.append((rid, abort_all))

    def abort_for_tenant(self, rid: str, tenant: str | None) -> None:
        self.calls.append((rid, tenant))


def call(
    monkeypatch: pytest.MonkeyPatch,
    body: dict[str, Any],
    headers: dict[str, str] | None = None,
    admin_api_key: str | None = None,
) -> list[Any]:
    """What the manager was asked to do for one request."""
    app = FastAPI()

    @app.post("/abort_request")
    async def upstreams() -> None:
        raise AssertionError("ran")

    manager = FakeManager(admin_api_key)
    state = SimpleNamespace(tokenizer_manager=manager)
    server = SimpleNamespace(app=app, get_global_state=lambda: state)
    monkeypatch.setitem(sys.modules, SERVER, server)  # type: ignore[arg-type]
    abort_route.install()

    async def post() -> int:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            return (await client.post("/abort_request", json=body, headers=headers)).status_code

    assert asyncio.run(post()) == 200
    assert len(manager.calls) == 1
    return manager.calls


@pytest.mark.parametrize("headers", [None, OWNER])
def test_a_program_is_aborted_for_its_callers_tenant(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str] | None
) -> None:
    tenant = tenant_of(SimpleNamespace(headers=headers or {}))  # type: ignore[arg-type]
    assert (tenant == DEFAULT_TENANT) == (headers is None)
    assert call(monkeypatch, {"rid": "p"}, headers) == [("p", tenant)]


def test_an_administrator_aborts_anybodys_program(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, {"rid": "p"}, OWNER, admin_api_key="owner") == [("p", None)]


def test_everything_is_aborted_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, {"abort_all": True}, OWNER) == [("", True)]


def test_an_engine_without_a_server_has_no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, SERVER, raising=False)
    abort_route.install()
    assert SERVER not in sys.modules
