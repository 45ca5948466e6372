"""A search for a client's stop patterns ends, whatever the pattern."""

from __future__ import annotations

import re
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import FINISH_ABORT

from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.stop_patterns import check_short_search, limit_stop_patterns

NESTED = r"(.+)+\x00"
TAIL = "=25;25+22=47;47+34=81;wait:34+22=56;56+22=78;check:31+22=53"


def request_of(*patterns: str) -> Any:
    req = SimpleNamespace(sampling_params=SimpleNamespace(stop_regex_strs=patterns))
    req.finished_reason = None

    def check(new_accepted_len: int = 1) -> bool:
        return any(re.search(pattern, TAIL) for pattern in patterns)

    req._check_str_based_finish = check
    return req


def test_a_pattern_that_never_ends_aborts_its_request_alone() -> None:
    req = request_of(NESTED)
    limit_stop_patterns(req)
    assert req._check_str_based_finish(1) is True
    assert isinstance(req.finished_reason, FINISH_ABORT)
    assert req.finished_reason.to_json()["status_code"] == 400
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


@pytest.mark.parametrize(("pattern", "found"), [(r"wait:\d+", True), (r"(\d+,)*!", False)])
def test_ordinary_patterns_are_searched_as_before(pattern: str, found: bool) -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    req = request_of(pattern)
    limit_stop_patterns(req)
    assert req._check_str_based_finish(new_accepted_len=2) is found
    assert req.finished_reason is None
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) is before


def test_requests_without_patterns_stay_as_they_are() -> None:
    req = request_of()
    check = req._check_str_based_finish
    limit_stop_patterns(req)
    assert req._check_str_based_finish is check


@pytest.mark.parametrize(
    "pattern",
    [
        NESTED,
        r"(a+)+$",
        r"(a|a)*b",
        r"(?:x?){40}x{40}",
        r".*.*.*=",
        r"((?=a+)b)*",
        r"(a*)\1*",
        r"(?:\s*\n){2,}",
        r"(?(1)a|(b*)*)",
    ],
)
def test_several_ranks_refuse_a_pattern_that_could_search_for_ever(pattern: str) -> None:
    with pytest.raises(RequestError, match="stop_regex: with tensor parallelism") as refusal:
        check_short_search([r"\d", pattern])
    assert refusal.value.param == "stop_regex"


@pytest.mark.parametrize(
    "pattern",
    [
        r"\n\nQ:",
        r"answer: \d+",
        r"\\boxed\{.*?\}",
        r"(?:x{3}){4}",
        r"[0-9]+\.[0-9]+",
        r"(foo|bar)?baz",
        r"a*+b",
        r"(?:abc){2,5}",
        "(",
    ],
)
def test_several_ranks_search_for_the_others(pattern: str) -> None:
    check_short_search([pattern])
