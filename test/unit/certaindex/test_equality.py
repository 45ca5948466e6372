"""Algebra as a service: it answers, and whatever happens to a worker, it holds nobody up."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sglang_dynasor.certaindex import equality
from sglang_dynasor.certaindex.equality import MathEquality, Verdict
from sglang_dynasor.certaindex.fingerprint import Fingerprint
from support.equality_workers import is_running, use_fake_workers, worker_pids
from support.waiting import wait_until

LIMIT_S = 0.5
SLACK_S = 1.0  # of a loaded machine's threads and processes
TOWER = ("10^{10^{10}}", "10^{10^{9}}")  # an integer of ten billion digits, if computed


@pytest.fixture(scope="module")
def maths() -> Iterator[MathEquality]:
    with MathEquality(3.0) as maths:
        maths.start()
        yield maths


@pytest.fixture
def fakes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[MathEquality]:
    """Two fake workers, whatever the machine; a parameter is what they do when they start."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    use_fake_workers(monkeypatch, tmp_path, getattr(request, "param", ""))
    with MathEquality(LIMIT_S) as maths:
        yield maths


def both_ready(maths: MathEquality) -> list[int]:
    maths.start_soon()
    return wait_until(lambda: len(pids := worker_pids(maths)) == 2 and pids, "two workers")


def ends_within(pid: int, seconds: float) -> bool:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        waiting = select.poll()
        waiting.register(process, select.POLLIN)
        return bool(waiting.poll(seconds * 1000))
    finally:
        os.close(process)


def seconds_of(maths: MathEquality, answer: str) -> tuple[Verdict, float]:
    start = time.monotonic()
    return maths.verdict(answer), time.monotonic() - start


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("x+1", "1+x"),
        ("x = 3", "3"),
        ("2^{10}", "1024"),
    ],
)
def test_forms_of_one_answer_are_equal_either_way_round(
    maths: MathEquality, first: str, second: str
) -> None:
    assert maths.equal(first, second)
    assert maths.equal(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"50\%", "0.5"),
        ("x+1", "x+2"),
        ("(1,2)", "(2,1)"),
        ("x = 3", "y = 3"),
        ("Paris", "pairs"),
        ("", ""),
        ("", "0"),
    ],
)
def test_different_answers_are_unequal_either_way_round(
    maths: MathEquality, first: str, second: str
) -> None:
    assert not maths.equal(first, second)
    assert not maths.equal(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        TOWER,
        ("2**10**10", "x+1"),
        ("9^{9^{9^{9}}}", "9^{9^{9}}"),
        ("((((9!)!)!)!)!", "2"),
        ("(10^9)!", "(10^9)!+1"),
        ("{" * 140 + "x" + "}" * 140, "x+1"),
        (r"\sqrt{" * 40 + "x" + "}" * 40, "x+1"),
        ("{" * 5000 + "x" + "}" * 5000, "x+1"),
        (r"\sum_{n=1}^{10^9} \frac{1}{n^2}", "1"),
        ("(x+y+z+1)^{200}", "(1+x+y+z)^{200}+1"),
        (r"\left" * 40, r"\frac" * 40),
    ],
)
def test_a_hostile_answer_is_unequal_in_time_and_the_next_question_is_answered(
    maths: MathEquality, first: str, second: str
) -> None:
    start = time.monotonic()
    assert not maths.equal(first, second)
    assert time.monotonic() - start < 2 * 3.0 + SLACK_S
    assert maths.equal("x+1", "1+x")


def test_random_text_never_hurts(maths: MathEquality) -> None:
    rng = random.Random(1)
    signs = [
        *"0123456789xy+-*/^_(){}[]|=<>,.!&#~ é²",
        r"\frac",
        r"\sqrt",
        r"\left(",
        r"\sin",
        "\x00",
        "\ud800",
    ]
    lost = maths.lost_workers
    for _ in range(100):
        maths.verdict("".join(rng.choices(signs, k=rng.randrange(1, 12))))
    assert maths.lost_workers == lost


def test_a_worker_has_bounded_memory(maths: MathEquality) -> None:
    bound = 512 << 20
    assert resource.prlimit(worker_pids(maths)[0], resource.RLIMIT_AS) == (bound, bound)


# The worker's own code, over algebra that never ends.
BUSY_WORKER = """
import pathlib, sys, types
from sglang_dynasor.certaindex import equality_worker

def fingerprint(answer):
    if answer == "busy":
        pathlib.Path(__file__).with_name("is_busy").touch()
        while True:
            pass

equality_worker._fingerprint_module = lambda: types.SimpleNamespace(fingerprint=fingerprint)
equality_worker.main(float(sys.argv[1]), 8 << 30)
"""


