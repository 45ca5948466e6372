"""The virtual clock's parts: a loop on a clock, channels without sockets, predicted step times."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from sglang_dynasor.managers.engine_nodes import program_and_node
from sglang_dynasor.platforms.virtual_clock.channels import AwaitedInbox, Inbox, Outlet
from sglang_dynasor.platforms.virtual_clock.clock import Clock, LogicalLoop
from sglang_dynasor.platforms.virtual_clock.script import (
    RecordedScript,
    Sample,
    ScriptedTokens,
)
from sglang_dynasor.platforms.virtual_clock.step_times import LinearStepTimes, MeasuredStepTimes


class Letters:
    """A tokenizer of one token a letter."""

    eos_token_id = 2

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in text]


def test_time_stands_still_until_the_clock_is_moved_on() -> None:
    loop = LogicalLoop(Clock())
    woken: list[float] = []

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append(loop.time())

    tasks = [loop.create_task(sleep(seconds)) for seconds in (3.0, 1.0, 2.0)]
    loop.run_due(0.0)
    assert woken == []
    assert loop.next_timer() == 1.0
    loop.run_due(2.5)
    assert woken == [1.0, 2.0]
    assert loop.time() == 2.5
    loop.run_due(10.0)
    assert woken == [1.0, 2.0, 3.0]
    assert all(task.done() for task in tasks)
    loop.close()


def test_work_for_a_thread_is_done_here_and_now() -> None:
    loop = LogicalLoop(Clock())

    async def ask() -> tuple[int, str]:
        done = await loop.run_in_executor(None, lambda: 7)
        try:
            await loop.run_in_executor(None, lambda: 1 // 0)
        except ZeroDivisionError as error:
            return done, str(error)
        return done, ""

    task = loop.create_task(ask())
    loop.run_due(0.0)
    assert task.result() == (7, "integer division or modulo by zero")
    loop.close()


def test_who_waits_for_a_result_has_the_engine_driven() -> None:
    loop = LogicalLoop(Clock())
    driven: list[bool] = []

    def drive(task: asyncio.Future[Any]) -> None:
        driven.append(True)
        loop.run_due(5.0)

    loop.drive = drive
    assert loop.run_until_complete(asyncio.sleep(5.0, "done")) == "done"
    assert driven == [True]
    loop.close()


def test_messages_come_in_order_and_are_copies() -> None:
    inbox = Inbox()
    message = {"ids": [1]}
    inbox.send_pyobj(message)
    inbox.send_pyobj("second")
    message["ids"].append(2)
    assert inbox
    assert inbox.recv_pyobj() == {"ids": [1]}
    assert inbox.recv_pyobj() == "second"
    with pytest.raises(zmq.Again):
        inbox.recv()


def test_a_reader_that_awaits_is_woken() -> None:
    loop = LogicalLoop(Clock())
    inbox = AwaitedInbox()
    task = loop.create_task(inbox.recv_pyobj())
    loop.run_due(0.0)
    assert not task.done()
    Outlet(inbox.put).send_pyobj([1, 2])
    loop.run_due(0.0)
    assert task.result() == [1, 2]
    loop.close()


@given(st.integers(1, 300), st.integers(1, 300))
def test_more_requests_never_take_less_time(one: int, other: int) -> None:
    times = MeasuredStepTimes([(1, 10.0), (64, 14.0), (256, 30.0)], [(1, 9.0), (4096, 200.0)])
    low, high = sorted((one, other))
    assert times.decode_ms(low, 100.0) <= times.decode_ms(high, 100.0)
    assert times.prefill_ms(low, 7.0, 0.0) <= times.prefill_ms(high, 7.0, 0.0)


def test_measured_steps_are_themselves_and_a_line_in_between(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text("kind,size,ms\ndecode,8,12\ndecode,1,10\nprefill,1,9\nprefill,101,29\n")
    times = MeasuredStepTimes.read(path)
    assert times.decode_ms(1, 0) == 10
    assert times.decode_ms(8, 0) == 12
    assert times.decode_ms(16, 0) == 24  # beyond the last, in proportion
    assert times.prefill_ms(1, 51.0, 0) == pytest.approx(19.0)


@pytest.mark.parametrize("text", ["kind,size,ms\n", "kind,size\n", "kind,size,ms\ndecode,x,1\n"])
def test_a_table_that_is_none_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"steps\.csv"):
        MeasuredStepTimes.read(path)


def test_a_line_of_step_times_counts_context_and_new_tokens() -> None:
    times = LinearStepTimes(10.0, 0.1, 0.001, 0.05)
    assert times.decode_ms(10, 1000) == pytest.approx(21.0)
    assert times.prefill_ms(1, 100, 0) == pytest.approx(10 + 0.1 + 5 + 0.05)


@pytest.mark.parametrize(
    ("rid", "expected"),
    [
        ("/team-a/sums.7::0a1b2c3d.12.w3.", ("sums.7", "w3")),
        ("/default/p::0a1b2c3d.1.0.", ("p", "0")),
        ("a-clients-own", ("a-clients-own", "0")),
    ],
)
def test_a_requests_id_names_program_and_node(rid: str, expected: tuple[str, str]) -> None:
    assert program_and_node(rid) == expected


def test_a_scripted_node_is_as_long_as_its_sample_and_ends_with_its_text() -> None:
    script = RecordedScript({"p": [Sample(6, "ab")]})
    tokens = ScriptedTokens(script, Letters())
    rid = "/default/p::0a1b2c3d.1.0."
    assert [tokens.token(rid, index) for index in range(6)] == [46, 46, 46, 97, 98, 2]
    tokens.forget(rid)
    assert tokens.token(rid, 5) == 2
