"""Mathematical equality of two short answers, asked of one worker process with a hard limit.

A computer algebra system can loop, recurse or allocate without end on a few characters
(10^{10^{10}}), and math-verify's own time limit needs the main thread's SIGALRM. So it runs in a
process that is killed when it is late; the server only ever waits on a socket.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sglang_dynasor.certaindex.canonical import canonical_key

MAX_ANSWER_LENGTH = 300  # characters; longer answers equal only themselves

_WORKER = Path(__file__).with_name("equality_worker.py")
_WORKER_MEMORY_BYTES = 2 << 30
# Importing sympy takes seconds, on a loaded machine many.
_START_LIMIT_S = 120.0
_EXACT_RATIONAL = re.compile(r"-?[0-9]+(?:/[0-9]+)?")
# What math-verify reads as something else: "%" is ignored where it suits, a subscript to a digit
# (a base) and a prime are dropped, "1 1/2" ends after the 1, "$" ends the formula, and a word is
# the product of its letters ("pairs" equals "paris"). Such answers are left to canonical_key.
_MISREAD = re.compile(
    r"[%'$\n]|[0-9]}? ?_|[0-9] [0-9]"
    r"|(?<![A-Za-z\\])(?<!\\begin\{)(?<!\\end\{)(?!sqrt\b)[A-Za-z]{3}"
    r"|^[A-Za-z]+$"
)
# No formula, so no question either: half a formula is what a branch that lost its way boxes.
_NO_FORMULA = re.compile(r"[;?]|[+*/=^]{2}|--|[-+*/=^]$|^[*/=^]")


class MathEquality:
    """Says whether two answers are mathematically equal: r"\\sqrt{8}" and r"2\\sqrt{2}".

    False also stands for "not known": no verdict within `time_limit_s` seconds, an answer above
    300 characters, prose, percentages against other forms. It is the safe side, since a program
    then counts as less certain. Decimals are exact ("0.333" is not "1/3"), units count, "x = 3"
    equals "3", and a list without brackets is a set. The verdict is the same for (a, b) and
    (b, a), but not transitive.

    Safe to use from several threads; questions are asked one after another. The worker starts
    with the first question that needs it, and a late one is replaced by the next question.
    """

    def __init__(self, time_limit_s: float = 1.0) -> None:
        """Raises ValueError where `time_limit_s` (seconds per question) is not positive."""
        if not time_limit_s > 0:
            raise ValueError(f"time_limit_s must be positive, not {time_limit_s}")
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._lost_workers = 0
        self._closed = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="math-equality")

    @property
    def lost_workers(self) -> int:
        """Workers killed because they were late, or dead on a question."""
        return self._lost_workers

    def start(self) -> None:
        """Start the worker, so that the first question need not wait for it (seconds).

        Raises RuntimeError where it does not start, or after close().
        """
        with self._lock:
            self._running_worker()

    def equal(self, first: str, second: str) -> bool:
        """Say whether two answers are equal, within time_limit_s but for a worker's start.

        Raises RuntimeError where the worker does not start, or after close().
        """
        verdict = _without_algebra(first, second)
        if verdict is not None:
            return verdict
        with self._lock:
            worker = self._running_worker()
            try:
                return worker.ask(canonical_key(first), canonical_key(second), self._time_limit_s)
            except OSError:
                self._stop_worker()
                self._lost_workers += 1
                return False

    async def equal_async(self, first: str, second: str) -> bool:
        """Like `equal`, which then waits in a thread of its own: the event loop goes on."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self.equal, first, second)

    def close(self) -> None:
        """End the worker, after the question it has; further closing does nothing."""
        self._executor.shutdown(cancel_futures=True)
        with self._lock:
            self._closed = True
            self._stop_worker()

    def __enter__(self) -> MathEquality:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _running_worker(self) -> _Worker:
        if self._closed:
            raise RuntimeError("MathEquality is closed")
        if self._worker is None:
            try:
                self._worker = _Worker(self._time_limit_s)
            except OSError as error:
                raise RuntimeError(
                    f"the equality worker did not start: {sys.executable} -P {_WORKER}"
                ) from error
        return self._worker

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


class _Worker:
    """One process; raises OSError (TimeoutError included) where it does not answer."""

    def __init__(self, time_limit_s: float) -> None:
        self._channel, theirs = socket.socketpair()
        # A path and -P, not -m: neither the package nor the working directory is in its way.
        command = [sys.executable, "-P", str(_WORKER)]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(2 * time_limit_s), str(_WORKER_MEMORY_BYTES)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server
            )
        try:
            self._receive(_START_LIMIT_S)
        except OSError:
            self.kill()
            raise

    def ask(self, first: str, second: str, time_limit_s: float) -> bool:
        self._channel.sendall(json.dumps([first, second]).encode() + b"\n")
        return self._receive(time_limit_s) == b"1"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._channel.close()

    def _receive(self, time_limit_s: float) -> bytes:
        self._channel.settimeout(time_limit_s)
        answer = self._channel.recv(1)
        if not answer:
            raise ConnectionError("the worker has ended")
        return answer


def _without_algebra(first: str, second: str) -> bool | None:
    """Return the verdict that needs no worker, or None."""
    keys = canonical_key(first), canonical_key(second)
    if keys[0] == keys[1]:
        return keys[0] != ""
    if not all(keys) or max(len(first), len(second)) > MAX_ANSWER_LENGTH:
        return False
    if any(_MISREAD.search(key) or _NO_FORMULA.search(key) for key in keys) or all(
        map(_EXACT_RATIONAL.fullmatch, keys)
    ):
        return False
    return None
