"""Calibration: the most saving threshold whose harm is bounded, by learn-then-test.

Angelopoulos, Bates, Candes, Jordan, Lei: "Learn then Test", arXiv 2110.01052 (2021).

Each problem gives one harm indicator per setting: the full vote is right and ours is wrong. For
independent problems their sum is binomial, so P(Bin(n, max_harm) <= harm) is an exact p-value of
"this setting's true harm exceeds max_harm". The settings are tested in an order that was fixed
before any data was seen, and testing ends with the first that fails. Then no correction for the
number of tests is needed: a wrong acceptance takes passing the first setting of the sequence that
is truly too harmful, whose test errs with probability 1 - confidence at most, and whatever comes
behind it is only reached through that one.

The promise is for the process that is replayed: the very program that serves, with its offers or
rounds, its grouping and its branches at one speed, on an engine that draws nothing beyond what the
vote needs (`speculative_share` 0). Where idle places are drawn, or branches run at different
speeds, other branches end first, and the bound is an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sglang_dynasor.allocation import AdaptiveGrants, make_rule
from sglang_dynasor.certaindex import canonical_key
from sglang_dynasor.offline.curve import share_saved
from sglang_dynasor.offline.recorded_bar import is_below
from sglang_dynasor.offline.replay import Contender, Sample, Samples, full_vote
from sglang_dynasor.offline.traces import TraceProblem, TraceSample, right_keys

_POSTERIORS = (
    *(0.999, 0.998, 0.995, 0.99, 0.98, 0.97, 0.96, 0.95, 0.93),
    *(0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6),
)
_CERTAINDICES = tuple(round(1 - 0.05 * step, 2) for step in range(15))  # 1.0 down to 0.3
_LOWER = tuple(round(0.05 * step, 2) for step in range(13))  # a lower threshold, 0.0 up to 0.6
KeyOf = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class SettingEffects:
    """What each setting (rows, most careful first) does to each problem (columns).

    `harm`: the full vote is right and the setting's answer wrong; `gain`: the reverse. `tokens`
    are those the setting spends, `full_tokens` (one per problem) those of every branch.
    """

    harm: NDArray[np.bool_]
    gain: NDArray[np.bool_]
    tokens: NDArray[np.int64]
    full_tokens: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SettingResult:
    """One row of the sequence: counts of problems, exact bound of harm, share of tokens saved.

    `harm_bound` (0 to 1) is the setting's own one-sided bound; `promised` says that its test and
    all before it passed.
    """

    threshold: float
    harm: int
    gain: int
    harm_bound: float
    tokens_saved: float
    promised: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """The last setting that passed, or `threshold` None where not even the first did.

    In that case the figures are those of the first, most careful setting. `problems_needed` is
    the fewest problems with which a setting without any harm passes. `tested` ends with the
    setting that failed, if one did.
    """

    threshold: float | None
    harm: int
    gain: int
    n: int
    harm_bound: float
    tokens_saved: float
    max_harm: float
    confidence: float
    problems_needed: int
    tested: tuple[SettingResult, ...]

    @property
    def verdict(self) -> str:
        """What is promised, or why nothing is, in one sentence."""
        promise = (
            f"harm of at most {100 * self.max_harm:g}% with {100 * self.confidence:g}% confidence"
        )
        if self.threshold is not None:
            return f"threshold {self.threshold:g} keeps {promise}"
        if self.n < self.problems_needed:
            return (
                f"{self.n} problems are too few to promise {promise}: "
                f"that needs at least {self.problems_needed}, even if none is harmed"
            )
        return (
            f"{self.n} problems do not promise {promise}: the most careful threshold harmed "
            f"{self.harm} of them, so its harm may be up to {self.harm_bound:.2%}"
        )


def default_thresholds(rule: str) -> tuple[float, ...]:
    """Return the sequence for a rule: certaindices for "threshold" and, from below, for "hopeless";
    posteriors for the others."""
    if rule == "hopeless":
        return _LOWER
    return _CERTAINDICES if rule == "threshold" else _POSTERIORS


def calibrate(
    problems: Sequence[TraceProblem],
    rule: str,
    thresholds: Sequence[float],
    *,
    min_branches: int,
    max_branches: int,
    max_harm: float,
    confidence: float,
    seed: int,
    bar: float | None = None,
    offers: bool = True,
    key_of: Callable[[], KeyOf] = lambda: canonical_key,
) -> Calibration:
    """Return the most saving of `thresholds` that harms at most `max_harm` of problems.

    `thresholds` go from most careful to most saving and must not come from these problems. The
    promise holds with `confidence`, for independent problems like these and programs of
    `max_branches`; `max_harm` and `confidence` are within 0 and 1, both excluded. `bar` is that of
    `recorded_bar`, where branches below it are to be pruned: it looks at no label, so
    taking it from the same problems does not bend the promise. `offers` and `key_of` are those of
    `replay_settings`. Raises ValueError as `replay_settings` and `choose` do.
    """
    effects = replay_settings(
        problems,
        rule,
        thresholds,
        min_branches=min_branches,
        max_branches=max_branches,
        seed=seed,
        bar=bar,
        offers=offers,
        key_of=key_of,
    )
    return choose(effects, thresholds, max_harm, confidence)


def replay_settings(
    problems: Sequence[TraceProblem],
    rule: str,
    thresholds: Sequence[float],
    *,
    min_branches: int,
    max_branches: int,
    seed: int,
    bar: float | None = None,
    offers: bool = True,
    key_of: Callable[[], KeyOf] = lambda: canonical_key,
) -> SettingEffects:
    """Replay every setting on one seeded ordering of each problem's samples.

    One ordering, because several of one problem are not independent evidence. An answer is right
    where the trace labels it so, or where it equals the gold answer and labels are missing.
    Behind the first `min_branches`, a branch whose lowest group is below `bar` nats has no vote;
    the full vote is that of all branches. `offers`: branches start as with `draw: offer`, else in
    rounds. `key_of` gives the grouping of a new problem: that of the answers as they are served.
    Raises ValueError naming the field: for a problem with
    fewer than `max_branches` samples, and for settings that the rule refuses.
    """
    if not 1 <= min_branches <= max_branches:
        raise ValueError(f"min_branches must be between 1 and {max_branches}, not {min_branches}")
    rules = [make_rule(rule, threshold=item, min_branches=min_branches) for item in thresholds]
    shape = (len(rules), len(problems))
    harm, gain = np.zeros(shape, bool), np.zeros(shape, bool)
    tokens = np.zeros(shape, np.int64)
    full_tokens = np.zeros(len(problems), np.int64)
    random = np.random.default_rng(seed)
    for column, problem in enumerate(problems):
        recorded = _drawn(problem, max_branches, random)
        samples = [Sample(item.answer, item.n_tokens, item.correct) for item in recorded]
        pruned = [
            replace(sample, pruned=index >= min_branches and is_below(bar, item, problem))
            for index, (sample, item) in enumerate(zip(samples, recorded, strict=True))
        ]
        group = key_of()
        right = right_keys(problem, group)
        full_right = group(full_vote(samples, group)) in right
        replayed = Samples(pruned, group)
        full_tokens[column] = sum(sample.n_tokens for sample in samples)
        for row, stop_rule in enumerate(rules):
            contender = Contender(stop_rule, AdaptiveGrants(stop_rule), offers)
            run = replayed.replay(contender)
            is_right = group(run.outcome.answer) in right
            harm[row, column] = full_right and not is_right
            gain[row, column] = is_right and not full_right
            tokens[row, column] = run.tokens
    return SettingEffects(harm, gain, tokens, full_tokens)


def choose(
    effects: SettingEffects, thresholds: Sequence[float], max_harm: float, confidence: float
) -> Calibration:
    """Test the settings in their order and return the last one before a failure.

    Raises ValueError for no setting or no problem, and for fractions out of their range.
    """
    settings, n = effects.harm.shape
    if not settings or settings != len(thresholds) or not n:
        raise ValueError(f"thresholds and problems must not be empty: {settings} of {n}")
    harms = effects.harm.sum(axis=1)
    passed = passed_settings(harms, n, max_harm, confidence)
    gains = effects.gain.sum(axis=1)
    saved = share_saved(effects.tokens.sum(axis=1), effects.full_tokens.sum())
    tested = tuple(
        SettingResult(
            threshold=thresholds[row],
            harm=int(harms[row]),
            gain=int(gains[row]),
            harm_bound=harm_upper_bound(int(harms[row]), n, confidence),
            tokens_saved=float(saved[row]),
            promised=row < passed,
        )
        for row in range(min(passed + 1, settings))
    )
    last = tested[max(passed - 1, 0)]
    return Calibration(
        threshold=last.threshold if passed else None,
        harm=last.harm,
        gain=last.gain,
        n=n,
        harm_bound=last.harm_bound,
        tokens_saved=last.tokens_saved,
        max_harm=max_harm,
        confidence=confidence,
        problems_needed=problems_needed(max_harm, confidence),
        tested=tested,
    )


def passed_settings(harms: NDArray[np.int64], n: int, max_harm: float, confidence: float) -> int:
    """Return how many settings, from the first, pass before one fails.

    `harms` counts each setting's harmed problems of `n`, in the order of the sequence.
    """
    _check_fractions(max_harm, confidence)
    rejected = stats.binom.cdf(harms, n, max_harm) <= 1 - confidence
    return int(np.logical_and.accumulate(rejected).sum())


def harm_upper_bound(harm: int, n: int, confidence: float) -> float:
    """Return the exact one-sided upper bound of the rate (Clopper-Pearson), 0 to 1."""
    return 1.0 if harm == n else float(stats.beta.ppf(confidence, harm + 1, n - harm))


def problems_needed(max_harm: float, confidence: float) -> int:
    """Return the fewest problems that suffice if none is harmed: (1 - max_harm)^n <= the risk."""
    _check_fractions(max_harm, confidence)
    return math.ceil(math.log(1 - confidence) / math.log(1 - max_harm))


def _check_fractions(max_harm: float, confidence: float) -> None:
    for field, value in (("max_harm", max_harm), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{field} must be above 0 and below 1, not {value}")


def _drawn(
    problem: TraceProblem, max_branches: int, random: np.random.Generator
) -> list[TraceSample]:
    if len(problem.samples) < max_branches:
        raise ValueError(
            f"max_branches is {max_branches}, but problem {problem.id} has "
            f"{len(problem.samples)} samples"
        )
    order = random.permutation(len(problem.samples))[:max_branches]
    return [problem.samples[index] for index in order]
