"""The virtual clock's parts: a loop on a clock, channels without sockets, predicted step times."""

from __future__ import annotations

import asyncio
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from sglang_dynasor.managers.engine_nodes import program_and_node
from sglang_dynasor.managers.rewards import JudgedPath
from sglang_dynasor.platforms.virtual_clock.channels import AwaitedInbox, Inbox, Outlet
from sglang_dynasor.platforms.virtual_clock.clock import Clock, LogicalLoop
from sglang_dynasor.platforms.virtual_clock.rewards import PredictedHome
from sglang_dynasor.platforms.virtual_clock.script import (
    Branch,
    RecordedScript,
    ScriptedTokens,
)
from sglang_dynasor.platforms.virtual_clock.step_times import LinearStepTimes, MeasuredStepTimes


class Letters:
    """A tokenizer of one token a letter."""

    eos_token_id = 2

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


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
    assert times.decode_ms(15, 0) == pytest.approx(14)  # beyond the last, on the last line
    assert times.prefill_ms(1, 51.0, 0) == pytest.approx(19.0)


def test_beyond_what_was_measured_a_pass_is_never_faster_than_the_largest() -> None:
    times = MeasuredStepTimes([(1, 12.0), (8, 10.0)], [(4, 9.0)])
    assert times.decode_ms(64, 0) == 10.0
    assert times.prefill_ms(3, 100.0, 0) == 9.0  # one point says nothing of larger ones


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


def request(node: str, ids: list[int], suffix: str = "") -> Any:
    return SimpleNamespace(
        rid=f"/default/p::0a1b2c3d.1.{node}.{suffix}",
        origin_input_ids=array("q", ids),
        sampling_params=SimpleNamespace(stop_strs=None),
    )


PROMPT = [7, 8, 9]


def test_a_scripted_branch_is_as_long_as_its_sample_and_ends_with_its_answer() -> None:
    script = RecordedScript({"p": [Branch(15, "ab")]}, {"p": len(PROMPT)})
    tokens = ScriptedTokens(script, Letters())
    branch = request("0", PROMPT)
    expected = [*Letters().encode("....\\boxed{ab}", False), 2]
    assert [tokens.token(branch, index) for index in range(15)] == expected
    tokens.forget(branch.rid)
    assert tokens.token(branch, 14) == 2


def test_a_probe_and_a_cut_chain_answer_as_their_branch_would_have_there() -> None:
    branch = Branch(50, "4", interim=[(5, "1"), (20, "4")])
    script = RecordedScript({"p": [Branch(9, "0"), branch]}, {"p": len(PROMPT)})
    tokens = ScriptedTokens(script, Letters())
    for written, forced, expected in (
        (2, "so \\boxed{", "}"),
        (5, "so \\boxed{", "1}"),
        (19, "so \\boxed{", "1}"),
        (20, "so \\boxed{", "4}"),
        (7, "</think>", "\\boxed{1}"),
    ):
        ids = [*PROMPT, *Letters().encode("." * written + forced, False)]
        for asked in (request("1", ids, f"probe{written}."), request("2", ids)):
            answer = [tokens.token(asked, index) for index in range(len(expected) + 1)]
            assert answer == [*Letters().encode(expected, False), 2]
            tokens.forget(asked.rid)


@pytest.mark.parametrize(("tokens", "answer"), [(0, ""), (3, "a"), (8, "b"), (9, "b")])
def test_a_branch_has_the_newest_answer_and_its_own_at_the_end(tokens: int, answer: str) -> None:
    assert Branch(10, "end", [(3, "a"), (8, "b")]).answer_at(tokens) == answer
    assert Branch(10, "end", [(3, "a")]).answer_at(10) == "end"
    assert Branch(10, "end").answer_at(tokens) == "end"


def test_who_judges_reads_what_is_new_one_batch_after_the_other() -> None:
    loop = LogicalLoop(Clock())
    times = LinearStepTimes(0.0, 0.0, 0.0, 100.0)  # a tenth of a second per new token
    home = PredictedHome("support.virtual_rewards:reward_of_length", times)

    def path(*ids: int) -> JudgedPath:
        return JudgedPath(ids, "", "x" * len(ids))

    async def judge(*paths: JudgedPath) -> tuple[float, list[tuple[float, int]]]:
        found = await home.judge(paths)
        return loop.time(), found

    first = loop.create_task(judge(path(1, 2, 3, 4)))
    second = loop.create_task(judge(path(1, 2, 3, 4, 5), path(9)))
    loop.run_due(0.0)
    loop.run_due(10.0)
    assert first.result() == (pytest.approx(0.4), [(0.4, 4)])
    # Asked for before the first was read: nothing of it is in the cache yet.
    assert second.result() == (pytest.approx(1.0), [(0.5, 5), (0.1, 1)])
    third = loop.create_task(judge(path(1, 2, 3, 4, 5, 6)))
    loop.run_due(20.0)
    assert third.result()[1] == [(pytest.approx(0.6), 1)]
    loop.close()