@pytest.mark.parametrize("question", ["", "maths.verdict('busy')"])
def test_a_worker_does_not_outlive_a_killed_parent(question: str, tmp_path: Path) -> None:
    (tmp_path / "busy_worker.py").write_text(BUSY_WORKER)
    script = (
        "import pathlib\nfrom sglang_dynasor.certaindex import MathEquality, equality\n"
        f"equality._WORKER = pathlib.Path({str(tmp_path / 'busy_worker.py')!r})\n"
        "maths = MathEquality(1.0); maths.start()\n"
        "print(*[s.worker.process.pid for s in maths._pool._seats if s.ready], flush=True)\n"
        f"{question}\ninput()"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        if question:
            wait_until((tmp_path / "is_busy").exists, "it is being asked")
        parent.kill()
    assert pids and all(ends_within(pid, 10) for pid in pids)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_limit_that_is_not_positive_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="time_limit_s must be positive"):
        MathEquality(seconds)


def test_what_needs_no_algebra_starts_no_worker() -> None:
    with MathEquality() as maths:
        assert maths.equal(r"$\frac{1}{2}$", "0.5")
        assert not maths.equal("1/3", "1/2")
        assert maths.verdict("x+1" * 101) == Verdict()
        assert not maths._pool._threads


def test_a_worker_loads_nothing_that_only_the_server_needs(maths: MathEquality) -> None:
    """The `__init__` of its packages would bring these: a third of a second, and their memory."""
    loaded = Path(f"/proc/{worker_pids(maths)[0]}/maps").read_text()
    assert "libc" in loaded
    assert not [name for name in ("pydantic", "numpy", "scipy", "torch") if name in loaded]


def test_a_late_worker_is_killed_and_replaced_and_its_answer_left_to_the_spelling(
    fakes: MathEquality,
) -> None:
    before = both_ready(fakes)
    verdict, seconds = seconds_of(fakes, "hang")
    assert verdict == Verdict(fault="took longer than the limit")
    assert LIMIT_S <= seconds < LIMIT_S + SLACK_S
    wait_until(lambda: len(set(both_ready(fakes)) & set(before)) == 1, "one of them is replaced")
    assert sum(is_running(pid) for pid in before) == 1
    assert fakes.lost_workers == 1


def test_while_a_worker_is_late_the_other_one_answers(fakes: MathEquality) -> None:
    both_ready(fakes)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(fakes.verdict, "hang")
        for number in range(50):
            verdict, seconds = seconds_of(fakes, f"answer {number}")
            assert verdict == Verdict(Fingerprint(str(number)))
            assert seconds < LIMIT_S
        assert late.result().fault == "took longer than the limit"


@pytest.mark.parametrize(
    "fakes",
    [
        # The first of the two to come here waits until somebody writes to the pipe.
        "try:\n    os.mkdir('first')\n    os.open('gate', os.O_RDONLY)\n"
        "except FileExistsError:\n    pass"
    ],
    indirect=True,
)
def test_a_start_that_takes_its_time_holds_up_no_question(
    fakes: MathEquality, tmp_path: Path
) -> None:
    """One lock served questions and a start of up to 120 s."""
    os.mkfifo(tmp_path / "gate")
    assert fakes.start()
    assert len(worker_pids(fakes)) == 1
    for number in range(20):
        verdict, seconds = seconds_of(fakes, f"answer {number}")
        assert verdict == Verdict(Fingerprint(str(number)))
        assert seconds < LIMIT_S
    assert len(worker_pids(fakes)) == 1
    os.close(os.open(tmp_path / "gate", os.O_WRONLY))
    both_ready(fakes)


@pytest.mark.parametrize("fakes", ["os.open('gate', os.O_RDONLY)"], indirect=True)
def test_while_no_worker_is_ready_a_question_waits_as_long_as_one_may_take_and_is_asked_again(
    fakes: MathEquality, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    verdict, seconds = seconds_of(fakes, "answer 1")
    assert verdict == Verdict(fault="found no free worker")
    assert seconds < LIMIT_S + SLACK_S
    assert seconds_of(fakes, "answer 2")[0].fault == "found no worker that starts"
    os.close(os.open(tmp_path / "gate", os.O_WRONLY))
    both_ready(fakes)
    assert fakes.verdict("answer 1") == Verdict(Fingerprint("1"))


@pytest.mark.parametrize("fakes", ["raise SystemExit(1)"], indirect=True)
def test_a_worker_that_cannot_start_leaves_answers_to_their_spelling(fakes: MathEquality) -> None:
    """It failed the program."""
    assert not fakes.start()
    assert fakes.verdict("answer 1") == Verdict(fault="found no worker that starts")
    assert fakes.equal("Paris", "paris")
    assert not fakes.equal("one 7", "other 7")


@pytest.mark.parametrize(
    "fakes",
    ["try:\n    os.rmdir('broken')\nexcept OSError:\n    pass\nelse:\n    os._exit(1)"],
    indirect=True,
)
def test_a_failed_start_is_tried_again(fakes: MathEquality, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    both_ready(fakes)
    assert fakes.equal("one 7", "other 7")


@pytest.mark.parametrize("count", [1, 2])
def test_idle_workers_that_are_killed_cost_no_verdict(fakes: MathEquality, count: int) -> None:
    for pid in both_ready(fakes)[:count]:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: _is_dead(pid), "it is dead")
    for number in range(10):
        assert fakes.verdict(f"answer {number}") == Verdict(Fingerprint(str(number)))
    assert fakes.lost_workers == 0


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_an_answer_that_ends_its_worker_is_left_to_its_spelling(fakes: MathEquality) -> None:
    both_ready(fakes)
    assert fakes.verdict("die") == Verdict(fault="ended the worker")
    assert fakes.equal("one 7", "other 7")


def test_a_stopped_worker_delays_one_question_by_the_limit_and_the_others_not(
    fakes: MathEquality,
) -> None:
    pid, _ = both_ready(fakes)
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(seconds_of, [fakes] * 64, [f"answer {n}" for n in range(64)]))
    faults = [verdict.fault for verdict, _ in asked if verdict.fault]
    assert faults == ["took longer than the limit"]
    assert sum(seconds > LIMIT_S for _, seconds in asked) == 1
    assert max(seconds for _, seconds in asked) < LIMIT_S + SLACK_S
    assert pid not in both_ready(fakes)


