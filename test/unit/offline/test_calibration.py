"""Calibration: its promise in 500 repetitions, its figures by hand, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sglang_dynasor import cli
from sglang_dynasor.allocation.profile import CalibrationProfile
from sglang_dynasor.allocation.profile_file import checkpoint_hash
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.models import default_model_path
from sglang_dynasor.offline.calibration import (
    SettingEffects,
    calibrate,
    choose,
    default_thresholds,
    harm_upper_bound,
    passed_settings,
    problems_needed,
    replay_settings,
)
from sglang_dynasor.offline.recorded_bar import recorded_bar
from sglang_dynasor.offline.traces import TraceCertainty, TraceProblem, TraceSample

REPETITIONS = 500
# Shares of the answers, the right one first: easy, contested, and hopeless problems.
KINDS = ((0.92, 0.05, 0.03), (0.5, 0.4, 0.1), (0.45, 0.3, 0.25), (0.3, 0.6, 0.1))
THRESHOLDS = (0.99, 0.97, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
TOO_HARMFUL = 4


def problem(answers: str, gold: str = "a", name: str = "p", n_tokens: int = 10) -> TraceProblem:
    samples = tuple(TraceSample(answer.strip(), n_tokens) for answer in answers)
    return TraceProblem(name, gold, "m", samples)


def population(size: int, branches: int, seed: int) -> list[TraceProblem]:
    random = np.random.default_rng(seed)
    problems = []
    for number in range(size):
        shares = KINDS[random.integers(len(KINDS))]
        answers = "".join(random.choice(list("abc"), size=branches, p=shares))
        problems.append(problem(answers, name=str(number)))
    return problems


def replayed(
    problems: list[TraceProblem], rule: str, thresholds: Any, **changes: Any
) -> SettingEffects:
    options = {"min_branches": 1, "max_branches": len(problems[0].samples), "seed": 0} | changes
    return replay_settings(problems, rule, thresholds, **options)


@pytest.fixture(scope="module")
def pools() -> dict[str, SettingEffects]:
    problems = population(1500, 12, seed=1)
    return {rule: replayed(problems, rule, THRESHOLDS) for rule in ("beta", "dynasor")}


@pytest.mark.parametrize("rule", ["beta", "dynasor"])
@pytest.mark.parametrize(("n", "confidence"), [(250, 0.9), (120, 0.8)])
def test_the_promise_holds_in_500_repetitions(
    pools: dict[str, SettingEffects], rule: str, n: int, confidence: float
) -> None:
    """Problems drawn with replacement come from the pool's own distribution: its mean is exact."""
    harm = pools[rule].harm
    true_harm = harm.mean(axis=1)
    # As mean as can be: the first setting that is too harmful is so by a hair.
    max_harm = float(true_harm[TOO_HARMFUL]) - 1e-6
    assert true_harm[TOO_HARMFUL - 1] < max_harm < true_harm[TOO_HARMFUL + 1]
    random = np.random.default_rng(2)
    broken = naively_broken = promised = 0
    for _ in range(REPETITIONS):
        harms = harm[:, random.integers(harm.shape[1], size=n)].sum(axis=1)
        passed = passed_settings(harms, n, max_harm, confidence)
        promised += passed > 0
        broken += passed > 0 and true_harm[passed - 1] > max_harm
        naive = np.flatnonzero(harms <= n * max_harm)
        naively_broken += naive.size > 0 and true_harm[naive[-1]] > max_harm
    allowed = stats.binom.ppf(0.999, REPETITIONS, 1 - confidence)
    assert 0 < broken <= allowed
    assert promised > REPETITIONS / 2
    assert naively_broken > 1.5 * allowed  # what the test is for: the plain mean breaks its word


@pytest.mark.parametrize(
    ("harms", "passed"),
    [
        ([0, 0, 0], 3),
        ([0, 1, 0], 1),  # what lies behind the first failure is never tested
        ([1, 0, 0], 0),
    ],
)
def test_testing_stops_at_the_first_failure(harms: list[int], passed: int) -> None:
    assert passed_settings(np.array(harms), 299, 0.01, 0.95) == passed


@pytest.mark.parametrize(
    ("max_harm", "confidence", "needed"), [(0.01, 0.95, 299), (0.05, 0.95, 59), (0.01, 0.9, 230)]
)
def test_one_problem_fewer_than_needed_promises_nothing(
    max_harm: float, confidence: float, needed: int
) -> None:
    assert problems_needed(max_harm, confidence) == needed
    none = np.zeros(1, int)
    assert passed_settings(none, needed, max_harm, confidence) == 1
    assert passed_settings(none, needed - 1, max_harm, confidence) == 0


