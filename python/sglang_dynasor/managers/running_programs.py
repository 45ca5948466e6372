"""The programs an engine runs right now: by their key, and by the id a client gave its request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import Request

from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.engine_nodes import EngineNodes
from sglang_dynasor.managers.program_messages import ProbedReqOutput
from sglang_dynasor.programs.client import ClientGone, ProgramAborted
from sglang_dynasor.scheduling import ProgramKey

# How long a retry waits for the end of the program whose client went away.
_JOIN_LIMIT_S = 2.0


class RunningProgram:
    """One program from its first byte to its answer; it can be aborted at every stage."""

    def __init__(self, key: ProgramKey) -> None:
        self.key = key
        self.unwanted: ClientGone | ProgramAborted | None = None
        self.over = asyncio.Event()
        self._nodes: EngineNodes | None = None

    def attach(self, nodes: EngineNodes) -> None:
        """Its nodes, from here on."""
        self._nodes = nodes
        if self.unwanted is not None:
            nodes.abort(self.unwanted)

    def abort(self, reason: ClientGone | ProgramAborted) -> None:
        if self.unwanted is None:
            self.unwanted = reason
            if self._nodes is not None:
                self._nodes.abort(reason)

    def draw(self, count: int) -> None:
        """The scheduler has room for `count` of the offered nodes."""
        if self._nodes is not None and self._nodes.start_drawn is not None:
            self._nodes.start_drawn(count)

    def probed(self, answer: ProbedReqOutput) -> None:
        """A probe of one of its nodes has ended."""
        if self._nodes is not None:
            self._nodes.probed(answer)


class RunningPrograms:
    """All of them; ids are each tenant's own."""

    def __init__(self) -> None:
        self._by_key: dict[ProgramKey, RunningProgram] = {}
        self._by_rid: dict[str, RunningProgram] = {}

    def get(self, key: ProgramKey) -> RunningProgram | None:
        return self._by_key.get(key)

    def named(self, name: str, tenant: str | None) -> list[RunningProgram]:
        """Programs with this program id or request id, of one tenant or (None) of all."""
        found = [self._by_rid.get(name)]
        if tenant is not None:
            found.append(self._by_key.get(ProgramKey(tenant, name)))
        else:
            found += [one for one in self._by_key.values() if one.key.program_id == name]
        programs = dict.fromkeys(program for program in found if program is not None)
        return [program for program in programs if tenant in (None, program.key.tenant)]

    def abort_all(self) -> None:
        for program in list(self._by_key.values()):
            program.abort(ProgramAborted(f"program {program.key.program_id}: all were aborted"))

    @asynccontextmanager
    async def run(
        self, key: ProgramKey, rid: str | None, request: Request | None
    ) -> AsyncIterator[RunningProgram]:
        """Hold a program's ids while it runs, and abort it once its client is gone.

        A retry waits for the end of a program that nobody waits for any more. Raises RequestError
        with status 409 while an id is in use.
        """
        await self._wait_for_the_unwanted(key)
        if key in self._by_key:
            raise RequestError(
                f"program_id: {key.program_id} is already running", "program_id", status_code=409
            )
        if rid in self._by_rid:
            raise RequestError(f"rid: {rid} is already in use", "rid")
        program = self._by_key[key] = RunningProgram(key)
        if rid is not None:
            self._by_rid[rid] = program
        watch = request and asyncio.ensure_future(_abort_when_gone(program, request))
        try:
            yield program
        finally:
            if watch is not None:
                watch.cancel()
            del self._by_key[key]
            if rid is not None:
                del self._by_rid[rid]
            program.over.set()

    async def _wait_for_the_unwanted(self, key: ProgramKey) -> None:
        running = self._by_key.get(key)
        if running is None or running.unwanted is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_JOIN_LIMIT_S):
                await running.over.wait()


async def _abort_when_gone(program: RunningProgram, request: Any) -> None:
    # The body has been read: what the connection has to say from now on is that it was closed.
    while (await request.receive())["type"] != "http.disconnect":
        pass
    program_id = program.key.program_id
    program.abort(ClientGone(f"client of program {program_id} disconnected"))
