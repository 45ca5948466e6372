"""The fold of many branches at once against recomputing each of them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import CertaintyTable
from sglang_dynasor.certaindex.certainty_table import FIXED_POINT, RECENT_TOKENS

reproducible = settings(derandomize=True, deadline=None, max_examples=200)
nats = st.floats(0, 40, width=32)


def add(table: CertaintyTable, slots: list[int], confidence: list[float]) -> None:
    """One token each, with half the confidence as entropy and a quarter as self-certainty."""
    measures = np.outer(np.array(confidence, np.float32), np.array([1, 0.5, 0.25], np.float32))
    table.add(np.array(slots), measures[None], np.arange(len(slots))[None])


def exact(value: float) -> Fraction:
    return Fraction(round(Fraction(value) * FIXED_POINT), FIXED_POINT)


def mean(values: list[Fraction]) -> float:
    return float(sum(values) / len(values))


@reproducible
@given(st.lists(st.lists(nats, max_size=40), min_size=1, max_size=5), st.integers(1, 12))
def test_the_fold_equals_recomputing_it_whichever_branches_share_a_batch(
    branches: list[list[float]], window: int
) -> None:
    table = CertaintyTable(window, initial_slots=1)
    slots = [table.open() for _ in branches]
    for step in range(max(map(len, branches))):
        running = [i for i, branch in enumerate(branches) if step < len(branch)]
        if running:
            add(table, [slots[i] for i in running], [branches[i][step] for i in running])
    for slot, branch in zip(slots, branches, strict=True):
        summary = table.summary(slot)
        if not branch:
            assert summary is None
            continue
        values = [exact(value) for value in branch]
        ends = range(window, len(values) + 1)
        groups = [mean(values[end - window : end]) for end in ends] or [mean(values)]
        assert summary is not None and summary.tokens == len(branch)
        assert summary.mean == mean(values)
        assert summary.tail == mean(values[-window:])
        assert summary.lowest_group == min(groups)
        assert summary.entropy == mean([exact(value / 2) for value in branch])
        assert summary.self_certainty == mean([exact(value / 4) for value in branch])


@reproducible
@given(st.data(), st.integers(1, 12), st.integers(1, 3))
def test_several_steps_at_once_equal_one_after_the_other(
    data: st.DataObject, window: int, branches: int
) -> None:
    together, apart = CertaintyTable(window), CertaintyTable(window)
    slots = np.array([together.open() for _ in range(branches)])
    assert [apart.open() for _ in range(branches)] == slots.tolist()
    for block in data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=4)):
        count = block * branches
        drawn = data.draw(st.lists(nats, min_size=3 * count, max_size=3 * count))
        measures = np.array(drawn, np.float32).reshape(block, branches, 3)
        tokens = np.arange(count).reshape(block, branches)
        together.add(slots, measures, tokens)
        for step in range(block):
            apart.add(slots, measures[step : step + 1], tokens[step : step + 1])
    for slot in slots.tolist():
        assert together.summary(slot) == apart.summary(slot)
    assert np.array_equal(together.last_tokens(slots), apart.last_tokens(slots))
    assert np.array_equal(together.groups(slots), apart.groups(slots))


def test_more_steps_than_are_remembered_leave_the_last_ones() -> None:
    table = CertaintyTable(2 * RECENT_TOKENS)
    slots = np.array([table.open()])
    steps = RECENT_TOKENS + 5
    table.add(slots, np.ones((steps, 1, 3)), np.arange(steps)[:, None])
    assert table.last_tokens(slots)[0].tolist() == list(range(steps - 1, 4, -1))


def test_a_long_branch_leaves_no_error_in_its_window() -> None:
    """A running float sum would keep the rounding of the large values that have left it."""
    table = CertaintyTable(4)
    slot = table.open()
    for value in [16000.123] * 500 + [0.1] * 4:
        add(table, [slot], [value])
    summary = table.summary(slot)
    assert summary is not None
    assert summary.tail == summary.lowest_group == mean([exact(float(np.float32(0.1)))])


def test_a_groups_sums_are_those_of_its_last_tokens() -> None:
    table = CertaintyTable(3)
    slot = table.open()
    for value in (0.0, 0.0, 5.0, 1.0, 0.0):
        add(table, [slot], [value])
    groups = table.groups(np.array([slot]))
    assert groups.tolist() == [[5, table.fixed_group(2.0), table.fixed_group(1.0)]]


@pytest.mark.parametrize(
    ("value", "counted"), [(math.inf, 1 << 14), (-math.inf, 0), (math.nan, 0), (-1.0, 0)]
)
def test_a_value_that_is_no_confidence_is_clipped(value: float, counted: float) -> None:
    table = CertaintyTable(2)
    slot = table.open()
    add(table, [slot], [value])
    summary = table.summary(slot)
    assert summary is not None and summary.mean == counted


def test_a_slot_that_was_used_before_starts_empty() -> None:
    table = CertaintyTable(2, initial_slots=1)
    slot = table.open()
    for _ in range(3):
        add(table, [slot], [9.0])
    table.close(slot)
    assert table.open() == slot
    assert table.summary(slot) is None
    assert (table.last_tokens(np.array([slot])) == -1).all()
    add(table, [slot], [1.0])
    summary = table.summary(slot)
    assert summary is not None and summary.lowest_group == summary.tail == 1.0


def test_growing_keeps_what_open_branches_have() -> None:
    table = CertaintyTable(2, initial_slots=2)
    first = table.open()
    add(table, [first], [3.0])
    others = [table.open() for _ in range(9)]
    assert table.capacity == 16 and len({first, *others}) == 10
    add(table, [first, *others], [5.0] * 10)
    summary = table.summary(first)
    assert summary is not None and (summary.tokens, summary.mean) == (2, 4.0)
    assert all(table.summary(slot).tokens == 1 for slot in others)  # type: ignore[union-attr]


def test_the_last_tokens_come_newest_first() -> None:
    table = CertaintyTable()
    slots = np.array([table.open()])
    for token in range(RECENT_TOKENS + 5):
        table.add(slots, np.zeros((1, 1, 3)), np.array([[token]]))
        if token == 1:
            assert table.last_tokens(slots)[0, :3].tolist() == [1, 0, -1]
    newest = RECENT_TOKENS + 4
    assert table.last_tokens(slots)[0].tolist() == list(range(newest, newest - RECENT_TOKENS, -1))


def test_a_log_probability_that_was_not_measured_is_none_and_others_are_averaged() -> None:
    table = CertaintyTable()
    slots = np.array([table.open()])
    table.add(slots, np.zeros((1, 1, 3)), slots[None])
    summary = table.summary(0)
    assert summary is not None and summary.logprob is None
    tokens = np.array([[1], [2]])
    table.add(slots, np.zeros((2, 1, 3)), tokens, np.array([[-1.0], [-2.0]]))
    summary = table.summary(0)
    assert summary is not None and summary.logprob == -1.5


def test_misuse_is_refused() -> None:
    table = CertaintyTable()
    slots = np.array([table.open()])
    one = (1, 1)
    for measures, tokens in (((1, 2, 3), one), ((1, 1, 2), one), ((1, 1, 3), (2, 1)), ((1, 3), 1)):
        with pytest.raises(ValueError, match="3 measures and one token per step and slot"):
            table.add(slots, np.zeros(measures), np.zeros(tokens, np.int64))
    for slot in (-1, 1, 10_000):
        with pytest.raises(ValueError, match="not open"):
            table.close(slot)
        with pytest.raises(ValueError, match="not open"):
            table.summary(slot)
    with pytest.raises(ValueError, match="group_tokens"):
        CertaintyTable(0)
