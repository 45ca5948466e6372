"""Mathematical equality of short answers: a service that holds nobody up."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

from sglang_dynasor.certaindex.canonical import canonical_key
from sglang_dynasor.certaindex.equality_pool import Fault, Reply, WorkerPool
from sglang_dynasor.certaindex.fingerprint import (
    MAX_ANSWER_LENGTH,
    Fingerprint,
    fingerprint,
    same,
)

MAX_WORKERS = 2

_WORKER = Path(__file__).with_name("equality_worker.py")
_WORKER_MEMORY_BYTES = 512 << 20
_CACHE_SIZE = 8192  # answers, over all programs
# An answer without a verdict is not asked again at once: it may cost a worker each time.
_ASK_AGAIN_S = 60.0
_EXACT_RATIONAL = re.compile(r"-?[0-9]+(?:/[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The fingerprint of an answer. None: only its spelling decides, because of `fault` if set."""

    fingerprint: Fingerprint | None = None
    fault: Fault | None = None


class MathEquality:
    r"""Says what answers are, mathematically: `\sqrt{8}` and `2\sqrt{2}` have one fingerprint.

    Each answer alone is a question to one of at most 2 worker processes, remembered for all
    programs. A question may take `time_limit_s` seconds, and wait as long for a free worker; one
    that is late, or was waiting in vain, leaves its answer to the spelling, and so do all while no
    worker starts: nothing raises, and no call takes more than twice the limit. A late or dead
    worker is replaced while the other one goes on.

    Safe to use from several threads and event loops. The workers start with `start` or
    `start_soon`, at the latest with the first question.
    """

    def __init__(self, time_limit_s: float = 1.0) -> None:
        """Raises ValueError where `time_limit_s` (seconds per question) is not positive."""
        if not time_limit_s > 0:
            raise ValueError(f"time_limit_s must be positive, not {time_limit_s}")
        # A path and -P, not -m: neither the package nor the working directory is in its way.
        command = [sys.executable, "-P", str(_WORKER)]
        command += [str(2 * time_limit_s), str(_WORKER_MEMORY_BYTES)]
        size = min(MAX_WORKERS, len(os.sched_getaffinity(0)))
        self._pool = WorkerPool(command, size, time_limit_s)
        self._lock = threading.Lock()  # of the cache, never held while anything is waited for
        self._asked: OrderedDict[str, tuple[Future[Reply], float]] = OrderedDict()
        self._closed = False

    @property
    def lost_workers(self) -> int:
        """Workers killed because they were late, or dead on a question."""
        return self._pool.lost_workers

    def start_soon(self) -> None:
        """Begin to start the workers, without waiting for them."""
        self._pool.start()

    def start(self) -> bool:
        """Start the workers and wait for the first; False where none starts (seconds)."""
        self._pool.start()
        return self._pool.wait_started()

    def equal(self, first: str, second: str) -> bool:
        """Say whether two answers are equal; False also stands for "not known".

        Raises RuntimeError after close().
        """
        keys = canonical_key(first), canonical_key(second)
        if keys[0] == keys[1]:
            return keys[0] != ""
        one, other = (self.verdict(key).fingerprint for key in keys)
        return one is not None and other is not None and same(one, other)

    def verdict(self, answer: str) -> Verdict:
        """Return what an answer is. Raises RuntimeError after close()."""
        key = canonical_key(answer)
        if (known := _without_algebra(key)) is not None:
            return known
        question = self._question(key)
        if wait([question], self._pool.time_limit_s).not_done and not question.cancel():
            wait([question])  # it has its worker, which has its limit
        return _verdict_of(question)

    async def verdict_async(self, answer: str) -> Verdict:
        """Like `verdict`, in an event loop, which goes on meanwhile."""
        key = canonical_key(answer)
        if (known := _without_algebra(key)) is not None:
            return known
        question = self._question(key)
        if not question.done():
            # Through asyncio.wait: whoever is cancelled here must not cancel it for others.
            answered = [asyncio.wrap_future(question)]
            _, pending = await asyncio.wait(answered, timeout=self._pool.time_limit_s)
            if pending and not question.cancel():
                await asyncio.wait(answered)
        return _verdict_of(question)

    def close(self) -> None:
        """End the workers; further closing does nothing."""
        self._closed = True
        self._pool.close()

    def __enter__(self) -> MathEquality:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _question(self, key: str) -> Future[Reply]:
        """The question of that key, asked anew only where nobody has asked it."""
        if self._closed:
            raise RuntimeError("MathEquality is closed")
        self._pool.start()
        now = time.monotonic()
        with self._lock:
            question, asked_at = self._asked.get(key, (None, 0.0))
            if question is None or _is_stale(question, now - asked_at):
                question = self._pool.ask(key)
                self._asked[key] = (question, now)
            self._asked.move_to_end(key)
            if len(self._asked) > _CACHE_SIZE:
                self._asked.popitem(last=False)
        return question


def _without_algebra(key: str) -> Verdict | None:
    """Return the verdict that needs no worker, or None."""
    if not key or len(key) > MAX_ANSWER_LENGTH:
        return Verdict()
    return Verdict(fingerprint(key)) if _EXACT_RATIONAL.fullmatch(key) else None


def _is_stale(question: Future[Reply], age_s: float) -> bool:
    """Whether the next one who wants to know should ask again."""
    if question.cancelled():
        return True
    fault = question.result().fault if question.done() else None
    if fault in ("took longer than the limit", "ended the worker"):
        return age_s > _ASK_AGAIN_S
    return fault is not None


def _verdict_of(question: Future[Reply]) -> Verdict:
    if question.cancelled():
        return Verdict(fault="found no free worker")
    reply = question.result()
    if reply.value is None:
        return Verdict(fault=reply.fault)
    value, name = reply.value
    return Verdict(Fingerprint(value, name))
