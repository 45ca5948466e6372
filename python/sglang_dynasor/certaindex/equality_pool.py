"""Worker processes that answer one question at a time, each question under a hard limit.

Algebra can loop, recurse or allocate without end on a few characters (10^{10^{10}}), so it runs in
processes that are killed when they are late. Each has a thread of its own in the server, which
starts it, asks it and replaces it; the threads share nothing but a queue. So a start holds up no
question, and a question none but those behind it that find no other worker.
"""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Fault: TypeAlias = Literal[
    "took longer than the limit",
    "ended the worker",
    "found no free worker",
    "found no worker that starts",
]

START_LIMIT_S = 20.0  # a tenth of a second on a machine with nothing else to do
# After a start that failed, doubled with each further one: an interpreter that is broken for good
# costs one process a minute, one that was short of memory is back by itself.
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 60.0
_MAX_REPLY_BYTES = 1 << 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """The worker's JSON `value`, or why there is none."""

    value: Any = None
    fault: Fault | None = None


class WorkerPool:
    """Keeps `size` processes of `command` running and spreads the questions over them."""

    def __init__(self, command: Sequence[str], size: int, time_limit_s: float) -> None:
        self.time_limit_s = time_limit_s
        self.lost_workers = 0  # killed because they were late, or dead on a question
        self._command = list(command)
        self._changed = threading.Condition()  # never held while anything is waited for
        self._questions: deque[tuple[str, Future[Reply]]] = deque()
        self._closed = threading.Event()
        self._seats = [_Seat() for _ in range(size)]
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to start the workers, and return at once; further calls do nothing."""
        with self._changed:
            if self._threads:
                return
            self._threads = [
                threading.Thread(target=self._run, args=(seat,), name="equality", daemon=True)
                for seat in self._seats
            ]
            for seat, thread in zip(self._seats, self._threads, strict=True):
                seat.starting_since = time.monotonic()
                thread.start()

    def wait_started(self) -> bool:
        """Wait until a worker is ready, or none could be started; say whether one is."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed.is_set()
                    or any(seat.ready for seat in self._seats)
                    or all(seat.starting_since is None for seat in self._seats)
                )
            )
            return any(seat.ready for seat in self._seats)

    def ask(self, text: str) -> Future[Reply]:
        """Queue a question. Whoever waits longer for a worker than wanted may cancel it."""
        question: Future[Reply] = Future()
        with self._changed:
            self._questions.append((text, question))
            self._changed.notify_all()
        self._refuse_questions()
        return question

    def close(self) -> None:
        """End the workers and their threads; what is still asked stays without a reply."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
            for seat in self._seats:
                if seat.worker is not None:
                    seat.worker.hang_up()
            questions = list(self._questions)
            self._questions.clear()
        for _, question in questions:
            question.cancel()
        for thread in self._threads:
            thread.join()

    def _run(self, seat: _Seat) -> None:
        retry_s = _FIRST_RETRY_S
        while not self._closed.is_set():
            seat.starting_since = time.monotonic()
            try:
                self._start_worker(seat)
            except OSError as error:
                self._stop_worker(seat)
                self._refuse_questions()
                if not self._closed.is_set():
                    logger.warning("no algebra worker: %s: %s", " ".join(self._command), error)
                self._closed.wait(retry_s)
                retry_s = min(2 * retry_s, _LAST_RETRY_S)
                continue
            retry_s = _FIRST_RETRY_S
            self._answer_questions(seat)
            self._stop_worker(seat)

    def _refuse_questions(self) -> None:
        """Let nobody wait where no worker runs or is about to."""
        with self._changed:
            if any(seat.is_usable(self.time_limit_s) for seat in self._seats):
                return
            refused = list(self._questions)
            self._questions.clear()
        for _, question in refused:
            if question.set_running_or_notify_cancel():
                question.set_result(Reply(fault="found no worker that starts"))

    def _start_worker(self, seat: _Seat) -> None:
        worker = _Worker(self._command)
        with self._changed:
            seat.worker = worker
            if self._closed.is_set():
                raise ConnectionError("closed meanwhile")
        worker.receive(START_LIMIT_S)
        with self._changed:
            seat.starting_since, seat.ready = None, True
            self._changed.notify_all()

    def _stop_worker(self, seat: _Seat) -> None:
        with self._changed:
            worker, seat.worker = seat.worker, None
            seat.starting_since, seat.ready = None, False
            self._changed.notify_all()
        if worker is not None:
            worker.kill()

    def _answer_questions(self, seat: _Seat) -> None:
        """Until the worker has to be replaced, or the pool is closed."""
        assert seat.worker is not None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed.is_set() or self._questions)
                if self._closed.is_set() or seat.worker.has_ended():
                    return  # the question is left to the other workers, or to the next one here
                text, question = self._questions.popleft()
            if not question.set_running_or_notify_cancel():
                continue
            reply = self._asked(seat.worker, text)
            if reply.fault is not None:
                self.lost_workers += 1
            question.set_result(reply)
            if reply.fault is not None:
                return

    def _asked(self, worker: _Worker, text: str) -> Reply:
        try:
            return Reply(json.loads(worker.ask(text, self.time_limit_s)))
        except TimeoutError:
            return Reply(fault="took longer than the limit")
        except OSError:
            return Reply(fault="ended the worker")


@dataclass(slots=True)
class _Seat:
    """One place of the pool; `starting_since` is monotonic seconds."""

    worker: _Worker | None = None
    ready: bool = False
    starting_since: float | None = None

    def is_usable(self, patience_s: float) -> bool:
        """Whether a question need not wait longer than `patience_s` for the start."""
        begun = self.starting_since
        return self.ready or (begun is not None and time.monotonic() - begun < patience_s)


class _Worker:
    """One process; raises OSError (TimeoutError included) where it does not answer."""

    def __init__(self, command: list[str]) -> None:
        self._channel, theirs = socket.socketpair()
        try:
            with theirs:
                self.process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the server
                )
        except OSError:
            self._channel.close()
            raise

    def ask(self, text: str, time_limit_s: float) -> bytes:
        self._channel.settimeout(time_limit_s)
        self._channel.sendall(json.dumps(text).encode() + b"\n")
        return self.receive(time_limit_s)

    def receive(self, time_limit_s: float) -> bytes:
        ends_at = time.monotonic() + time_limit_s
        line = b""
        while not line.endswith(b"\n"):
            self._channel.settimeout(max(ends_at - time.monotonic(), 1e-6))
            part = self._channel.recv(_MAX_REPLY_BYTES)
            if not part:
                raise ConnectionError("the worker has ended")
            line += part
        return line

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def hang_up(self) -> None:
        """Whoever waits for this worker's reply stops waiting."""
        with suppress(OSError):  # it may have ended
            self._channel.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._channel.close()
