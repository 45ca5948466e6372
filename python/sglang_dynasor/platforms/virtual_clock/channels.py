"""What stands in for the sockets between the parts of an engine in one process.

Upstream: `sock_send` and its kin in `sglang/srt/managers/io_struct.py`. Messages are pickled as
there: no part sees what another changes later.
"""

from __future__ import annotations

import asyncio
import pickle
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq


class Inbox:
    """Messages in the order in which they were sent, for a reader that polls."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()

    def __bool__(self) -> bool:
        return bool(self._messages)

    def send_pyobj(self, obj: Any, flags: int = 0, protocol: int = -1) -> None:
        self._messages.append(pickle.dumps(obj, protocol))

    def send(self, data: bytes, flags: int = 0) -> None:
        self._messages.append(data)

    def recv_pyobj(self, flags: int = 0) -> Any:
        return pickle.loads(self.recv(flags))

    def recv(self, flags: int = 0) -> bytes:
        """The next message. Raises zmq.Again where there is none, as sockets that may not block."""
        if not self._messages:
            raise zmq.Again
        return self._messages.popleft()


class AwaitedInbox:
    """Messages for a reader that awaits them."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._waiting: asyncio.Future[None] | None = None

    def put(self, data: bytes) -> None:
        self._messages.append(data)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def recv(self, flags: int = 0) -> bytes:
        while not self._messages:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return self._messages.popleft()

    async def recv_pyobj(self, flags: int = 0) -> Any:
        return pickle.loads(await self.recv(flags))


class Outlet:
    """Hands on each message at once to who takes them."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take

    def send_pyobj(self, obj: Any, flags: int = 0, protocol: int = -1) -> None:
        self._take(pickle.dumps(obj, protocol))

    def send(self, data: bytes, flags: int = 0) -> None:
        self._take(data)