@pytest.mark.parametrize("harm", [0, 1, 4, 17, 1000])
def test_the_bound_is_the_inverse_of_the_binomial_tail(harm: int) -> None:
    bound = harm_upper_bound(harm, 1000, 0.95)
    if harm == 1000:
        assert bound == 1.0
    else:
        assert stats.binom.cdf(harm, 1000, bound) == pytest.approx(0.05)


def test_a_setting_passes_exactly_where_its_bound_is_within_the_limit() -> None:
    for harm in range(20):
        passes = passed_settings(np.array([harm]), 500, 0.02, 0.95) == 1
        assert passes == (harm_upper_bound(harm, 500, 0.95) <= 0.02)


def test_tokens_are_those_of_the_branches_that_were_used() -> None:
    outcomes = replayed([problem("aaaaaa"), problem("      ")], "beta", [1.0, 0.6], min_branches=3)
    assert outcomes.full_tokens.tolist() == [60, 60]
    assert outcomes.tokens.tolist() == [[60, 60], [30, 60]]


def test_an_early_stop_on_the_wrong_answer_is_harm_and_on_the_right_one_gain() -> None:
    problems = [problem("aaabb", gold=gold, name=gold) for gold in "ab"] * 40
    outcomes = replayed(problems, "beta", [0.6])  # the first sample decides
    shares = [outcomes.harm[0, 0::2].mean(), outcomes.gain[0, 1::2].mean()]
    assert shares == pytest.approx([0.4, 0.4], abs=0.2)
    assert not outcomes.harm[0, 1::2].any() and not outcomes.gain[0, 0::2].any()


@pytest.mark.parametrize(
    ("label", "gold", "right"), [(True, "z", True), (False, "x", False), (None, "x", True)]
)
def test_labels_of_the_trace_come_before_its_gold_answer(
    label: bool | None, gold: str, right: bool
) -> None:
    # y wins the full vote and is wrong; a stop after one sample that is x gains where x is right.
    samples = (TraceSample("x", 1, label), *[TraceSample("y", 1, False)] * 2)
    outcomes = replayed([TraceProblem("p", gold, "m", samples)] * 60, "beta", [0.6])
    assert outcomes.gain.any() == right


def test_no_answer_is_never_right() -> None:
    outcomes = replayed([problem("   ", gold="")], "beta", [0.6])
    assert not outcomes.harm.any() and not outcomes.gain.any()


def test_the_seed_alone_decides_the_order() -> None:
    problems = population(60, 8, seed=3)
    first, again = (replayed(problems, "beta", THRESHOLDS, max_branches=5) for _ in range(2))
    other = replayed(problems, "beta", THRESHOLDS, max_branches=5, seed=1)
    assert np.array_equal(first.tokens, again.tokens)
    assert not np.array_equal(first.tokens, other.tokens)


def test_the_last_accepted_setting_is_returned_with_its_figures() -> None:
    harm = np.zeros((3, 300), bool)
    harm[1:, :2] = harm[2, :9] = True
    tokens = np.repeat([[80], [50], [20]], 300, axis=1)
    outcomes = SettingEffects(harm, np.roll(harm, 50, axis=1), tokens, np.full(300, 100))
    result = choose(outcomes, (0.9, 0.8, 0.7), max_harm=0.03, confidence=0.95)
    assert (result.threshold, result.harm, result.gain, result.n) == (0.8, 2, 2, 300)
    assert result.harm_bound == harm_upper_bound(2, 300, 0.95)
    assert result.tokens_saved == pytest.approx(0.5)
    assert [setting.promised for setting in result.tested] == [True, True, False]
    assert result.verdict == "threshold 0.8 keeps harm of at most 3% with 95% confidence"


def test_too_few_problems_and_too_much_harm_are_told_apart() -> None:
    few = calibrate(
        population(40, 8, seed=4),
        "beta",
        default_thresholds("beta"),
        min_branches=3,
        max_branches=8,
        max_harm=0.01,
        confidence=0.95,
        seed=0,
    )
    assert (few.threshold, few.problems_needed, len(few.tested)) == (None, 299, 1)
    assert "40 problems are too few" in few.verdict
    assert "299" in few.verdict
    zeros = np.zeros((1, 300), bool)
    harmful = SettingEffects(~zeros, zeros, np.ones((1, 300), int), np.ones(300, int))
    assert (
        "harmed 300 of them, so its harm may be up to 100.00%"
        in choose(harmful, (0.9,), 0.01, 0.95).verdict
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_harm": 0.0}, "max_harm"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": float("nan")}, "confidence"),
        ({"min_branches": 9}, "min_branches"),
        ({"max_branches": 9}, "problem p has 3 samples"),
        ({"rule": "decided"}, "threshold"),
        ({"thresholds": ()}, "thresholds"),
        ({"problems": []}, "problems"),
    ],
)
def test_unusable_options_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {
        "problems": [problem("aab")],
        "rule": "beta",
        "thresholds": (0.9,),
        "min_branches": 1,
        "max_branches": 3,
        "max_harm": 0.1,
        "confidence": 0.9,
        "seed": 0,
    }
    with pytest.raises(ValueError, match=message):
        calibrate(**options | changes)


