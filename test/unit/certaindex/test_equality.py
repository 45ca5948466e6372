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

import pytest

from sglang_dynasor.certaindex import equality
from sglang_dynasor.certaindex.equality import MathEquality

# A worker starts in half a second; the limit leaves room for a loaded machine.
TIME_LIMIT_S = 3.0
TOWER = ("10^{10^{10}}", "10^{10^{9}}")  # an integer of ten billion digits, if computed


@pytest.fixture(scope="module")
def maths() -> Iterator[MathEquality]:
    with MathEquality(TIME_LIMIT_S) as maths:
        maths.start()
        yield maths


def worker_pid(maths: MathEquality) -> int:
    assert maths._worker is not None
    return maths._worker._process.pid


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


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\frac{1}{2}", "0.5"),
        ("x+1", "1+x"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("sqrt(8)", "2*sqrt(2)"),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
        ("(1,2)", "(1, 2)"),
        ("x^2-1", "(x-1)(x+1)"),
        (r"\frac{x}{2}", "0.5x"),
        ("2^{10}", "1024"),
        ("1,000", "10^3"),
        ("$x+1$.", r"\[1+x\]"),
        (r"1\frac12", "1.5"),
        ("x = 3", "3"),
        ("x > 2", "2 < x"),
        (r"\{1, 2\}", r"\{2, 1\}"),
        (r"x \in [0, 1]", "[0,1]"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\ \frac{4}{2}\end{pmatrix}"),
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
        ("0.5", "50"),
        (r"50\%", "0.5"),
        ("50", r"50\%"),
        (r"\sqrt{0.25}", r"50\%"),
        (r"\sqrt{2500}", r"50\%"),
        ("x+1", "x+2"),
        ("(1,2)", "(2,1)"),
        ("(0,1)", "[0,1]"),
        (r"\sqrt{2}", "1.414214"),
        (r"\frac13", "0.333333"),
        ("0.0000001", "10^{-8}"),
        (r"12\text{ cm}", r"12\text{ m}"),
        ("5 kg", "5"),
        (r"10110_2", "10110"),
        ("x = 3", "y = 3"),
        ("1 1/2", "1"),
        ("x'", "x"),
        ("Paris", "pairs"),
        ("A beats B", "B beats A"),
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
    assert time.monotonic() - start < TIME_LIMIT_S + 5
    assert maths.equal("x+1", "1+x")


def test_a_late_worker_is_killed_and_replaced() -> None:
    with MathEquality(1.0) as maths:
        maths.start()
        late = worker_pid(maths)
        assert not maths.equal(*TOWER)
        assert maths.lost_workers == 1
        assert ends_within(late, 0)
        maths.start()
        assert worker_pid(maths) != late


def test_a_worker_that_dies_is_replaced(maths: MathEquality) -> None:
    lost = maths.lost_workers
    maths.start()
    os.kill(worker_pid(maths), signal.SIGKILL)
    assert ends_within(worker_pid(maths), 10)
    assert not maths.equal("x+1", "1+x")
    assert maths.lost_workers == lost + 1
    assert maths.equal("x+1", "1+x")


def test_a_worker_has_bounded_memory(maths: MathEquality) -> None:
    maths.start()
    bound = 2 << 30
    assert resource.prlimit(worker_pid(maths), resource.RLIMIT_AS) == (bound, bound)


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
    for _ in range(40):
        first, second = ("".join(rng.choices(signs, k=rng.randrange(1, 12))) for _ in range(2))
        assert maths.equal(first, second) == maths.equal(second, first)
    assert maths.equal("x+1", "1+x")


def test_the_event_loop_goes_on_during_a_slow_question() -> None:
    async def ticks_during(question: asyncio.Task[bool]) -> int:
        ticks = 0
        while not question.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    async def main() -> tuple[bool, int]:
        question = asyncio.create_task(maths.equal_async(*TOWER))
        ticks = await ticks_during(question)
        return question.result(), ticks

    with MathEquality(1.0) as maths:
        maths.start()
        equal, ticks = asyncio.run(main())
    assert not equal
    assert ticks > 20


def test_threads_share_one_worker(maths: MathEquality) -> None:
    maths.start()
    pid = worker_pid(maths)
    wrong: list[int] = []

    def ask(number: int) -> None:
        same, other = f"x+{number}", f"x+{number + 1}"
        if not maths.equal(same, f"{number}+x") or maths.equal(same, other):
            wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert worker_pid(maths) == pid


def test_closing_leaves_no_process_and_refuses_further_questions() -> None:
    maths = MathEquality()
    maths.start()
    pid = worker_pid(maths)
    maths.close()
    maths.close()
    assert ends_within(pid, 0)
    with pytest.raises(RuntimeError, match="closed"):
        maths.equal("x+1", "1+x")


@pytest.mark.parametrize("question", ["", f"maths.equal(*{TOWER!r})"])
def test_a_worker_does_not_outlive_a_killed_parent(question: str) -> None:
    script = (
        "from sglang_dynasor.certaindex.equality import MathEquality\n"
        f"maths = MathEquality({TIME_LIMIT_S}); maths.start()\n"
        "print(maths._worker._process.pid, flush=True)\n"
        f"{question}\ninput()"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    assert ends_within(pid, 2 * TIME_LIMIT_S + 10)


def test_what_needs_no_algebra_starts_no_worker() -> None:
    with MathEquality() as maths:
        assert maths.equal(r"$\frac{1}{2}$", "0.5")
        assert not maths.equal("1/3", "1/2")
        assert not maths.equal("x+1" * 101, "1+x")
        assert not maths.equal("it is Paris", "it is Rome")
        assert maths._worker is None


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module")
    monkeypatch.setattr(equality, "_WORKER", broken)
    with MathEquality() as maths, pytest.raises(RuntimeError, match=r"did not start: .*broken\.py"):
        maths.equal("x+1", "1+x")


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_limit_that_is_not_positive_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="time_limit_s must be positive"):
        MathEquality(seconds)


def test_the_package_loads_no_algebra() -> None:
    script = (
        "import sys, sglang_dynasor.certaindex.equality, sglang_dynasor.certaindex.answer_groups\n"
        "print(sorted({'sympy', 'math_verify'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert output.stdout.strip() == "[]"
