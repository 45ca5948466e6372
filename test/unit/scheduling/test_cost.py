"""Expected tokens of a branch: the program's own mean, shrunk toward that of its kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dynasor.scheduling.cost import COLD_START_TOKENS, TokenPrior, own_mean


def test_before_anything_has_finished_every_branch_is_expected_to_take_as_long() -> None:
    prior = TokenPrior()
    assert prior.tokens("a", 10) == prior.tokens("b", 4000) == COLD_START_TOKENS


def test_classes_are_learned_apart() -> None:
    prior = TokenPrior()
    prior.add("short", 10, 20)
    prior.add("long", 10, 900)
    assert prior.tokens("short", 10) == 20
    assert prior.tokens("long", 10) == 900
    assert prior.tokens("new", 10) == COLD_START_TOKENS


def test_longer_questions_may_have_longer_answers() -> None:
    prior = TokenPrior()
    for _ in range(50):
        prior.add("a", 20, 100)
        prior.add("a", 200, 300)
    assert prior.tokens("a", 20) < 110
    assert prior.tokens("a", 200) > 290
    assert prior.tokens("a", 2000) == pytest.approx(200)  # a length never seen: the class mean


def test_the_past_fades_when_the_workload_changes() -> None:
    prior = TokenPrior()
    for _ in range(5000):
        prior.add("a", 20, 100)
    for _ in range(2000):
        prior.add("a", 20, 400)
    assert prior.tokens("a", 20) > 390


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=300), st.floats(1, 10_000))
def test_the_own_mean_lies_between_prior_and_mean_and_comes_closer_with_each_branch(
    tokens: list[int], prior: float
) -> None:
    mean = sum(tokens) / len(tokens)
    shrunk = own_mean(len(tokens), sum(tokens), prior)
    assert min(mean, prior) - 1e-6 <= shrunk <= max(mean, prior) + 1e-6
    more = own_mean(2 * len(tokens), 2 * sum(tokens), prior)
    assert abs(more - mean) <= abs(shrunk - mean) + 1e-6


def test_a_program_without_finished_branches_goes_by_the_prior() -> None:
    assert own_mean(0, 0, 77.0) == 77.0