@pytest.mark.parametrize("rule", ["threshold", "beta", "dynasor"])
def test_the_default_sequences_go_from_careful_to_saving(rule: str) -> None:
    thresholds = default_thresholds(rule)
    assert list(thresholds) == sorted(thresholds, reverse=True)
    saved = [
        setting.tokens_saved
        for setting in choose(
            replayed(population(30, 8, seed=5), rule, thresholds, min_branches=3),
            thresholds,
            max_harm=0.9,
            confidence=0.5,
        ).tested
    ]
    assert saved == sorted(saved)


def written(path: Path, problems: list[TraceProblem]) -> Path:
    with path.open("w") as file:
        for item in problems:
            samples = [{"answer": s.answer, "n_tokens": s.n_tokens} for s in item.samples]
            row = {"id": item.id, "gold": item.gold, "model": item.model, "samples": samples}
            file.write(json.dumps(row) + "\n")
    return path


def calibrated(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, dict[str, Any]]:
    code = cli.main(["calibrate", *map(str, arguments)])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_command_writes_a_profile_bound_to_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = [problem("a" * 8, name=str(number)) for number in range(60)]
    traces, out = written(tmp_path / "traces.jsonl", problems), tmp_path / "profile.json"
    options = ("--traces", traces, "--max-harm", 0.05, "--out", out)
    code, summary = calibrated(capsys, *options, "--model-path", default_model_path())
    profile = CalibrationProfile.read(out)
    assert (code, summary["profile"], summary["n"]) == (0, str(out), 60)
    assert (profile.rule, profile.threshold) == ("dynasor", summary["threshold"])
    assert (profile.min_branches, profile.max_branches, profile.problems) == (3, 8, 60)
    checkpoint = checkpoint_hash(default_model_path())
    assert (profile.model, profile.checkpoint_sha256) == ("tiny_reasoner", checkpoint)

    code, _ = calibrated(capsys, *options)
    assert (code, CalibrationProfile.read(out).model) == (0, "m")
    assert CalibrationProfile.read(out).checkpoint_sha256 is None


