"""Drive a program against whatever can sample branches: the live engine, a replay, a fake."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import Protocol

from sglang_dynasor.programs.base import FinishedBranch, Grant, Outcome, ReasoningProgram

# How often a program with nothing to decide looks whether its client is still there.
POLL_INTERVAL_S = 0.5


class BranchClient(Protocol):
    """Samples the branches of one program."""

    async def run_branch(self, index: int, max_tokens: int | None) -> FinishedBranch:
        """Sample branch `index`; ended by `end_program`, it returns the part that exists."""
        ...

    async def end_program(self) -> dict[int, int]:
        """End every running branch; return how many tokens each of them generated."""
        ...

    async def check_wanted(self) -> None:
        """Raise when nobody waits for the result any more."""
        ...


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """An outcome and the branches it cost, by index; `n_tokens` of every branch is exact."""

    outcome: Outcome
    finished: dict[int, FinishedBranch]
    cancelled: dict[int, FinishedBranch]


async def run_program(
    program: ReasoningProgram,
    client: BranchClient,
    deadline_s: float | None = None,
    in_thread: bool = False,
) -> ProgramRun:
    """Run to the outcome. Whatever happens on the way, no branch is left running.

    `in_thread` takes the program's own steps to a thread, for those that may wait (for algebra).
    """
    branches = _Branches(client)
    clock = asyncio.get_running_loop().time
    ends_at = None if deadline_s is None else clock() + deadline_s
    step: asyncio.Future[Grant | Outcome] | None = None
    try:
        grant: Grant | Outcome = _next_step(program, None)
        while isinstance(grant, Grant):
            branches.start(grant)
            branch = None
            while branch is None and (ends_at is None or clock() < ends_at):
                remaining = POLL_INTERVAL_S if ends_at is None else ends_at - clock()
                branch = await branches.next_finished(min(POLL_INTERVAL_S, remaining))
            if in_thread:
                step = asyncio.ensure_future(asyncio.to_thread(_next_step, program, branch))
                grant = await asyncio.shield(step)
            else:
                grant = _next_step(program, branch)
        outcome = grant
    finally:
        await branches.end()
        if step is not None:  # a thread does not end with the task that waits for it
            await asyncio.wait([step])
        program.close()
    return ProgramRun(outcome, branches.finished, branches.cancelled)


def _next_step(program: ReasoningProgram, branch: FinishedBranch | None) -> Grant | Outcome:
    """The next grant, or the outcome: a StopIteration cannot leave a thread."""
    try:
        return program.send(branch)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


class _Branches:
    def __init__(self, client: BranchClient) -> None:
        self.finished: dict[int, FinishedBranch] = {}
        self.cancelled: dict[int, FinishedBranch] = {}
        self._client = client
        self._running: dict[asyncio.Task[FinishedBranch], int] = {}
        self._ready: deque[asyncio.Task[FinishedBranch]] = deque()
        self._started = 0

    def start(self, grant: Grant) -> None:
        for index in range(self._started, self._started + grant.branches):
            task = asyncio.ensure_future(self._client.run_branch(index, grant.max_tokens))
            self._running[task] = index
        self._started += grant.branches

    async def next_finished(self, timeout_s: float) -> FinishedBranch | None:
        """The next branch in finishing order, ties by index; None when the time has passed."""
        if not self._ready:
            await self._client.check_wanted()
            done, _ = await asyncio.wait(
                self._running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            self._ready.extend(sorted(done, key=self._running.__getitem__))
        if not self._ready:
            return None
        task = self._ready.popleft()
        index = self._running.pop(task)
        self.finished[index] = task.result()
        return self.finished[index]

    async def end(self) -> None:
        """End the branches that still run, and those that finished too late to be counted."""
        tokens: dict[int, int] = {}
        pending: set[asyncio.Task[FinishedBranch]] = set(self._running)
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
