"""Ids in use, retries, clients that go away, and aborts at every stage of a program."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.running_programs import RunningProgram, RunningPrograms
from sglang_dynasor.programs.client import ClientGone, ProgramAborted
from sglang_dynasor.scheduling import ProgramKey

KEY = ProgramKey("a", "p")
ABORTED = ProgramAborted("aborted")


class FakeNodes:
    """Notes why it was aborted."""

    def __init__(self) -> None:
        self.start_drawn: Callable[[int], None] | None = None
        self.reasons: list[Exception] = []

    def abort(self, reason: Exception) -> None:
        self.reasons.append(reason)


class FakeRequest:
    """A connection whose client goes away when told to."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        return await self.messages.get()

    def hang_up(self) -> None:
        self.messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        self.messages.put_nowait({"type": "http.disconnect"})


def run(scenario: Callable[[RunningPrograms], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(20):
            return await scenario(RunningPrograms())

    return asyncio.run(bounded())


async def enter(
    stack: AsyncExitStack, programs: RunningPrograms, key: ProgramKey = KEY, rid: str | None = None
) -> RunningProgram:
    return await stack.enter_async_context(programs.run(key, rid, None))


@pytest.mark.parametrize(
    ("key", "rid", "status_code"), [(KEY, "other", 409), (ProgramKey("b", "p"), "r", 400)]
)
def test_an_id_in_use_is_refused(key: ProgramKey, rid: str, status_code: int) -> None:
    async def scenario(programs: RunningPrograms) -> None:
        async with programs.run(KEY, "r", None):
            with pytest.raises(RequestError) as raised:
                async with programs.run(key, rid, None):
                    raise AssertionError("ran")
            assert raised.value.status_code == status_code
            assert programs.get(KEY) is not None

    run(scenario)


def test_tenants_share_no_program_ids() -> None:
    async def scenario(programs: RunningPrograms) -> None:
        async with AsyncExitStack() as stack:
            ours = await enter(stack, programs)
            theirs = await enter(stack, programs, ProgramKey("b", "p"))
            assert programs.named("p", "a") == [ours]
            assert programs.named("p", "b") == [theirs]
            assert programs.named("p", "c") == []
            assert programs.named("p", None) == [ours, theirs]

    run(scenario)


def test_a_program_is_found_by_its_clients_request_id_too() -> None:
    async def scenario(programs: RunningPrograms) -> None:
        async with AsyncExitStack() as stack:
            program = await enter(stack, programs, rid="r")
            assert programs.named("r", "a") == programs.named("r", None) == [program]
            assert programs.named("r", "b") == []

    run(scenario)


def test_a_program_id_that_is_another_programs_request_id_names_both() -> None:
    async def scenario(programs: RunningPrograms) -> None:
        async with AsyncExitStack() as stack:
            first = await enter(stack, programs, ProgramKey("a", "x"), rid="y")
            second = await enter(stack, programs, ProgramKey("a", "y"), rid="y2")
            assert programs.named("y", "a") == [first, second]

    run(scenario)


def test_nothing_is_kept_of_what_has_ended() -> None:
    async def scenario(programs: RunningPrograms) -> None:
        for _ in range(3):
            with pytest.raises(KeyError):
                async with programs.run(KEY, "r", None):
                    raise KeyError
        assert programs.get(KEY) is None
        assert programs.named("r", None) == programs.named("p", None) == []

    run(scenario)


def test_a_client_that_goes_away_is_noticed_at_once() -> None:
    async def scenario(programs: RunningPrograms) -> list[Exception]:
        request, nodes = FakeRequest(), FakeNodes()
        async with programs.run(KEY, None, request) as program:  # type: ignore[arg-type]
            program.attach(nodes)  # type: ignore[arg-type]
            await asyncio.sleep(0)
            assert not nodes.reasons
            request.hang_up()
            for _ in range(3):
                await asyncio.sleep(0)
            return nodes.reasons

    (reason,) = run(scenario)
    assert isinstance(reason, ClientGone)


def test_an_abort_before_there_are_nodes_reaches_them() -> None:
    async def scenario(programs: RunningPrograms) -> list[Exception]:
        nodes = FakeNodes()
        async with programs.run(KEY, None, None) as program:
            program.abort(ABORTED)
            program.abort(ClientGone("later"))
            program.attach(nodes)  # type: ignore[arg-type]
        return nodes.reasons

    assert run(scenario) == [ABORTED]


def test_all_programs_are_aborted_together() -> None:
    async def scenario(programs: RunningPrograms) -> None:
        async with AsyncExitStack() as stack:
            running = [await enter(stack, programs, ProgramKey(tenant, "p")) for tenant in "ab"]
            programs.abort_all()
            assert all(isinstance(program.unwanted, ProgramAborted) for program in running)

    run(scenario)


def test_a_draw_reaches_the_program_while_it_runs() -> None:
    async def scenario(programs: RunningPrograms) -> list[int]:
        drawn: list[int] = []
        async with programs.run(KEY, None, None) as program:
            program.draw(1)  # before it has nodes
            nodes = FakeNodes()
            program.attach(nodes)  # type: ignore[arg-type]
            program.draw(2)  # before its runner listens
            nodes.start_drawn = drawn.append
            program.draw(3)
        return drawn

    assert run(scenario) == [3]


def test_a_retry_runs_once_the_program_without_a_client_has_ended() -> None:
    async def scenario(programs: RunningPrograms) -> list[str]:
        order: list[str] = []
        ended = asyncio.Event()

        async def first() -> None:
            async with programs.run(KEY, None, None) as program:
                program.abort(ClientGone("gone"))
                await ended.wait()
                order.append("first ends")

        async def retry() -> None:
            async with programs.run(KEY, None, None):
                order.append("retry runs")

        tasks = [asyncio.ensure_future(first())]
        await asyncio.sleep(0)
        tasks.append(asyncio.ensure_future(retry()))
        for _ in range(3):
            await asyncio.sleep(0)
        ended.set()
        await asyncio.gather(*tasks)
        return order

    assert run(scenario) == ["first ends", "retry runs"]
