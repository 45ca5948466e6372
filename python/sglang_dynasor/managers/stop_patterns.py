"""A client's `stop_regex` may not hold up the scheduler.

Upstream searches it in every step, in the process that serves everybody, and without an end: one
pattern of nested repeats takes longer than the universe has. `re` looks for signals while it
searches, so a timer can end it; where several ranks must agree, only patterns are taken whose
search is polynomial for sure. Upstream: `Req._check_str_based_finish` in
`sglang/srt/managers/schedule_batch.py`.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT

from sglang_dynasor.errors import RequestError

SEARCH_LIMIT_S = 0.25  # of processor time, all patterns of one step together
MAX_OPEN_REPEATS = 2  # one after another: polynomial, and no longer exponential
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)


class _SearchTimeout(Exception):
    pass


def limit_stop_patterns(req: Any) -> None:
    """Abort this request where a search for its patterns takes too long; a no-op without any.

    For one rank only: of several each would have a clock of its own, see `check_short_search`.
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


def check_short_search(patterns: Sequence[str]) -> None:
    """Raise RequestError for a pattern that could search for ever: the ranks share no clock."""
    for pattern in patterns:
        try:
            tree = _parser.parse(pattern)
        except (re.error, OverflowError, RecursionError):
            continue  # upstream's to refuse
        if _open_repeats(tree, inside=False) > MAX_OPEN_REPEATS:
            raise RequestError(
                "stop_regex: with tensor parallelism a pattern may have at most "
                f"{MAX_OPEN_REPEATS} repeats, none of them inside another or around alternatives",
                "stop_regex",
            )


def _open_repeats(tree: Iterable[Any], inside: bool) -> float:
    """How many repeats of open length a pattern has; infinite where one is inside another."""
    count = 0.0
    for operation, argument in tree:
        if operation in _REPEATS:
            least, most, repeated = argument
            is_open = least != most
            if inside and is_open:
                return math.inf
            count += is_open + _open_repeats(repeated, inside or most > 1)
        elif operation is _constants.BRANCH:
            if inside:
                return math.inf
            count += sum(_open_repeats(part, inside) for part in argument[1])
        elif operation is _constants.GROUPREF:
            return math.inf
        else:
            count += sum(_open_repeats(part, inside) for part in _parts(argument))
    return count


def _parts(argument: Any) -> Iterator[Any]:
    """The patterns an operation holds: of a group, a look-around, a condition."""
    for item in argument if isinstance(argument, tuple) else (argument,):
        if isinstance(item, _parser.SubPattern):
            yield item


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
