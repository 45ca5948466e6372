"""Comments on a program between the chunks of its stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from sglang_dynasor.managers.program_news import MARK, ToldProgram, take_news
from sglang_dynasor.programs import Finished, Outcome, Probed
from sglang_dynasor.serving.openai import with_news


class Quiet:
    """Goes on whatever happens."""

    def start(self) -> Any:
        return ()

    def on(self, events: Any) -> Any:
        return Outcome("completed", "7", None, 0.0, (), {}, 1) if len(events) > 1 else ()


def test_probes_and_finished_nodes_are_told_once_and_handed_on() -> None:
    obj = SimpleNamespace()
    program = ToldProgram(Quiet(), obj)
    probe = Probed("0", 64, "7\n", "7", confidence=0.5)
    assert program.start() == () and program.on([probe]) == ()
    finished = Finished("0", "so", 70, "completed", "7", "7")
    assert isinstance(program.on([finished, finished]), Outcome)
    first, second, third = take_news(obj)
    assert take_news(obj) == []
    assert all(item.startswith(MARK) and item.count("\n") == 2 for item in (first, second, third))
    told = json.loads(first.removeprefix(MARK))
    assert (told["node"], told["probe"]["at"], told["probe"]["answer"]) == ("0", 64, "7\n")
    assert json.loads(second.removeprefix(MARK))["stop_reason"] == "completed"


def test_comments_come_between_chunks_and_while_none_comes() -> None:
    obj = SimpleNamespace(dynasor_news=[])
    told = asyncio.Event()

    async def chunks() -> AsyncIterator[str]:
        obj.dynasor_news.append(": one\n\n")
        yield "a"
        obj.dynasor_news.append(": two\n\n")
        await told.wait()
        yield "b"

    async def scenario() -> list[str]:
        seen = []
        async for item in with_news(chunks(), obj):
            seen.append(item)
            if item == ": two\n\n":
                told.set()
        return seen

    assert asyncio.run(scenario()) == [": one\n\n", "a", ": two\n\n", "b"]


def test_a_stream_whose_client_is_gone_is_closed() -> None:
    closed = asyncio.Event()

    async def chunks() -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def scenario() -> None:
        stream = with_news(chunks(), SimpleNamespace())
        assert await anext(stream) == "a"
        await asyncio.sleep(0)
        await stream.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(5):
            await closed.wait()

    asyncio.run(scenario())
