"""Time that passes only where somebody says so: a clock, and an event loop that lives by it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any


class Clock:
    """Seconds since the start of the simulation."""

    def __init__(self) -> None:
        self.now = 0.0

    def advance_to(self, when: float) -> None:
        """Move on to `when`; never back."""
        self.now = max(self.now, when)


class _NothingToWaitFor(selectors.SelectSelector):
    """Never waits: where the loop would, it is stopped."""

    stop: Callable[[], None]

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout > 0:
            self.stop()
        return []


class LogicalLoop(asyncio.SelectorEventLoop):
    """An event loop on a clock. What would wait is left to `drive`, which moves the clock on.

    `drive` runs whatever the loop's tasks wait for until the future it is given is done.
    """

    def __init__(self, clock: Clock) -> None:
        selector = _NothingToWaitFor()
        super().__init__(selector)
        selector.stop = self.stop
        self.clock = clock
        self.drive: Callable[[asyncio.Future[Any]], None] | None = None

    def time(self) -> float:
        return self.clock.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Run it here and now: a thread would make the order depend on the machine."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def run_until_complete(self, future: Any) -> Any:
        if self.drive is None:
            return super().run_until_complete(future)
        task = asyncio.ensure_future(future, loop=self)
        self.drive(task)
        return task.result()

    def next_timer(self) -> float | None:
        """When something is due next; None where nothing is."""
        timers = self._scheduled  # type: ignore[attr-defined]
        return min((timer.when() for timer in timers if not timer.cancelled()), default=None)

    def run_due(self, until: float) -> None:
        """Run all that is ready or due, timer by timer, and leave the clock at `until`."""
        while True:
            self.run_forever()
            when = self.next_timer()
            if when is None or when > until:
                break
            self.clock.advance_to(when)
        self.clock.advance_to(until)
