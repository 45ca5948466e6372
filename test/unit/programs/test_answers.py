"""The answer service: extraction, groups, and what a deadline makes of an open question."""

from __future__ import annotations

import asyncio

import pytest

from sglang_dynasor.programs import AnswerFormat, Answers, Generated, NodeStop, Reading
from support.fake_nodes import Spelling
from support.virtual_time import run_virtual


class Algebra:
    """Takes a second for each answer; "x = 3" and "3" are one group until there is "y = 3"."""

    def __init__(self) -> None:
        self.revision = 0
        self.asked: list[str] = []
        self._left_open: set[str] = set()
        self._split = False

    @property
    def inactive(self) -> str:
        return f"{len(self._left_open)} left open" if self._left_open else ""

    def key(self, answer: str) -> str:
        return answer if self._split or answer in self._left_open else answer[-1:]

    async def prepare(self, answer: str) -> None:
        self.asked.append(answer)
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            self._left_open.add(answer)
            raise
        if answer == "y = 3":
            self._split, self.revision = True, 1


def generated(answer: str, stop_reason: NodeStop = "completed") -> Generated:
    return Generated(f"so \\boxed{{{answer}}}", 5, stop_reason)


def answers_of(grouping: Algebra | Spelling) -> Answers:
    return Answers(AnswerFormat("boxed"), grouping, 0.05)


@pytest.mark.parametrize(
    ("stop_reason", "answer"),
    [("completed", "7"), ("certain", "7"), ("length", ""), ("loop", ""), ("pruned", "")],
)
def test_only_a_node_that_came_to_its_end_has_answered(stop_reason: NodeStop, answer: str) -> None:
    answers = answers_of(Spelling())
    assert run_virtual(answers.read("0", generated("7", stop_reason))) == Reading(answer, answer)


def test_no_question_is_asked_about_no_answer() -> None:
    algebra = Algebra()
    run_virtual(answers_of(algebra).read("0", Generated("so", 5, "completed")))
    assert algebra.asked == []


def test_answers_are_read_one_after_another_in_the_order_of_asking() -> None:
    algebra = Algebra()
    answers = answers_of(algebra)

    async def scenario() -> tuple[list[Reading], float]:
        reads = (answers.read(str(node), generated(str(node))) for node in range(3))
        return await asyncio.gather(*reads), asyncio.get_running_loop().time()

    readings, took = run_virtual(scenario())
    assert [reading.answer for reading in readings] == algebra.asked == ["0", "1", "2"]
    assert took == pytest.approx(3)


def test_an_answer_that_splits_a_group_tells_the_groups_of_those_before() -> None:
    answers = answers_of(Algebra())

    async def scenario() -> list[Reading]:
        given = ("3", "x = 3", "y = 3", "3")
        return [await answers.read(str(i), generated(a)) for i, a in enumerate(given)]

    readings = run_virtual(scenario())
    assert [reading.group for reading in readings] == ["3", "3", "y = 3", "3"]
    assert [reading.regrouped for reading in readings] == [
        None,
        None,
        {"0": "3", "1": "x = 3"},
        None,
    ]


def test_once_settled_every_open_question_has_the_verdict_of_its_spelling_at_once() -> None:
    algebra = Algebra()
    answers = answers_of(algebra)

    async def scenario() -> tuple[list[Reading], float]:
        asyncio.get_running_loop().call_later(1.5, answers.settle)
        reads = (answers.read(str(i), generated(a)) for i, a in enumerate(("3", "x = 3", "4")))
        return await asyncio.gather(*reads), asyncio.get_running_loop().time()

    readings, took = run_virtual(scenario())
    assert [reading.group for reading in readings] == ["3", "x = 3", "4"]
    assert took == 1.5
    assert algebra.asked == ["3", "x = 3", "4"]
    assert answers.inactive == "2 left open"


def test_an_error_of_the_grouping_is_raised() -> None:
    class Broken(Algebra):
        async def prepare(self, answer: str) -> None:
            raise RuntimeError("no worker")

    with pytest.raises(RuntimeError, match="no worker"):
        run_virtual(answers_of(Broken()).read("0", generated("7")))
