"""Drive a program against whatever can sample branches: the live engine, a replay, a fake."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from sglang_dynasor.programs.base import (
    FinishedBranch,
    Grant,
    Offer,
    Outcome,
    ReasoningProgram,
    Step,
)

# How often a program with nothing to decide looks whether its client is still there.
POLL_INTERVAL_S = 0.5

# Adds to a finished branch what takes its time, so that the program's own steps never wait.
Prepare: TypeAlias = Callable[[FinishedBranch], Awaitable[FinishedBranch]]


class BranchClient(Protocol):
    """Samples the branches of one program."""

    async def run_branch(self, index: int, max_tokens: int | None) -> FinishedBranch:
        """Sample branch `index`; ended by `end_program`, it returns the part that exists.

        A `cancelled` one had to make room because it was not needed: it may be sampled again.
        """
        ...

    def report(self, step: Step, draws_seen: int) -> None:
        """Say what the program needs now, before the branches for it are sampled."""
        ...

    def on_draw(self, start: Callable[[int], None]) -> None:
        """Call `start` with a number of offered branches whenever there is room for them."""
        ...

    async def end_program(self) -> dict[int, int]:
        """End every running branch; return how many tokens each of them generated."""
        ...

    def close(self) -> None:
        """The program is over and none of its branches runs."""
        ...

    async def check_wanted(self) -> None:
        """Raise when nobody waits for the result any more."""
        ...


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """An outcome and the branches it cost, by index; `n_tokens` of every branch is exact.

    `trimmed` ones were cancelled before the end to make room, and may have been sampled again;
    `drawn` are the indices that ran only because the machine had room.
    """

    outcome: Outcome
    finished: dict[int, FinishedBranch]
    cancelled: dict[int, FinishedBranch]
    trimmed: tuple[FinishedBranch, ...] = ()
    drawn: frozenset[int] = frozenset()


async def run_program(
    program: ReasoningProgram,
    client: BranchClient,
    deadline_s: float | None = None,
    prepare: Prepare | None = None,
) -> ProgramRun:
    """Run to the outcome. Whatever happens on the way, no branch is left running.

    A finished branch that `prepare` still has at the deadline counts as it is.
    """
    branches = _Branches(client)
    clock = asyncio.get_running_loop().time
    ends_at = None if deadline_s is None else clock() + deadline_s
    try:
        step: Step | Outcome = _next_step(program, None)
        while not isinstance(step, Outcome):
            branches.apply(step)
            branch = None
            while branch is None and (ends_at is None or clock() < ends_at):
                remaining = POLL_INTERVAL_S if ends_at is None else ends_at - clock()
                branch = await branches.next_finished(min(POLL_INTERVAL_S, remaining))
            if branch is not None and prepare is not None:
                branch = await _prepared(branch, prepare, ends_at)
            step = _next_step(program, branch)
    finally:
        await branches.end()
        program.close()
    return ProgramRun(
        step,
        branches.finished,
        branches.cancelled,
        tuple(branches.trimmed),
        frozenset(branches.drawn),
    )


async def _prepared(
    branch: FinishedBranch, prepare: Prepare, ends_at: float | None
) -> FinishedBranch:
    with suppress(TimeoutError):
        async with asyncio.timeout_at(ends_at):
            return await prepare(branch)
    return branch


def _next_step(program: ReasoningProgram, branch: FinishedBranch | None) -> Step | Outcome:
    """What the program asks for next, or the outcome."""
    try:
        return program.send(branch)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


class _Branches:
    def __init__(self, client: BranchClient) -> None:
        self.finished: dict[int, FinishedBranch] = {}
        self.cancelled: dict[int, FinishedBranch] = {}
        self.trimmed: list[FinishedBranch] = []
        self.drawn: set[int] = set()
        self._client = client
        self._running: dict[asyncio.Task[FinishedBranch], int] = {}
        self._ready: deque[asyncio.Task[FinishedBranch]] = deque()
        self._done = asyncio.Event()
        self._started = 0
        self._trimmed_indices: list[int] = []  # heap
        self._offer: Offer | None = None
        self._draws = 0
        client.on_draw(self._draw)

    def apply(self, step: Step) -> None:
        """Start what the program needs now, and let the engine know what it offers beyond that."""
        if isinstance(step, Grant):
            if step.branches:
                self._client.report(step, self._draws)
                self._launch(step.branches, step.max_tokens)
            return
        beyond = max(0, len(self._running) - step.needed)
        self._offer = replace(step, values=step.values[beyond:])
        self._client.report(self._offer, self._draws)
        self._launch(step.needed - len(self._running))

    def _draw(self, count: int) -> None:
        """The engine has room for `count` of the offered branches; it may ask for too many."""
        self._draws += count
        if self._offer is None:
            return
        count = min(count, len(self._offer.values))
        self._offer = replace(self._offer, values=self._offer.values[count:])
        self._client.report(self._offer, self._draws)
        self.drawn.update(self._launch(count))

    def _launch(self, count: int, max_tokens: int | None = None) -> list[int]:
        indices = [self._next_index() for _ in range(count)]
        for index in indices:
            task = asyncio.ensure_future(self._client.run_branch(index, max_tokens))
            task.add_done_callback(lambda _: self._done.set())
            self._running[task] = index
        return indices

    def _next_index(self) -> int:
        if self._trimmed_indices:
            return heapq.heappop(self._trimmed_indices)
        self._started += 1
        return self._started - 1

    async def next_finished(self, timeout_s: float) -> FinishedBranch | None:
        """The next branch in finishing order, ties by index; None when the time has passed."""
        if not self._ready:
            await self._client.check_wanted()
            await self._wait(timeout_s)
        while self._ready:
            task = self._ready.popleft()
            index = self._running.pop(task)
            branch = task.result()
            if branch.stop_reason != "cancelled":
                self.finished[index] = branch
                return branch
            self.trimmed.append(branch)
            heapq.heappush(self._trimmed_indices, index)
            assert self._offer is not None, "only offered branches make room"
            self.apply(self._offer)
        return None

    async def _wait(self, timeout_s: float) -> None:
        """Wait until a branch has ended, whenever it was started, or the time has passed."""
        self._done.clear()
        if not any(task.done() for task in self._running):
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._done.wait()
        done = [task for task in self._running if task.done()]
        self._ready.extend(sorted(done, key=self._running.__getitem__))

    async def end(self) -> None:
        """End the branches that still run, and those that finished too late to be counted."""
        tokens: dict[int, int] = {}
        self._offer = None
        pending: set[asyncio.Task[FinishedBranch]] = set(self._running)
        if not pending:
            self._client.close()
        while pending:
            # Repeated, for a branch may reach the engine only after the first call.
            tokens |= await self._client.end_program()
            _, pending = await asyncio.wait(pending, timeout=POLL_INTERVAL_S)
        parts = await asyncio.gather(*self._running, return_exceptions=True)
        for index, part in zip(self._running.values(), parts, strict=True):
            if isinstance(part, FinishedBranch):
                exact = tokens.get(index, part.n_tokens)
                self.cancelled[index] = replace(part, n_tokens=exact, stop_reason="cancelled")
            elif not isinstance(part, asyncio.CancelledError):
                raise part
        self._running.clear()
