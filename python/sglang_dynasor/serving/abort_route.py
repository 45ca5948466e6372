"""`POST /abort_request` that knows who asks: only a tenant's own programs end by their id.

Upstream: `sglang/srt/entrypoints/http_server.py`, whose route hands on the id alone.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

from fastapi import Body, Request, Response
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.utils.auth import AuthLevel, auth_level

from sglang_dynasor.managers.request_fields import tenant_of

_PATH = "/abort_request"
_HTTP_SERVER = "sglang.srt.entrypoints.http_server"


@auth_level(AuthLevel.ADMIN_OPTIONAL)
async def abort_request(obj: Annotated[AbortReq, Body()], request: Request) -> Response:
    """Abort a request, or a program by its id or the id its client gave the request."""
    manager = sys.modules[_HTTP_SERVER].get_global_state().tokenizer_manager
    if obj.abort_all:
        manager.abort_request(abort_all=True)
    else:
        # Where there is an administrator's key, only who has it gets here, and may end them all.
        tenant = None if manager.server_args.admin_api_key else tenant_of(request)
        manager.abort_for_tenant(obj.rid, tenant)
    return Response(status_code=200)


def install() -> None:
    """Put the route into the place of upstream's; an engine without an HTTP server has none."""
    server: Any = sys.modules.get(_HTTP_SERVER)
    if server is None:
        return
    routes = server.app.router.routes
    (index,) = (i for i, route in enumerate(routes) if getattr(route, "path", "") == _PATH)
    routes[index] = type(routes[index])(_PATH, abort_request, methods=["POST"])
