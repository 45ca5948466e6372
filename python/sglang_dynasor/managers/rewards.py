"""Rewards of paths: asked for in batches over all programs, remembered by their tokens.

Whoever judges is a home (`reward_homes`). One that is gone or slow costs a program a bounded wait
and then nothing: for a while every question is answered at once by why there is no reward.
"""

from __future__ import annotations

import asyncio
import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sglang_dynasor.certaindex import normalised_reward
from sglang_dynasor.programs.client import Judgement, RewardError

MAX_BATCH = 64
MAX_IN_FLIGHT = 2
MAX_REMEMBERED = 1 << 13
ATTEMPTS = 3
FIRST_DELAY_S = 0.1
REST_S = 5.0  # after a home has failed, until it is asked again


@dataclass(frozen=True, slots=True)
class JudgedPath:
    """Token ids of prompt and path, without an end of text, and the texts of both."""

    ids: Sequence[int]
    prompt: str
    text: str


class RewardHome(Protocol):
    """Judges paths. Rewards are raw, as the model gives them, beside the tokens read for each."""

    async def judge(self, paths: Sequence[JudgedPath]) -> list[tuple[float, int]]:
        """Raises RewardError where it can't, OSError where another attempt may help."""
        ...

    def wait(self) -> None:
        """Wait until it can judge. Raises ValueError where it never will."""
        ...

    def close(self) -> None: ...


class Rewards:
    """`time_limit_s` bounds one question, all of its attempts together."""

    def __init__(self, home: RewardHome, time_limit_s: float, sigmoid: bool) -> None:
        self._home = home
        self._time_limit_s = time_limit_s
        self._sigmoid = sigmoid
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._asked: dict[bytes, asyncio.Future[Judgement]] = {}
        self._pending: dict[bytes, JudgedPath] = {}
        self._batches: set[asyncio.Task[None]] = set()
        self._rests_until = 0.0
        self._error = ""

    async def score(self, path: JudgedPath) -> Judgement:
        """The reward of a path, 0 to 1; nothing was read for one that is known."""
        key = hashlib.blake2b(array("q", path.ids).tobytes(), digest_size=16).digest()
        if key in self._known:
            self._known.move_to_end(key)
            return Judgement(self._known[key])
        loop = asyncio.get_running_loop()
        if loop.time() < self._rests_until:
            raise RewardError(self._error)
        if key in self._asked:
            judgement = await asyncio.shield(self._asked[key])
            return Judgement(judgement.reward)
        future = self._asked[key] = loop.create_future()
        self._pending[key] = path
        loop.call_soon(self._send)  # with what else is asked for in this turn of the loop
        return await asyncio.shield(future)

    def wait(self) -> None:
        """Wait until somebody can judge. Raises ValueError where that will never be."""
        self._home.wait()

    def close(self) -> None:
        """End what judges."""
        self._home.close()

    def _send(self) -> None:
        while self._pending and len(self._batches) < MAX_IN_FLIGHT:
            keys = list(self._pending)[:MAX_BATCH]
            batch = {key: self._pending.pop(key) for key in keys}
            task = asyncio.ensure_future(self._judge(batch))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)
            task.add_done_callback(lambda _: self._send())

    async def _judge(self, batch: dict[bytes, JudgedPath]) -> None:
        try:
            async with asyncio.timeout(self._time_limit_s):
                found = await self._attempts(list(batch.values()))
        except (RewardError, OSError, TimeoutError) as error:
            self._fail(batch, error)
            return
        for key, (raw, n_tokens) in zip(batch, found, strict=True):
            reward = normalised_reward(raw) if self._sigmoid else min(1.0, max(0.0, raw))
            self._known[key] = reward
            self._settle(key, Judgement(reward, n_tokens))
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)

    async def _attempts(self, paths: list[JudgedPath]) -> list[tuple[float, int]]:
        delay = FIRST_DELAY_S
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._home.judge(paths)
            except OSError:
                await asyncio.sleep(delay)
                delay *= 4
        return await self._home.judge(paths)

    def _fail(self, batch: dict[bytes, JudgedPath], error: Exception) -> None:
        said = str(error) or f"no answer within {self._time_limit_s:g} s"
        self._error = f"the reward model: {said}"
        self._rests_until = asyncio.get_running_loop().time() + REST_S
        for key in (*batch, *self._pending):
            future = self._asked.pop(key)
            future.set_exception(RewardError(self._error))
            future.exception()  # its program may have ended: nobody has to read it
        self._pending.clear()

    def _settle(self, key: bytes, judgement: Judgement) -> None:
        self._asked.pop(key).set_result(judgement)
