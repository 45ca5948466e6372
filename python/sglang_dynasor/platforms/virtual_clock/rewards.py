"""Who judges on a virtual clock: a function of the path's text, on a second predicted device."""

from __future__ import annotations

import asyncio
import pkgutil
from array import array
from collections.abc import Sequence

from sglang_dynasor.managers.rewards import JudgedPath
from sglang_dynasor.platforms.virtual_clock.step_times import StepTimes


class PredictedHome:
    """Rewards are those of `verifier`, MODULE:FUNCTION(prompt, text) -> 0 to 1; reading a batch of
    paths takes a prefill of `step_times`, one batch after the other. What was read of a path
    before, as a path of its own, is in the cache.
    """

    def __init__(self, verifier: str, step_times: StepTimes) -> None:
        self._function = pkgutil.resolve_name(verifier)
        self._step_times = step_times
        self._free_at = 0.0
        self._read: dict[int, set[int]] = {}  # hashes of paths by their length

    async def judge(self, paths: Sequence[JudgedPath]) -> list[tuple[float, int]]:
        past = [self._known(path.ids) for path in paths]
        new = [len(path.ids) - known for path, known in zip(paths, past, strict=True)]
        size = len(paths)
        took_ms = self._step_times.prefill_ms(size, sum(new) / size, sum(past) / size)
        loop = asyncio.get_running_loop()
        self._free_at = max(self._free_at, loop.time()) + took_ms / 1000
        await asyncio.sleep(self._free_at - loop.time())
        for path in paths:
            self._read.setdefault(len(path.ids), set()).add(_hash(path.ids))
        return [
            (float(self._function(path.prompt, path.text)), tokens)
            for path, tokens in zip(paths, new, strict=True)
        ]

    def wait(self) -> None: ...

    def close(self) -> None: ...

    def _known(self, ids: Sequence[int]) -> int:
        lengths = sorted((length for length in self._read if length <= len(ids)), reverse=True)
        return next((n for n in lengths if _hash(ids[:n]) in self._read[n]), 0)


def _hash(ids: Sequence[int]) -> int:
    return hash(array("q", ids).tobytes())
