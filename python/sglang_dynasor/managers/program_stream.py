"""What a streaming client gets while its program runs: its one path as it comes, then the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

_END = None


class ProgramStream:
    """Outputs in the shape of upstream's: all so far, or (`incremental`) what is new."""

    def __init__(self, incremental: bool) -> None:
        self._incremental = incremental
        self._outputs: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._text = 0  # characters sent
        self._ids = 0

    def put(self, output: dict[str, Any]) -> None:
        """Send an output whose text and ids are those of the whole path."""
        meta = {**output["meta_info"], "finish_reason": None}
        self._outputs.put_nowait({**output, "meta_info": meta})

    async def following(
        self, program: Coroutine[Any, Any, dict[str, Any]]
    ) -> AsyncIterator[dict[str, Any]]:
        """Run the program; yield what is put meanwhile, then what it returns.

        It ends with its client: who stops asking cancels it.
        """
        task = asyncio.ensure_future(program)
        task.add_done_callback(lambda _: self._outputs.put_nowait(_END))
        try:
            while (output := await self._outputs.get()) is not _END:
                while not self._outputs.empty() and (newer := self._outputs.get_nowait()):
                    output = newer  # a slow client gets them together
                if task.done():
                    break
                yield self._shaped(output)
            yield self._shaped(await task)
        finally:
            task.cancel()

    def _shaped(self, output: dict[str, Any]) -> dict[str, Any]:
        if not self._incremental:
            return output
        text, ids = output["text"], output["output_ids"]
        shaped = {**output, "text": text[self._text :], "output_ids": ids[self._ids :]}
        self._text, self._ids = len(text), len(ids)
        return shaped
