"""The pure parts of the overhead benchmark."""

from __future__ import annotations

from argparse import Namespace

import pytest

from overhead import ARMS, consume_us_per_row, median_interval, summarise

OPTIONS = Namespace(batch=4, tokens=10, seed=0)


def test_ratios_are_throughput_over_that_with_the_plugin_off() -> None:
    times = {
        "off": [(1.0, 0.5), (2.0, 1.0), (4.0, 2.0)],  # the machine grows slower: pairs cancel it
        "idle": [(1.0, 0.5), (2.0, 1.0), (4.0, 2.0)],
        "certainty": [(2.0, 0.625), (4.0, 1.25), (8.0, 2.5)],
    }
    rows = {row["arm"]: row for row in summarise("tiny_reasoner", times, OPTIONS)}
    assert list(rows) == list(ARMS)
    assert rows["off"]["tokens_per_second"] == 20
    assert rows["idle"]["ratio"] == 1
    assert (rows["certainty"]["ratio"], rows["certainty"]["cpu_ratio"]) == (0.5, 0.8)
    assert (rows["certainty"]["low"], rows["certainty"]["high"]) == (0.5, 0.5)


def test_the_interval_holds_the_median_and_repeats_by_its_seed() -> None:
    values = [1.0, 1.1, 0.9, 1.05, 0.95, 3.0]
    middle, low, high = median_interval(values, seed=1)
    assert 0.9 <= low <= middle <= high <= 3.0
    assert middle == pytest.approx(1.025)
    assert median_interval(values, seed=1) == (middle, low, high)


def test_host_work_per_row_does_not_grow_with_the_batch() -> None:
    small, large = (max(consume_us_per_row(batch, calls=200).values()) for batch in (32, 256))
    assert large < small < 30  # the bar of 3 is the benchmark's to check, on a quiet machine
