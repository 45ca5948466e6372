"""One token budget for a batch of running programs: what certain ones save goes to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sglang_dynasor.allocation import BudgetPool


class Budget(Protocol):
    """Where a program asks for more tokens than it may spend."""

    async def more(self, tokens: int, value_per_token: float) -> int:
        """Return how many more it may spend, 1 to `tokens`; 0: there will be none."""
        ...


@dataclass(frozen=True, slots=True)
class ProgramBudget:
    """One program's line to the budget of its batch."""

    batch: BatchBudget
    program: str

    async def more(self, tokens: int, value_per_token: float) -> int:
        return await self.batch.more(self.program, tokens, value_per_token)


class BatchBudget:
    """`total_tokens` for `programs` programs that run side by side.

    Each has an even share to begin with. Free tokens are handed out once every program has ended or
    waits for some, to where a token gains most: values must be compared (BudgetPool). `on_wait` is
    called whenever a program begins to wait: its place is free for others meanwhile.
    """

    def __init__(self, total_tokens: int, programs: int, on_wait: Callable[[], None]) -> None:
        """Raises ValueError where there is not a token for each program."""
        self.share_tokens = total_tokens // max(programs, 1)
        if self.share_tokens < 1:
            raise ValueError(f"total_tokens: must be at least {programs}, not {total_tokens}")
        self._pool = BudgetPool(total_tokens)
        self._on_wait = on_wait
        self._open = {str(index) for index in range(programs)}
        self._waiting: dict[str, asyncio.Future[int]] = {}
        for program in sorted(self._open, key=int):
            self._pool.register(program, self.share_tokens)

    def of(self, index: int) -> ProgramBudget:
        """The line of program `index`."""
        return ProgramBudget(self, str(index))

    async def more(self, program: str, tokens: int, value_per_token: float) -> int:
        """Wait for the next turn in which there is something for this program, or no other."""
        self._pool.request(program, tokens, value_per_token)
        self._waiting[program] = asyncio.get_running_loop().create_future()
        self._on_wait()
        try:
            self._serve()
            return await self._waiting[program]
        finally:
            del self._waiting[program]

    def settle(self, index: int, spent_tokens: int) -> None:
        """A program has ended: what it did not spend is for the others."""
        program = str(index)
        # An engine stops a branch up to two tokens late: these are not the others' to pay.
        self._pool.settle(program, min(spent_tokens, self._pool.granted(program)))
        self._open.discard(program)
        self._serve()

    def _serve(self) -> None:
        waiting = [name for name, future in self._waiting.items() if not future.done()]
        if not waiting or len(waiting) < len(self._open):
            return
        served = self._pool.serve()
        for name in served or waiting:  # where nothing is left, all are told
            self._pool.request(name, 0, 0.0)
            self._waiting[name].set_result(served.get(name, 0))
