"""Failed requests and refused fields reach the caller, and nothing waits for them."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import sglang as sgl
from sglang.lang.backend.base_backend import BaseBackend

from sglang_dynasor import lang
from support.waiting import wait_until, wait_until_threads_ended

pytestmark = pytest.mark.usefixtures("backend")


def refused() -> Any:
    return pytest.raises((RuntimeError, ValueError), match="refused for a test")


@sgl.function
def ask(s: Any, question: str) -> None:
    s += question + sgl.gen("answer", max_tokens=4)


def test_a_refused_request_raises_from_run(recorder: Any) -> None:
    with refused():
        lang.function(ask).run(question="REFUSE")
    assert len(recorder.ended) == 1


def test_a_refused_request_raises_without_a_thread_too() -> None:
    with refused():
        lang.function(ask).run(question="REFUSE", use_thread=False)


def test_a_refused_item_raises_from_run_batch() -> None:
    with refused():
        lang.function(ask).run_batch([{"question": "fine"}, {"question": "REFUSE"}])


def test_a_refused_fork_raises_when_it_is_joined() -> None:
    reached = []

    @lang.function
    def forking(s: Any) -> None:
        s += "q"
        forks = s.fork(2)
        forks += ["REFUSE", "fine"]
        forks += sgl.gen("answer", max_tokens=4)
        forks.join()
        reached.append("after the join")

    with refused():
        forking.run()
    assert reached == []


def test_a_refused_fork_raises_even_if_nobody_reads_it() -> None:
    @lang.function
    def forking(s: Any) -> None:
        forks = s.fork(1)
        forks += "REFUSE" + sgl.gen("answer", max_tokens=4)
        forks[0].sync()

    with refused():
        forking.run()


def test_no_thread_outlives_a_failed_program() -> None:
    before = set(threading.enumerate())

    @lang.function
    def forking(s: Any) -> None:
        s += "q"
        forks = s.fork(4)
        forks += sgl.gen("first", max_tokens=4)
        forks[2] += "REFUSE"
        forks += sgl.gen("second", max_tokens=4)
        forks.join()

    with refused() as raised:
        forking.run()
    assert raised.tb is not None  # which refers to the forks
    wait_until_threads_ended(before)


class LockOfThreads:
    """`threading`'s lock around starts and ends; says who would have waited for himself."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self.taken_twice = False

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        self.taken_twice |= self._depth > 1

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        self._lock.release()


def test_a_failed_state_may_be_collected_while_a_thread_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = []

    @lang.function
    def failing(s: Any) -> None:
        states.append(weakref.ref(s.stream_executor))
        s += "REFUSE" + sgl.gen("answer", max_tokens=4)

    before = set(threading.enumerate())
    gc.disable()
    try:
        with refused():
            failing.run()
        wait_until(lambda: set(threading.enumerate()) <= before, "the worker has ended")
        assert states[0]() is not None
        lock = LockOfThreads()
        monkeypatch.setattr(threading, "_shutdown_locks_lock", lock)
        with lock:
            gc.collect()
        assert states[0]() is None
        assert not lock.taken_twice
    finally:
        gc.enable()


def test_forks_that_never_sent_anything_end_with_a_failed_program() -> None:
    before = set(threading.enumerate())
    kept = []

    @lang.function
    def forking(s: Any) -> None:
        kept.append(s.fork(2))
        s += "REFUSE" + sgl.gen("first", max_tokens=4)

    with refused():
        forking.run()
    wait_until_threads_ended(before)


def test_what_is_submitted_after_a_failure_does_not_wait(recorder: Any) -> None:
    @sgl.function
    def goes_on(s: Any) -> None:
        s += "REFUSE" + sgl.gen("first", max_tokens=4)
        s.sync()
        with s.var_scope("rest"):
            s += "more" + sgl.gen("second", max_tokens=4)
        s += sgl.select("choice", ["yes", "no"])
        s.fork(2).join()
        s.sync()

    with refused(), lang.program():
        goes_on.run()
    assert len(recorder.bodies) == 1  # a failed program sends nothing more


def test_reading_a_failed_state_raises_the_servers_error() -> None:
    with refused(), lang.program():
        state = ask.run(question="REFUSE")
        state.sync()
        assert "refused for a test" in str(state.error())
        with refused():
            state["answer"]
        with refused():
            state.get_meta_info("answer")


def test_a_failed_stream_raises_where_it_is_read() -> None:
    with refused(), lang.program():
        list(ask.run(question="REFUSE", stream=True).text_iter("answer"))


def test_streaming_a_program_of_the_engine_is_refused_before_anything_is_sent(
    recorder: Any,
) -> None:
    solve = lang.function(ask, algorithm="self_consistency")
    with pytest.raises(ValueError, match="stream: not supported"):
        solve.run(question="q", stream=True)
    with (
        pytest.raises(ValueError, match="stream: not supported"),
        lang.program(algorithm="self_consistency"),
    ):
        list(ask.run(question="q", stream=True).text_iter("answer"))
    assert recorder.bodies == []


def test_an_exception_of_the_body_is_not_replaced(recorder: Any) -> None:
    @lang.function
    def failing(s: Any) -> None:
        s += "q" + sgl.gen("answer", max_tokens=4)
        s.sync()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing.run()
    assert len(recorder.ended) == 1


def test_outside_a_scope_failures_are_upstreams() -> None:
    with pytest.warns(UserWarning, match="Error in stream_executor"):
        state = ask.run(question="REFUSE")
        state.sync()
    with pytest.raises(KeyError):
        state["answer"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_branches": 0}, "max_branches"),
        ({"answer_format": "poem"}, "answer_format"),
        ({"program_id": "has space"}, "program_id"),
        ({"branches": 3}, "branches"),
        ({"threshold": 0.9}, "threshold: needs an algorithm"),
    ],
)
def test_a_wrong_field_is_named_before_anything_is_sent(
    recorder: Any, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named), lang.program(**fields):
        ask.run(question="q")
    with pytest.raises(ValueError, match=named):
        lang.function(ask, **fields)
    assert recorder.bodies == []


def test_a_function_names_no_single_program() -> None:
    with pytest.raises(ValueError, match=r"with program\(program_id="):
        lang.function(ask, program_id="mine")


def test_scopes_do_not_nest() -> None:
    with (
        pytest.raises(ValueError, match=r"do not nest \(inside outer"),
        lang.program(program_id="outer"),
        lang.program(),
    ):
        pass


def test_a_backend_that_carries_no_programs_is_refused() -> None:
    with pytest.raises(ValueError, match="DynasorEndpoint or EngineBackend, got BaseBackend"):
        lang.function(ask).run(question="q", backend=BaseBackend())
