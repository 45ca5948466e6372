"""Arrivals, figures, intervals and the search of the serving benchmark, without an engine."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_load import (
    Counted,
    Outcome,
    attainment,
    counted_from,
    figures,
    geometric_mean,
    highest_rate,
    poisson_arrivals,
    ratio_of,
    steady_rate,
    trace_arrivals,
)


def program(
    latency_s: float, finished: bool = True, tokens: int = 100, right: bool = True
) -> Counted:
    return Counted(Outcome(finished, latency_s, tokens, 0, "1"), deadline_s=2.0, right=right)


def test_poisson_arrivals_have_the_rate_and_scale_with_it() -> None:
    slow, fast = poisson_arrivals(4000, 2.0, seed=3), poisson_arrivals(4000, 8.0, seed=3)
    assert slow == sorted(slow)
    assert slow[-1] == pytest.approx(2000, rel=0.05)
    assert fast == pytest.approx([at / 4 for at in slow])
    gaps = np.diff(slow)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as exponential ones are
    assert poisson_arrivals(10, 2.0, seed=4) != slow[:10]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{second}.6805900,374,44" for second in (46, 47, 51, 52, 53, 59)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    return path


def test_recorded_arrivals_keep_their_pattern_at_the_rate_asked_for(trace: Path) -> None:
    # Of six rows, five arrivals follow the first: there is one stretch, whatever the seed.
    for seed in range(3):
        arrivals = trace_arrivals(trace, 5, rate=0.5, seed=seed)
        assert arrivals == pytest.approx([at * 10 / 13 for at in (1, 5, 6, 7, 13)])


def test_a_short_or_foreign_trace_is_refused_by_name(trace: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--arrivals: .*trace.csv has 6 rows, 7 are needed"):
        trace_arrivals(trace, 6, rate=1.0, seed=0)
    other = tmp_path / "other.csv"
    other.write_text("timestamp\n1\n")
    with pytest.raises(ValueError, match="TIMESTAMP"):
        trace_arrivals(other, 1, rate=1.0, seed=0)


def test_the_first_tenth_does_not_count() -> None:
    assert [counted_from(count) for count in (1, 10, 11, 200, 300)] == [1, 1, 2, 20, 30]


def test_an_unfinished_program_has_missed_its_deadline_and_is_wrong() -> None:
    programs = [program(1.0), program(2.0), program(2.1), program(0.5, finished=False)]
    assert attainment(programs) == 0.5
    assert attainment(programs, scale=2.0) == 0.75
    row = figures(programs)
    assert row["accuracy"] == 0.75
    assert row["unfinished"] == 1
    assert row["mean_latency_s"] == pytest.approx(1.4)
    assert row["p50_latency_s"] == pytest.approx(1.5)


def test_fairness_is_one_where_all_wait_in_proportion_to_their_own_tokens() -> None:
    alike = [program(tokens / 50, tokens=tokens) for tokens in (10, 100, 1000)]
    assert figures(alike)["fairness"] == pytest.approx(1.0)
    favoured = [*alike, program(40.0, tokens=100)]
    assert figures(favoured)["fairness"] > 2.0


def test_a_closed_loop_counts_only_while_all_places_are_taken() -> None:
    # Two a second; the stragglers after the last start are slow, the first tenth is late.
    ended = [9.0, 9.5, *[10 + i / 2 for i in range(18)], 30.0, 50.0]
    assert steady_rate(ended, last_start_s=19.0) == pytest.approx(2.0)
    assert steady_rate([1.0, 4.0], last_start_s=0.0) == 0.5


@given(
    truth=st.floats(0.3, 7.0),
    known=st.lists(st.floats(0.5, 3.0), min_size=1, max_size=4, unique=True),
)
def test_the_search_ends_within_five_percent_below_the_truth(
    truth: float, known: list[float]
) -> None:
    asked: list[float] = []

    def attainment_at(rate: float) -> float:
        asked.append(rate)
        return 1.0 if rate <= truth else 0.5

    points = {rate: 1.0 if rate <= truth else 0.5 for rate in known}
    found = highest_rate(attainment_at, points)
    if found:
        assert truth / 1.0501 <= found <= truth
    else:  # down to a quarter of the known rates, in steps of 1.5
        assert truth < min(known) / 4 * 1.5
    assert len(asked) == len(set(asked)) <= 20
    assert set(asked) <= set(points)


def test_the_search_gives_up_where_no_rate_or_every_rate_will_do() -> None:
    assert highest_rate(lambda rate: 0.0, {1.0: 0.0}) == 0.0
    assert highest_rate(lambda rate: 1.0, {1.0: 1.0}) >= 16


def test_a_miss_below_a_rate_that_met_the_target_is_not_believed() -> None:
    points = {1.0: 0.5, 2.0: 1.0, 3.0: 0.5}
    assert 2.0 <= highest_rate(lambda rate: float(rate < 2.5), points) < 2.5


def test_one_seed_is_bootstrapped_and_several_have_students_interval() -> None:
    rng = np.random.default_rng(0)
    base = [rng.exponential(2.0, 200) for _ in range(5)]
    ours = [seconds * 0.7 for seconds in base]
    one = ratio_of(ours[:1], base[:1], np.mean)
    assert (one.value, one.low, one.high) == pytest.approx((0.7, 0.7, 0.7))  # paired: no spread
    noisy = [rng.exponential(1.4, 200) for _ in range(5)]
    for count in (1, 5):
        ratio = ratio_of(noisy[:count], base[:count], np.mean)
        assert 0.5 < ratio.low < ratio.value < ratio.high < 1.0


def test_the_geometric_mean_of_one_ratio_has_no_interval() -> None:
    ratio = geometric_mean([math.log(2.0)])
    assert ratio.value == pytest.approx(2.0)
    assert math.isnan(ratio.low) and math.isnan(ratio.high)
    pair = geometric_mean([math.log(1.0), math.log(4.0)])
    assert pair.value == pytest.approx(2.0)
    assert pair.low < 1.0 and pair.high > 4.0