def test_the_command_says_when_nothing_can_be_promised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traces, out = written(tmp_path / "traces.jsonl", [problem("aaa")]), tmp_path / "profile.json"
    code, summary = calibrated(capsys, "--traces", traces, "--out", out)
    assert (code, summary["profile"], summary["threshold"]) == (3, None, None)
    assert not out.exists()


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ("mn", (), "one model, not of m, n"),
        ("m", ("--model-path", "absent"), "safetensors"),
        ("m", ("--max-branches", "0"), "min_branches"),
    ],
)
def test_the_command_refuses_what_it_cannot_bind_or_replay(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    models: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    problems = [TraceProblem(model, "a", model, (TraceSample("a", 1),) * 3) for model in models]
    traces = written(tmp_path / "traces.jsonl", problems)
    assert cli.main(["calibrate", "--traces", str(traces), *options]) == 2
    assert message in capsys.readouterr().err


def measured(answers: str, lowest: list[float], n_tokens: int = 20) -> TraceProblem:
    samples = tuple(
        TraceSample(answer, n_tokens, certainty={"lowest_group": value})
        for answer, value in zip(answers, lowest, strict=True)
    )
    return TraceProblem("p", "a", "m", samples, TraceCertainty(20, 16))


@pytest.mark.parametrize(("keep_top", "bar"), [(0.1, 10.0), (0.9, 2.0)])
def test_the_bar_keeps_the_most_confident_branches(keep_top: float, bar: float) -> None:
    lowest = [float(value) for value in range(1, 11)]
    short = measured("a" * 10, [99.0] * 10, n_tokens=15)  # no full group: it can't be pruned
    problems = [measured("a" * 10, lowest), replace(short, id="short")]
    assert recorded_bar(problems, keep_top) == (bar, 16)


def test_a_bar_needs_certainty_in_groups_of_one_size() -> None:
    one = measured("a", [1.0])
    with pytest.raises(ValueError, match="problem p has none"):
        recorded_bar([problem("ab")], 0.5)
    other = replace(one, certainty=TraceCertainty(20, 32))
    with pytest.raises(ValueError, match=r"keep_top .*groups of .16, 32"):
        recorded_bar([one, other], 0.5)


def test_pruned_branches_have_no_vote_behind_the_first_and_their_tokens_count() -> None:
    """All four votes are a tie that the first branch wins; pruned, the rest outvotes it."""
    tie = measured("bbaa", [1.0, 1.0, 9.0, 9.0])
    full = replayed([tie], "decided", (None,))
    pruned = replayed([tie], "decided", (None,), bar=5.0)
    assert not full.gain.any() and not full.harm.any()
    assert pruned.full_tokens == [80] and pruned.tokens <= 80
    orders = [replayed([tie], "decided", (None,), bar=5.0, seed=seed) for seed in range(20)]
    assert any(outcome.gain.any() for outcome in orders)
    assert not any(outcome.harm.any() for outcome in orders)


def test_a_profile_with_a_bar_prunes_unless_the_operator_names_a_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {
            "id": number,
            "gold": "a",
            "model": "m",
            "certainty": {"k": 20, "group_tokens": 16},
            "samples": [
                {"answer": "a", "n_tokens": 20, "certainty": {"lowest_group": 5.0 + number % 10}}
            ]
            * 8,
        }
        for number in range(100)
    ]
    traces, out = tmp_path / "t.jsonl", tmp_path / "p.json"
    traces.write_text("\n".join(map(json.dumps, lines)))
    code, summary = calibrated(
        capsys, "--traces", traces, "--max-harm", 0.05, "--keep-top", 0.9, "--out", out
    )
    assert code == 0 and summary["confidence_bar"] == 6.0
    config = DynasorConfig.parse({"profile": str(out)})
    assert (config.branch_rule, config.confidence_bar) == ("deepconf", 6.0)
    assert (config.keep_top, config.certainty_group_tokens) == (0.9, 16)
    own = DynasorConfig.parse({"profile": str(out), "keep_top": 0.5})
    assert (own.branch_rule, own.confidence_bar) == ("none", None)


def test_calibration_replays_offers_and_rounds_as_they_are_served() -> None:
    random = np.random.default_rng(7)
    problems = []
    for same_lengths in population(30, 12, seed=7):
        lengths = random.integers(1, 99, size=12).tolist()
        pairs = zip(same_lengths.samples, lengths, strict=True)
        samples = tuple(replace(sample, n_tokens=length) for sample, length in pairs)
        problems.append(replace(same_lengths, samples=samples))
    offered, rounds = (replayed(problems, "esc", (None,), offers=o) for o in (True, False))
    assert (offered.tokens != rounds.tokens).any()
    assert (offered.full_tokens == rounds.full_tokens).all()


def test_answers_that_algebra_finds_equal_are_one_in_the_vote_and_in_its_judgement() -> None:
    def algebra() -> Callable[[str], str]:
        return lambda answer: {"1+x": "x+1"}.get(answer, answer)

    samples = tuple(TraceSample(answer, 1) for answer in ("9", "9", "x+1", "1+x", "x+1"))
    problems = [TraceProblem("p", "1+x", "m", samples)]
    # The full vote is right, so stopping at a 9 is harm; by spelling only, it never is.
    grouped = [replayed(problems, "beta", (0.6,), key_of=algebra, seed=s) for s in range(20)]
    spelled = [replayed(problems, "beta", (0.6,), seed=seed) for seed in range(20)]
    assert any(effects.harm.any() for effects in grouped)
    assert not any(effects.harm.any() for effects in spelled)


def test_a_lower_threshold_is_calibrated_with_the_harm_of_both_sides() -> None:
    thresholds = default_thresholds("hopeless")
    assert list(thresholds) == sorted(thresholds) and thresholds[0] == 0
    effects = replayed(population(200, 12, seed=6), "hopeless", thresholds, min_branches=3)
    tokens = effects.tokens.sum(axis=1)
    assert list(tokens) == sorted(tokens, reverse=True) and tokens[-1] < tokens[0]
    harms = effects.harm.sum(axis=1)
    assert harms[-1] > harms[0]
    chosen = choose(effects, thresholds, max_harm=0.5, confidence=0.9)
    assert chosen.threshold is not None and chosen.threshold > 0


def test_empty_generations_are_calibrated_on_like_any_other() -> None:
    problems = [problem(" " * 5, n_tokens=0, name=str(number)) for number in range(3)]
    result = choose(replayed(problems, "beta", [0.9]), [0.9], max_harm=0.5, confidence=0.5)
    assert (result.tokens_saved, result.harm) == (0.0, 0)
