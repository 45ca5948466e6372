"""AUROC, its levels and intervals, against what can be counted by hand."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certainty_signals import CertaintyStudy, auroc, certainty_study
from sglang_dynasor.offline.traces import TraceProblem, TraceSample

reproducible = settings(derandomize=True, deadline=None, max_examples=200)


@reproducible
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), max_size=20))
def test_auroc_is_the_share_of_pairs_in_order(items: list[tuple[int, bool, int]]) -> None:
    repeated = [(signal, right) for signal, right, times in items for _ in range(times)]
    above = [signal for signal, right in repeated if right]
    below = [signal for signal, right in repeated if not right]
    wins = sum((a > b) + (a == b) / 2 for a, b in itertools.product(above, below))
    signal, right, times = (np.array([item[i] for item in items]) for i in range(3))
    found = auroc(signal.astype(float), right.astype(bool), times.astype(float))
    if not above or not below:
        assert found is None
    else:
        assert found == pytest.approx(wins / (len(above) * len(below)))


def sample(answer: str, confidence: float, n_tokens: int = 20, **more: float) -> TraceSample:
    fields = {"mean": confidence, "lowest_group": confidence, "tail": confidence}
    return TraceSample(answer, n_tokens, certainty=fields | more)


def problem(name: str, *samples: TraceSample) -> TraceProblem:
    return TraceProblem(name, "a", "m", samples)


def auroc_of(study: CertaintyStudy, level: str, signal: str) -> float | None:
    return next(s.auroc for s in study.signals if (s.level, s.signal) == (level, signal))


def test_within_a_problem_its_difficulty_does_not_count() -> None:
    """Confidence that only knows easy from hard helps to tell branches apart, but not to vote."""
    easy = problem("easy", *[sample("a", 9.0)] * 9, sample("b", 9.0))
    hard = problem("hard", *[sample("b", 1.0)] * 9, sample("a", 1.0))
    study = certainty_study([easy, hard], 10)
    assert auroc_of(study, "branch", "mean") == pytest.approx(0.9)
    assert auroc_of(study, "within problem", "mean") == 0.5
    assert auroc_of(study, "program", "mean") == 1.0


def test_agreement_does_not_count_a_branchs_own_vote() -> None:
    study = certainty_study([problem("p", sample("a", 1.0), sample("b", 1.0))], 2)
    assert auroc_of(study, "branch", "agreement") == 0.5
    pair = problem("p", sample("a", 1.0), sample("a", 1.0), sample("b", 1.0))
    assert auroc_of(certainty_study([pair], 3), "branch", "agreement") == 1.0


def test_length_and_entropy_are_turned() -> None:
    samples = (sample("a", 1.0, 10, entropy=0.1), sample("b", 1.0, 30, entropy=0.9))
    study = certainty_study([problem("p", *samples)], 2)
    for signal in ("length", "entropy"):
        assert auroc_of(study, "branch", signal) == 1.0
    assert "logprob" not in {row.signal for row in study.signals}


def test_a_branch_without_an_answer_is_in_no_auroc_of_branches() -> None:
    study = certainty_study([problem("p", sample("a", 5.0), sample("b", 4.0), sample("", 9.0))], 3)
    assert study.unanswered == 1
    assert auroc_of(study, "branch", "mean") == 1.0


def test_where_all_are_right_there_is_nothing_to_tell() -> None:
    study = certainty_study([problem("p", *[sample("a", 5.0)] * 3)], 3)
    assert {(row.auroc, row.low, row.high) for row in study.signals} == {(None, None, None)}


def test_votes_by_confidence_are_compared_with_the_majority() -> None:
    """Two confident right answers against three wrong ones."""
    samples = [sample("a", 9.0)] * 2 + [sample("b", 1.0)] * 3
    votes = {vote.vote: vote for vote in certainty_study([problem("p", *samples)], 5).votes}
    assert votes["majority"].accuracy == 0.0 and votes["majority"].gain == 0.0
    assert votes["weighted"].gain == votes["filtered, keep_top 0.1"].gain == 1.0


def test_the_interval_is_over_problems() -> None:
    """Copies of the same branches are no new evidence: the interval must not shrink."""
    chance = random.Random(3)
    problems = []
    for name in range(60):
        level = chance.gauss(0, 1)
        answers = ["a" if chance.gauss(level, 1) > 0 else "b" for _ in range(4)]
        problems.append(problem(str(name), *[sample(answer, 5 + level) for answer in answers]))
    copies = [problem(p.id, *p.samples, *p.samples) for p in problems]
    once, twice = (
        next(row for row in study.signals if (row.level, row.signal) == ("branch", "mean"))
        for study in (certainty_study(problems, 4), certainty_study(copies, 8))
    )
    assert once.low is not None and once.auroc is not None and once.high is not None
    assert 0.5 < once.low < once.auroc < once.high < 1
    assert (twice.low, twice.auroc, twice.high) == pytest.approx((once.low, once.auroc, once.high))


def test_samples_without_certainty_or_too_few_are_refused() -> None:
    with pytest.raises(ValueError, match="problem p has fewer than 3"):
        certainty_study([problem("p", sample("a", 1.0))], 3)
    with pytest.raises(ValueError, match="problem p has samples without token certainty"):
        certainty_study([problem("p", TraceSample("a", 5))], 1)