def test_with_one_worker_those_behind_a_late_question_wait_no_longer_than_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    use_fake_workers(monkeypatch, tmp_path)
    with MathEquality(LIMIT_S) as maths, ThreadPoolExecutor(8) as pool:
        maths.start()
        (pid,) = worker_pids(maths)
        os.kill(pid, signal.SIGSTOP)
        asked = list(pool.map(seconds_of, [maths] * 8, [f"answer {n}" for n in range(8)]))
        assert max(seconds for _, seconds in asked) < LIMIT_S + SLACK_S
        assert [verdict.fault for verdict, _ in asked].count("took longer than the limit") == 1
        wait_until(lambda: worker_pids(maths) not in ([], [pid]), "another worker")
        assert maths.verdict("answer 8") == Verdict(Fingerprint("8"))


def test_an_answer_is_asked_once_for_all_programs(
    fakes: MathEquality, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    ask = fakes._pool.ask
    monkeypatch.setattr(fakes._pool, "ask", lambda text: asked.append(text) or ask(text))
    with ThreadPoolExecutor(8) as pool:
        verdicts = set(pool.map(fakes.verdict, ["one 7", "$one 7$"] * 20))
    assert verdicts == {Verdict(Fingerprint("7"))}
    assert asked == ["one 7"]


def test_what_is_remembered_is_bounded(
    fakes: MathEquality, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equality, "_CACHE_SIZE", 4)
    for number in range(10):
        fakes.verdict(f"answer {number}")
    assert list(fakes._asked) == [f"answer {number}" for number in range(6, 10)]


def test_an_answer_without_a_verdict_costs_one_worker_a_minute(
    fakes: MathEquality, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_ready(fakes)
    first, again = fakes.verdict("die"), fakes.verdict("die")
    assert first == again and fakes.lost_workers == 1
    monkeypatch.setattr(equality, "_ASK_AGAIN_S", 0.0)
    assert fakes.verdict("die") == first
    assert fakes.lost_workers == 2


def test_the_event_loop_goes_on_during_a_slow_question(fakes: MathEquality) -> None:
    async def main() -> tuple[Verdict, int]:
        question = asyncio.create_task(fakes.verdict_async("hang"))
        ticks = 0
        while not question.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return question.result(), ticks

    both_ready(fakes)
    verdict, ticks = asyncio.run(main())
    assert verdict.fault == "took longer than the limit"
    assert ticks > 20


def test_several_event_loops_share_the_workers(fakes: MathEquality) -> None:
    async def ask_all() -> list[Verdict]:
        return await asyncio.gather(*[fakes.verdict_async(f"answer {n}") for n in range(20)])

    both_ready(fakes)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: asyncio.run(ask_all()), range(3)))
    assert found == [[Verdict(Fingerprint(str(n))) for n in range(20)]] * 3


@pytest.mark.parametrize("fakes", ["os.open('gate', os.O_RDONLY)"], indirect=True)
def test_who_is_cancelled_cancels_the_question_for_nobody_else(
    fakes: MathEquality, tmp_path: Path
) -> None:
    async def main() -> Verdict:
        gone = asyncio.create_task(fakes.verdict_async("answer 7"))
        stays = asyncio.create_task(fakes.verdict_async("answer 7"))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        for _ in range(2):
            os.close(os.open(tmp_path / "gate", os.O_WRONLY))
        return await stays

    os.mkfifo(tmp_path / "gate")
    assert asyncio.run(main()) == Verdict(Fingerprint("7"))


def test_closing_during_a_question_ends_it_with_threads_and_processes(
    fakes: MathEquality,
) -> None:
    pids = both_ready(fakes)
    asking = threading.Thread(target=fakes.verdict, args=("hang",))
    asking.start()
    wait_until(lambda: fakes._asked["hang"][0].running(), "it is being asked")
    fakes.close()
    fakes.close()
    asking.join(10)
    assert not asking.is_alive()
    assert not any(map(is_running, pids))
    assert not any(thread.is_alive() for thread in fakes._pool._threads)
    with pytest.raises(RuntimeError, match="closed"):
        fakes.verdict("answer 1")
