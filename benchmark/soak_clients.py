"""The clients of the soak test: what each kind does, and which answers they may expect."""

from __future__ import annotations

import argparse
import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from sglang_dynasor.demo import Problem, load_problems, program_of
from sglang_dynasor.managers.engine_branches import ClientGone
from sglang_dynasor.models import recommended_temperature, resolve_model
from sglang_dynasor.scheduling import ProgramKey

ANSWER_LIMIT_S = 120.0  # beyond it an accepted request counts as unanswered
MEAN_PATIENCE_S = 0.3  # of clients that go away
ABORT_HALF_EVERY_S = 5.0
SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"draw": "offer"},
    {"grants": "4,3,3,6"},
    {"mode": "shadow"},
    {"max_total_tokens": 300},
    {"deadline_ms": 300},
    {"max_branches": 40},
    {"rule": "threshold", "detail": "branches"},
)
MALFORMED: tuple[dict[str, Any], ...] = (
    {"max_branches": 0},
    {"max_branches": "many"},
    {"program_id": "no spaces allowed"},
    {"rule": "oracle"},
    {"grants": "4,,x"},
    {"threshold": float("nan")},
    {"deadline_ms": -1},
    {"unheard_of": 1},
    {"algorithm": "none", "rule": "beta"},
)


class GoingClient:
    """What an HTTP request looks like to the engine, from a client that hangs up after a while."""

    method = "POST"

    def __init__(self, patience_s: float) -> None:
        self.headers: dict[str, str] = {}
        self._gone_at = asyncio.get_running_loop().time() + patience_s

    async def json(self) -> dict[str, Any]:
        return {}

    async def is_disconnected(self) -> bool:
        return asyncio.get_running_loop().time() >= self._gone_at


class SoakClients:
    """The clients of one engine."""

    def __init__(self, engine: Any, options: argparse.Namespace) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._engine = engine
        self._manager = engine.tokenizer_manager
        self._options = options
        self._rng = random.Random(options.seed)
        self._running: set[str] = set()
        self._ended: list[str] = []
        self._number = 0
        self._problems = load_problems(options.problems_file, options.problems, options.seed)
        model = resolve_model(options.model_path)
        self._temperature = options.temperature or recommended_temperature(model) or 1.0
        self._actions: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._program, 8),
            (self._cancelled, 3),
            (self._hung_up, 2),
            (self._aborted, 2),
            (self._malformed, 1),
            (self._duplicate, 1),
            (self._old_id, 1),
            (self._closed, 1),
            (self._plain, 2),
        ]

    async def run(self) -> None:
        """Keep `--in-flight` clients busy until the time is over, then let them finish."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + 60 * self._options.minutes
        reaper = asyncio.create_task(self._abort_half_again_and_again())
        clients = [self._client(ends_at) for _ in range(self._options.in_flight)]
        await asyncio.gather(*clients)
        reaper.cancel()
        await asyncio.gather(reaper, return_exceptions=True)

    async def _client(self, ends_at: float) -> None:
        loop = asyncio.get_running_loop()
        actions, weights = zip(*self._actions, strict=True)
        while loop.time() < ends_at:
            (action,) = self._rng.choices(actions, weights)
            name = action.__name__.strip("_")
            try:
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    await action()
                self.counts[name] += 1
            except TimeoutError:
                self.faults.append(f"{name}: no answer in {ANSWER_LIMIT_S:.0f} s")
            except ValueError as error:
                self.faults.append(f"{name}: refused: {error}")

    async def _abort_half_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(ABORT_HALF_EVERY_S)
            for program_id in sorted(self._running):
                if self._rng.random() < 0.5:
                    self._manager.abort_request(program_id)
            self.counts["halves_aborted"] += 1

    async def _program(self) -> None:
        await self._answered(self._new_id())

    async def _cancelled(self) -> None:
        task = asyncio.create_task(self._answered(self._new_id()))
        await asyncio.wait([task], timeout=self._patience())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _hung_up(self) -> None:
        request = GoingClient(self._patience())
        obj = self._engine._request(self._made(self._new_id(), self._shape()))
        try:
            async for _ in self._manager.generate_request(obj, request):
                self.counts["answered_before_hanging_up"] += 1
        except ClientGone:
            self.counts["client_gone"] += 1

    async def _aborted(self) -> None:
        program_id = self._new_id()
        task = asyncio.create_task(self._answered(program_id))
        await asyncio.wait([task], timeout=self._patience())
        self._manager.abort_request(program_id)
        await task

    async def _malformed(self) -> None:
        fields = self._rng.choice(MALFORMED)
        await self._refused(self._made(self._new_id(), fields), f"malformed {fields}")

    async def _duplicate(self) -> None:
        program_id = self._new_id()
        task = asyncio.create_task(self._answered(program_id))
        while not self._is_active(program_id) and not task.done():
            await asyncio.sleep(0)
        if not task.done():
            await self._refused(self._made(program_id, {}), "the id of a running program")
        await task

    async def _old_id(self) -> None:
        if not self._ended:
            return await self._program()
        # Taken out: two clients must not come upon the same old id.
        position = self._rng.randrange(len(self._ended))
        await self._answered(self._ended.pop(position))

    async def _closed(self) -> None:
        """A client's own program: requests, its end, and one more request under the same id."""
        program_id = self._new_id()
        first = asyncio.gather(*[self._request({"program_id": program_id}) for _ in range(3)])
        await asyncio.sleep(0)
        await self._manager.end_program(ProgramKey("", program_id))
        await first
        await self._request({"program_id": program_id})

    async def _plain(self) -> None:
        await self._request(None)

    async def _answered(self, program_id: str) -> None:
        """Run a program; its report must be whole, however it ended."""
        self._running.add(program_id)
        try:
            result = await self._engine.async_run(self._made(program_id, self._shape()))
        finally:
            self._running.discard(program_id)
            self._ended.append(program_id)
        branches = result.report["branches"]
        if branches["started"] != branches["finished"] + branches["cancelled"]:
            self.faults.append(f"{program_id}: branches do not add up: {branches}")
        self.counts[f"stop_reason {result.stop_reason}"] += 1

    async def _refused(self, program: Any, what: str) -> None:
        try:
            await self._engine.async_run(program)
        except ValueError:
            return
        self.faults.append(f"{what}: was accepted")

    async def _request(self, fields: dict[str, Any] | None) -> None:
        output = await self._engine.async_generate(
            self._rng.choice(["12+34", "57+68+79+11", "91+18+27+36+45"]),
            sampling_params={"temperature": self._temperature, "max_new_tokens": 80},
            program=fields,
        )
        self.counts[f"finish_reason {output['meta_info']['finish_reason']['type']}"] += 1

    def _made(self, program_id: str, fields: dict[str, Any]) -> Any:
        problem: Problem = self._rng.choice(self._problems)
        own = {"program_id": program_id, **fields}
        return program_of(problem, self._options, self._temperature, own)

    def _shape(self) -> dict[str, Any]:
        return self._rng.choice(SHAPES)

    def _patience(self) -> float:
        return self._rng.expovariate(1 / MEAN_PATIENCE_S)

    def _new_id(self) -> str:
        self._number += 1
        return f"soak-{self._number}"

    def _is_active(self, program_id: str) -> bool:
        return any(key.program_id == program_id for key in self._manager._active_programs)
