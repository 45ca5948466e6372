"""Run an offline engine's event loop for the threads of lang states.

The engine's loop runs only inside its synchronous methods, one at a time, while every lang state
has a thread of its own. So a thread here runs the loop as long as any state waits for it, and no
longer: between runs the engine's own methods work as always.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class EngineLoop:
    """Calls coroutines on an engine's loop from any thread."""

    def __init__(self, engine: Any) -> None:
        self._loop: asyncio.AbstractEventLoop = engine.loop
        self._lock = threading.Lock()
        self._users = 0
        self._runner: threading.Thread | None = None
        if threading.current_thread() is threading.main_thread():
            self._handle_signals(engine.tokenizer_manager)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, or its exception. Raises RuntimeError while the engine is busy."""
        try:
            with self.kept_running():
                return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        finally:
            work.close()  # it was never started when the engine is busy

    @contextmanager
    def kept_running(self) -> Iterator[None]:
        """Keep the loop running, for several calls in a row."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        with self._lock:
            if self._users == 0:
                if self._loop.is_running():
                    raise RuntimeError(
                        "EngineBackend: the engine's event loop is busy with another call"
                    )
                self._runner = threading.Thread(
                    target=self._loop.run_forever, name="dynasor-lang", daemon=True
                )
                self._runner.start()
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                assert self._runner is not None
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._runner.join()

    def _handle_signals(self, manager: Any) -> None:
        """Install the manager's handlers as the interpreter's instead of the loop's.

        A loop gets no signals while another thread than the main one runs it, and a crash of the
        scheduler, announced by SIGQUIT, would leave every state waiting.
        """

        async def create_handle_loop() -> None:
            manager.auto_create_handle_loop()
            for number in (signal.SIGTERM, signal.SIGQUIT):
                self._loop.remove_signal_handler(number)

        self._loop.run_until_complete(create_handle_loop())
        handler = manager.signal_handler_class(manager)
        signal.signal(signal.SIGTERM, handler.sigterm_handler)
        signal.signal(signal.SIGQUIT, handler.running_phase_sigquit_handler)
