from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import canonical_key
from sglang_dynasor.certaindex.answer_groups import MAX_COMPARED_GROUPS, AnswerGroups
from sglang_dynasor.certaindex.equality import MathEquality

reproducible = settings(derandomize=True, deadline=None, max_examples=200)


class Near:
    """Answers are numbers, equal when at most one apart: not transitive. Notes each question."""

    def __init__(self) -> None:
        self.questions: list[tuple[str, str]] = []

    def equal(self, first: str, second: str) -> bool:
        self.questions.append((first, second))
        return abs(int(first) - int(second)) <= 1


def test_equal_answers_of_other_spelling_share_a_group() -> None:
    with MathEquality(10.0) as maths:
        groups = AnswerGroups(maths)
        answers = [r"\sqrt{8}", "x+1", r"2\sqrt{2}", "1+x", r"$\sqrt{8}$", r"\sqrt{9}", "3.0", ""]
        keys = [groups.key(answer) for answer in answers]
    roots, sums, three = r"\sqrt{8}", "x+1", r"\sqrt{9}"
    assert keys == [roots, sums, roots, sums, roots, three, three, ""]


@given(st.lists(st.text(max_size=6), max_size=20))
@reproducible
def test_without_equality_the_key_is_the_canonical_key(answers: list[str]) -> None:
    groups = AnswerGroups()
    assert [groups.key(answer) for answer in answers] == list(map(canonical_key, answers))


@given(st.lists(st.integers(0, 30).map(str), max_size=40))
@reproducible
def test_a_key_never_changes_and_names_an_answer_seen(answers: list[str]) -> None:
    groups = AnswerGroups(Near())
    keys = [groups.key(answer) for answer in answers]
    assert [groups.key(answer) for answer in answers] == keys
    assert set(keys) <= set(answers)
    assert all(groups.key(key) == key for key in keys)


def test_the_oldest_equal_group_wins() -> None:
    groups = AnswerGroups(Near())
    assert [groups.key(answer) for answer in ("4", "6", "5", "7", "8")] == ["4", "6", "4", "6", "8"]


def test_a_group_is_asked_for_by_its_first_spelling() -> None:
    near = Near()
    groups = AnswerGroups(near)
    assert [groups.key(answer) for answer in ("04", "4", "9")] == ["4", "4", "9"]
    assert near.questions == [("04", "9")]


def test_empty_answers_and_known_ones_are_never_compared() -> None:
    near = Near()
    groups = AnswerGroups(near)
    assert [groups.key(answer) for answer in ("", "4", " ", "4", "$4$")] == ["", "4", "", "4", "4"]
    assert near.questions == []


def test_an_answer_is_compared_with_the_oldest_groups_only() -> None:
    near = Near()
    groups = AnswerGroups(near)
    for number in range(0, 100, 2):
        groups.key(str(10 * number))
    near.questions.clear()
    assert groups.key("981") == "981"
    assert [int(first) for first, _ in near.questions] == [
        20 * place for place in range(MAX_COMPARED_GROUPS)
    ]


def test_slow_comparisons_end_after_five_seconds_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    class Slow:
        asked = 0

        def equal(self, first: str, second: str) -> bool:
            nonlocal clock
            clock += 2.0
            self.asked += 1
            return False

    monkeypatch.setattr(time, "monotonic", lambda: clock)
    slow = Slow()
    groups = AnswerGroups(slow)
    keys = [groups.key(answer) for answer in "abcdef"]
    assert keys == list("abcdef")
    assert slow.asked == 3
