"""Bounded waiting on a condition. No test sleeps for a fixed time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, deadline_s: float = 10.0) -> T:
    """Poll until `condition` returns something true and return it; fail loudly at the deadline."""
    ends_at = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > ends_at:
            raise AssertionError(f"{what}: still not so after {deadline_s} s")
        time.sleep(0.02)


def wait_until_threads_ended(before: set[threading.Thread]) -> None:
    """Until every thread that is not in `before` has ended, daemons left out."""
    wait_until(
        lambda: not [t for t in set(threading.enumerate()) - before if not t.daemon],
        "the threads have ended",
    )
