"""Which answers are one: the same whatever their order, and never two that differ."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import canonical_key
from sglang_dynasor.certaindex.answer_groups import MAX_UNANSWERED, AnswerGroups
from sglang_dynasor.certaindex.equality import MathEquality, Verdict
from sglang_dynasor.certaindex.fingerprint import Fingerprint
from sglang_dynasor.offline.traces import read_traces

DATA = Path(__file__).parents[2] / "data"
reproducible = settings(derandomize=True, deadline=None, max_examples=200)


class Assignments:
    """ "x = 3" has the name x and the value 3, "3!" only the value; "late 3" has no verdict."""

    def __init__(self) -> None:
        self.questions: list[str] = []

    def verdict(self, answer: str) -> Verdict:
        self.questions.append(answer)
        if answer.startswith("late"):
            return Verdict(fault="took longer than the limit")
        if answer.startswith("prose"):
            return Verdict()
        name, _, value = answer.rpartition("=")
        return Verdict(Fingerprint(value.strip("!"), name or None))

    async def verdict_async(self, answer: str) -> Verdict:
        await asyncio.sleep(0)
        return self.verdict(answer)


def partition(answers: Iterable[str], groups: AnswerGroups) -> set[frozenset[str]]:
    """The groups once all answers have been seen."""
    seen = list(answers)
    for answer in seen:
        groups.key(answer)
    members: dict[str, set[str]] = defaultdict(set)
    for answer in seen:
        members[groups.key(answer)].add(answer)
    return {frozenset(group) for group in members.values()}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["3", "3!", "4"], [["3", "3!"], ["4"]]),
        (["x=3", "3", "x=3!"], [["x=3", "3", "x=3!"]]),
        (["x=3", "y=3"], [["x=3"], ["y=3"]]),
        (["x=3", "y=3", "3"], [["x=3"], ["y=3"], ["3"]]),
        (["x=3", "y=3", "3", "3!", "x=3!", "z=4", "4"], None),
        (["prose 3", "prose 4", "3"], [["prose 3"], ["prose 4"], ["3"]]),
        (["late 3", "3", "3!"], [["late 3"], ["3", "3!"]]),
    ],
)
def test_every_order_of_the_answers_gives_the_same_groups(
    answers: list[str], expected: list[list[str]] | None
) -> None:
    found = {
        frozenset(partition(order, AnswerGroups(Assignments())))
        for order in itertools.islice(itertools.permutations(answers), 200)
    }
    assert len(found) == 1
    if expected is not None:
        assert found == {frozenset(map(frozenset, expected))}


assignments = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "", "x=", "y=", "z=", "prose "]),
    st.integers(1, 3),
    st.sampled_from(["", "!", "!!"]),
)


@given(st.lists(assignments, min_size=1, max_size=20), st.randoms(use_true_random=False))
@reproducible
def test_shuffled_answers_have_the_same_groups_and_keys(
    answers: list[str], rng: random.Random
) -> None:
    shuffled = rng.sample(answers, len(answers))
    one, other = AnswerGroups(Assignments()), AnswerGroups(Assignments())
    assert partition(answers, one) == partition(shuffled, other)
    assert [one.key(answer) for answer in answers] == [other.key(answer) for answer in answers]


@given(st.lists(assignments, max_size=20))
@reproducible
def test_the_revision_rises_whenever_a_key_given_earlier_has_changed(answers: list[str]) -> None:
    groups = AnswerGroups(Assignments())
    given_keys: dict[str, str] = {}
    for answer in answers:
        before = groups.revision
        groups.key(answer)
        changed = [old for old, key in given_keys.items() if groups.key(old) != key]
        assert bool(changed) == (groups.revision > before)
        given_keys = {old: groups.key(old) for old in [*given_keys, answer]}


@given(st.lists(st.text(max_size=6), max_size=20))
@reproducible
def test_without_equality_the_key_is_the_canonical_key(answers: list[str]) -> None:
    groups = AnswerGroups()
    assert [groups.key(answer) for answer in answers] == list(map(canonical_key, answers))
    assert groups.revision == 0 and groups.inactive == ""


def test_a_value_spelled_like_prose_that_nobody_understood_is_another_answer() -> None:
    groups = AnswerGroups(Assignments())
    assert groups.key("x=prose 3") != groups.key("prose 3")


def test_empty_answers_and_known_ones_are_never_asked_for() -> None:
    equality = Assignments()
    groups = AnswerGroups(equality)
    keys = [groups.key(answer) for answer in ("", "4", " ", "4", "$4$")]
    assert [bool(key) for key in keys] == [False, True, False, True, True]
    assert equality.questions == ["4"]


def test_answers_without_a_verdict_are_counted_and_end_the_questions_of_their_program() -> None:
    equality = Assignments()
    groups = AnswerGroups(equality)
    answers = [f"late {number}" for number in range(MAX_UNANSWERED)] + ["3", "3!"]
    assert len({groups.key(answer) for answer in answers}) == len(answers)
    assert equality.questions == answers[:MAX_UNANSWERED]
    assert groups.inactive == (
        "answers compared by spelling only: 3 took longer than the limit, "
        "2 came after too many without a verdict"
    )


def test_answers_that_are_no_formula_are_no_fault() -> None:
    groups = AnswerGroups(Assignments())
    assert groups.key("prose") == "prose" and groups.inactive == ""


def test_a_prepared_answer_has_its_key_at_once() -> None:
    equality = Assignments()
    groups = AnswerGroups(equality)
    asyncio.run(groups.prepare("x=3"))
    asyncio.run(groups.prepare("x=3"))
    assert groups.key("x=3") == groups.key("x=3")
    assert equality.questions == ["x=3"]


def test_an_answer_whose_preparation_is_cancelled_is_left_to_its_spelling_at_once() -> None:
    class Endless(Assignments):
        async def verdict_async(self, answer: str) -> Verdict:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

    async def cut_short(groups: AnswerGroups) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await groups.prepare("3")

    equality = Endless()
    groups = AnswerGroups(equality)
    asyncio.run(cut_short(groups))
    assert groups.key("3") == "3" and equality.questions == []
    assert groups.inactive == ("answers compared by spelling only: 1 came with the deadline")


FORMULAS = [
    r"\sqrt{8}",
    r"2\sqrt{2}",
    "$2 \\sqrt2$",
    "x+1",
    "1+x",
    "x = 3",
    "3",
    "y = 3",
    "3.0",
    r"\frac{6}{2}",
    "(1,2)",
    "(1, 2)",
    r"\{1,2\}",
    "2,1",
    "0.5",
    r"\frac12",
    r"50\%",
    "N2O",
    "NO2",
    "it depends",
]


@pytest.fixture(scope="module")
def maths() -> Iterable[MathEquality]:
    with MathEquality(3.0) as maths:
        maths.start()
        yield maths


def recorded_answers() -> list[Sequence[str]]:
    return [
        sorted({sample.answer for sample in problem.samples if sample.answer})
        for path in sorted(DATA.glob("*.jsonl.gz"))
        for problem in read_traces(path)[:20]
    ]


@pytest.mark.parametrize("seed", range(5))
def test_real_answers_have_the_same_groups_in_every_order(maths: MathEquality, seed: int) -> None:
    rng = random.Random(seed)
    for answers in [FORMULAS, *recorded_answers()]:
        shuffled = rng.sample(answers, len(answers))
        expected = partition(answers, AnswerGroups(maths))
        assert partition(shuffled, AnswerGroups(maths)) == expected


def test_different_forms_of_one_answer_share_a_group(maths: MathEquality) -> None:
    groups = AnswerGroups(maths)
    answers = [r"\sqrt{8}", "x+1", r"2\sqrt{2}", "1+x", r"$\sqrt{8}$", r"\sqrt{9}", "3.0", ""]
    keys = [groups.key(answer) for answer in answers]
    assert [keys.index(key) for key in keys] == [0, 1, 0, 1, 0, 5, 5, 7]
    assert keys[7] == ""
