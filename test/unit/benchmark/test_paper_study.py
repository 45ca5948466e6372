from __future__ import annotations

import random

import pytest

from paper_study import THRESHOLDS, Correlation, Study, study
from sglang_dynasor.offline import TraceProblem, TraceSample

POLICIES = ["even", "static", "initial curve", "5-step", "single-step", "dynamic curve"]


def problem(name: str, answers: str, n_tokens: int = 10, gold: str = "a") -> TraceProblem:
    samples = tuple(TraceSample(answer.strip(), n_tokens) for answer in answers)
    return TraceProblem(name, gold, "model", samples)


def mixed_problems(number: int = 30, branches: int = 12) -> list[TraceProblem]:
    """From easy to hard, the hard ones with longer answers."""
    rng = random.Random(11)
    problems = []
    for index in range(number):
        doubt = 0.6 * index / number
        answers = "".join(
            rng.choice("bc") if rng.random() < doubt else "a" for _ in range(branches)
        )
        problems.append(problem(str(index), answers, 10 + index))
    return problems


@pytest.fixture(scope="module")
def found() -> Study:
    return study(mixed_problems(), 12, shuffles=4)


def test_a_study_repeats_exactly(found: Study) -> None:
    assert study(mixed_problems(), 12, shuffles=4) == found


def test_a_signal_that_falls_with_difficulty_and_one_that_rises_both_predict(found: Study) -> None:
    assert [at.step for at in found.signals] == [3, 5, 8, 10]
    for at in found.signals:
        for signal in (at.certaindex, at.mean_length):
            assert signal.pearson is not None and 0.2 < signal.pearson <= 1
            assert signal.kendall is not None and 0.2 < signal.kendall <= 1


def test_answers_that_get_shorter_with_difficulty_predict_backwards() -> None:
    short = [problem(str(i), "aaaaaa", 100) for i in range(4)]
    short += [problem(str(i), "abababaa", 10) for i in range(4, 8)]
    correlation = study(short, 6, shuffles=5).signals[0].mean_length
    assert correlation.pearson is not None and correlation.pearson < 0


def test_problems_that_are_never_right_are_counted_and_left_out() -> None:
    problems = [problem("0", "aaaaa"), problem("1", "aabaa"), problem("2", "bbbbb")]
    found = study(problems, 5, shuffles=3)
    assert (found.problems, found.never_right, found.shuffles) == (3, 1, 3)
    assert [at.problems for at in found.signals] == [2.0, 2.0]
    assert found.signals[-1].stopped == pytest.approx(2 / 3)  # the wrong one is certain, too


def test_a_constant_signal_has_no_correlation() -> None:
    # Once all branches are seen the problems are equally certain; what they needed differs.
    last = study([problem(str(i), "aaabb") for i in range(8)], 5, shuffles=2).signals[-1]
    assert last.certaindex == last.mean_length == Correlation(None, None)


def test_nothing_predicts_oracle_steps_that_are_all_the_same() -> None:
    found = study([problem(str(i), "aaaaa", 10 + i) for i in range(4)], 5, shuffles=2)
    assert {at.mean_length for at in found.signals} == {Correlation(None, None)}


@pytest.mark.parametrize("answers", ["bbbbbbbb", "        ", "a"])
def test_a_trace_that_nothing_can_be_fitted_to_runs_all_branches(answers: str) -> None:
    found = study([problem("0", answers)], len(answers), shuffles=2)
    dynamic = found.ladder[-1]
    assert (dynamic.branches, dynamic.tokens_saved) == (len(answers), 0)
    assert all(at.certaindex == Correlation(None, None) for at in found.signals)


def test_a_stricter_threshold_never_saves_more(found: Study) -> None:
    assert [row.policy for row in found.thresholds] == [f"{value:.1f}" for value in THRESHOLDS]
    saved = [row.tokens_saved for row in found.thresholds]
    assert saved == sorted(saved, reverse=True)
    assert saved[0] > saved[-1] > 0


def test_harm_is_what_the_full_vote_had_right_and_the_policy_has_wrong(found: Study) -> None:
    even = found.ladder[0]
    for row in (*found.thresholds, *found.ladder):
        assert row.accuracy >= even.accuracy - row.harm - 1e-12
    assert (even.harm, even.tokens_saved, even.branches, even.rounds) == (0, 0, 12, 1)


def test_the_ladder_asks_more_often_and_never_takes_more_branches(found: Study) -> None:
    ladder = {row.policy: row for row in found.ladder}
    assert list(ladder) == POLICIES
    static, five, single = (ladder[name] for name in ("static", "5-step", "single-step"))
    assert single.branches < five.branches <= static.branches < 12
    assert single.rounds > five.rounds > static.rounds
    assert static.tokens_saved == found.thresholds[4].tokens_saved


def test_curves_are_fitted_on_the_other_half() -> None:
    # Only the last problem says that agreement may come late: fitted to itself it would be safe.
    problems = [*(problem(str(i), "aaaaaaaa") for i in range(9)), problem("late", "aaaabbbb")]
    ladder = {row.policy: row for row in study(problems, 8, shuffles=40).ladder}
    assert ladder["initial curve"].harm > 0
    assert ladder["even"].harm == 0


def test_a_vote_is_right_where_the_trace_labels_it_so_in_any_spelling() -> None:
    samples = [TraceSample("b", 10, correct=True), TraceSample("c", 10, correct=True)]
    found = study([TraceProblem("0", "a", "model", (*samples, samples[0]))], 3, shuffles=3)
    assert (found.never_right, found.ladder[0].accuracy) == (0, 1.0)


def test_empty_answers_are_never_right_even_where_the_gold_answer_is_empty() -> None:
    found = study([problem("0", "   ", gold="")], 3, shuffles=2)
    assert (found.never_right, found.ladder[0].accuracy) == (1, 0.0)


def test_a_problem_with_too_few_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="problem short has fewer than 4 samples"):
        study([problem("0", "aaaa"), problem("short", "aaa")], 4)


def test_empty_generations_are_studied_like_any_other() -> None:
    mixed = [problem("none", " " * 6, n_tokens=0), *mixed_problems(4, 6)]
    for problems in (mixed[:1], mixed):
        figures = study(problems, 6, shuffles=2)
        assert figures.ladder[0].tokens_saved == 0.0
