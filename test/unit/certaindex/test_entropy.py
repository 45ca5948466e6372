from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import path_agreement, window_agreement

reproducible = settings(derandomize=True, deadline=None, max_examples=300)


@pytest.mark.parametrize(
    ("counts", "agreement"),
    [
        # The paper's operating points: dynasor-spec section 1.8.
        ((5,), 1.0),
        ((4, 1), 0.6891),
        ((3, 2), 0.5818),
        ((3, 1, 1), 0.4096),
        ((2, 2, 1), 0.3445),
        ((2, 1, 1, 1), 0.1723),
        ((1, 1, 1, 1, 1), 0.0),
        ((3,), 1.0),
        ((2, 1), 0.4206),
        ((15, 1), 0.9157),
        ((14, 2), 0.8641),
        ((14, 1, 1), 0.8329),
        ((9, 7), 0.7528),
        ((8, 8), 0.75),
        ((13, 1, 1, 1), 0.7516),
    ],
)
def test_path_agreement_matches_the_table(counts: tuple[int, ...], agreement: float) -> None:
    assert path_agreement(counts) == pytest.approx(agreement, abs=1e-4)


def test_eight_against_eight_is_exactly_three_quarters() -> None:
    assert path_agreement((8, 8)) == 0.75


@pytest.mark.parametrize("counts", [(), (0,), (1,), (1, 0)])
def test_one_path_or_none_is_no_evidence(counts: tuple[int, ...]) -> None:
    assert path_agreement(counts) == 0.0


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        path_agreement((3, -1))


@reproducible
@given(st.lists(st.integers(0, 512), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_path_agreement_is_the_normalised_entropy_in_any_order(counts: list[int], rng) -> None:
    n = sum(counts)
    shuffled = rng.sample(counts, len(counts))
    assert path_agreement(shuffled) == path_agreement(counts)
    assert 0.0 <= path_agreement(counts) <= 1.0
    assert path_agreement(counts) == round(path_agreement(counts), 9)
    if n > 1:
        entropy = -sum(c / n * math.log(c / n) for c in counts if c)
        expected = (math.log(n) - entropy) / math.log(n)
        assert path_agreement(counts) == pytest.approx(expected, abs=2e-9)


@pytest.mark.parametrize(
    ("answers", "window", "agreement"),
    [
        ([], 3, 0.0),
        (["4"], 3, 0.333333333),
        (["4", "4", "4"], 3, 1.0),
        (["4", "4.0", "8/2"], 3, 1.0),
        (["9", "4", "4", "4"], 3, 1.0),
        (["4", "5", "4"], 3, 0.666666667),
        (["4", "4", "5"], 3, 0.333333333),
        (["4", "", "4"], 3, 0.666666667),
        (["4", "4", ""], 3, 0.0),
        (["", "", ""], 3, 0.0),
        (["1", "4"], 1, 1.0),
    ],
)
def test_window_agreement_is_the_share_that_equals_the_last_answer(
    answers: list[str], window: int, agreement: float
) -> None:
    assert window_agreement(answers, window) == agreement


def test_a_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        window_agreement(["4"], 0)
