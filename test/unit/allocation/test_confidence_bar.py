"""The running bar of DeepConf: which way round it is, and when it acts."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.allocation import ConfidenceBar
from sglang_dynasor.allocation.confidence_bar import BAR_MIN_BRANCHES
from sglang_dynasor.certaindex import keep_top_threshold

reproducible = settings(derandomize=True, deadline=None, max_examples=200)


def bar_of(values: list[float], keep_top: float) -> float | None:
    bar = ConfidenceBar()
    for value in values:
        bar.add(value)
    return bar.bar(keep_top)


@pytest.mark.parametrize(("keep_top", "bar"), [(0.1, 91), (0.9, 11), (0.5, 51)])
def test_the_kept_share_is_of_the_most_confident_branches(keep_top: float, bar: float) -> None:
    """Inverted, 0.1 would keep all but the least confident tenth, as one published version does."""
    values = [float(value) for value in range(1, 101)]
    assert bar_of(values, keep_top) == bar
    assert sum(value >= bar for value in values) == round(100 * keep_top)


@reproducible
@given(
    st.lists(st.floats(0, 40), min_size=BAR_MIN_BRANCHES, max_size=60),
    st.floats(0.07, 0.99),
    st.randoms(use_true_random=False),
)
def test_the_bar_is_the_exact_quantile_rounded_down_in_any_order(
    values: list[float], keep_top: float, mixer: random.Random
) -> None:
    exact = keep_top_threshold(values, keep_top)
    bar = bar_of(values, keep_top)
    assert bar is not None and bar <= exact < bar + 1 / 256
    mixer.shuffle(values)
    assert bar_of(values, keep_top) == bar


@pytest.mark.parametrize(("keep_top", "needed"), [(0.5, 16), (0.1, 16), (0.02, 50)])
def test_too_few_branches_prune_nothing(keep_top: float, needed: int) -> None:
    assert bar_of([1.0] * (needed - 1), keep_top) is None
    assert bar_of([1.0] * needed, keep_top) == 1.0


def prune_share(branches: int, count_pruned: bool) -> float:
    """The share that survives where each branch's lowest group is uniform in 10 to 11."""
    chance = random.Random(5)
    bar, kept = ConfidenceBar(), 0
    for branch in range(branches):
        lowest, level = chance.uniform(10, 11), bar.bar(0.2)
        if branch % 16 < 3 or level is None or lowest >= level:
            bar.add(lowest)  # the first branches of a program are never pruned
            kept += branch >= branches // 2 and level is not None and lowest >= level
        elif count_pruned:
            bar.add_pruned(level)
    return kept / (branches - branches // 2)


def test_pruned_branches_count_or_the_bar_would_run_away() -> None:
    assert prune_share(4000, count_pruned=True) == pytest.approx(0.2, abs=0.03)
    assert prune_share(4000, count_pruned=False) < 0.1


@pytest.mark.parametrize("keep_top", [0.0, 1.0, -0.1, 1.5])
def test_a_share_outside_its_range_is_refused(keep_top: float) -> None:
    with pytest.raises(ValueError, match="keep_top must be above 0 and below 1"):
        ConfidenceBar().bar(keep_top)


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="lowest_group"):
        ConfidenceBar().add(math.nan)
