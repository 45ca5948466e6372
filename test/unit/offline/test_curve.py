from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import canonical_key
from sglang_dynasor.offline import CurvePoint, Sample, cheapest_equal, fixed_curve, full_vote
from sglang_dynasor.offline.curve import share_saved

reproducible = settings(derandomize=True, deadline=None, max_examples=200)


def problem(answers: str, n_tokens: int = 10) -> list[Sample]:
    return [Sample(answer.strip(), n_tokens) for answer in answers]


def test_the_curve_averages_over_rotations_and_problems() -> None:
    curve = fixed_curve([problem("aab"), problem("ccc", 40)], ["a", "d"], max_k=3)
    # aab, aba, baa: one vote is right twice of three, two votes too (ba goes to b), three always.
    assert curve == [
        CurvePoint(1, pytest.approx(1 / 3), 25.0),
        CurvePoint(2, pytest.approx(1 / 3), 50.0),
        CurvePoint(3, pytest.approx(1 / 2), 75.0),
    ]


def test_a_vote_is_right_where_its_canonical_key_is_the_gold_answers() -> None:
    samples = [Sample("0.5", 1), Sample(r"\frac{1}{2}", 1), Sample("50", 1)]
    assert [point.accuracy for point in fixed_curve([samples], ["1/2"], 1)] == [
        pytest.approx(2 / 3)
    ]


def test_empty_answers_win_nothing_even_where_the_gold_answer_is_empty() -> None:
    assert fixed_curve([problem("  ")], [""], 2)[1].accuracy == 0.0


@reproducible
@given(st.lists(st.sampled_from("abc "), min_size=1, max_size=8), st.data())
def test_the_curve_is_the_mean_full_vote_over_rotations(answers: list[str], data) -> None:
    samples = problem("".join(answers))
    k = data.draw(st.integers(1, len(samples)))
    rotations = [[*samples[i:], *samples[:i]][:k] for i in range(len(samples))]
    right = sum(canonical_key(full_vote(rotation)) == "a" for rotation in rotations)
    point = fixed_curve([samples], ["a"], k)[-1]
    assert point == CurvePoint(k, pytest.approx(right / len(samples)), 10.0 * k)


def test_where_nothing_was_to_be_spent_nothing_is_saved() -> None:
    assert float(share_saved(25, 100)) == 0.75
    assert float(share_saved(0, 0)) == 0.0
    assert share_saved([150, 0], np.array([100, 0])).tolist() == [-0.5, 0.0]
    assert share_saved([10, 30], 40).tolist() == [0.75, 0.25]


def test_the_cheapest_equal_is_the_first_point_as_accurate() -> None:
    curve = [CurvePoint(1, 0.8, 10), CurvePoint(2, 0.9, 20), CurvePoint(3, 0.95, 30)]
    assert cheapest_equal(curve, 0.7) == curve[0]
    assert cheapest_equal(curve, 0.9) == curve[1]
    assert cheapest_equal(curve, 0.9 + 1e-12) == curve[1]
    assert cheapest_equal(curve, 0.91) == curve[2]
    assert cheapest_equal(curve, 0.96) is None


@pytest.mark.parametrize(
    ("problems", "golds", "max_k", "message"),
    [
        ([], [], 1, "gold"),
        ([problem("a")], [], 1, "gold"),
        ([problem("a")], ["a"], 0, "max_k"),
        ([problem("aa"), problem("a")], ["a", "a"], 2, "max_k"),
    ],
)
def test_unusable_curves_are_refused(problems, golds, max_k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fixed_curve(problems, golds, max_k)
