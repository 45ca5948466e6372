"""A client's `stop_regex` may not hold up the scheduler.

Upstream searches it in every step, in the process that serves everybody, and without an end: one
pattern of nested repeats takes longer than the universe has. `re` looks for signals while it
searches, so a timer can end it. Upstream: `Req._check_str_based_finish` in
`sglang/srt/managers/schedule_batch.py`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT

SEARCH_LIMIT_S = 0.25  # of processor time, all patterns of one step together


class _SearchTimeout(Exception):
    pass


def limit_stop_patterns(req: Any) -> None:
    """Abort this request where a search for its patterns takes too long; a no-op without any.

    For one rank only: of several each would have a clock of its own.
    """
    if not req.sampling_params.stop_regex_strs:
        return
    check: Callable[..., bool] = req._check_str_based_finish

    def check_in_time(*args: Any, **kwargs: Any) -> bool:
        try:
            with _limit(SEARCH_LIMIT_S):
                return check(*args, **kwargs)
        except _SearchTimeout:
            req.finished_reason = FINISH_ABORT(
                "stop_regex: took too long to search for", HTTPStatus.BAD_REQUEST, "BadRequestError"
            )
            return True

    req._check_str_based_finish = check_in_time


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def interrupt(number: int, frame: Any) -> None:
        raise _SearchTimeout

    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)
