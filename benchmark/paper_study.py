"""The paper's offline analyses on recorded samples: signals, threshold, allocation policies.

Paper Figures 9, 10 and 12 to 14, and Table 4. Every figure is a mean over seeded shuffles.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from paper_policies import (
    AllocationPolicy,
    Even,
    Threshold,
    fit_curves,
    oracle_steps,
    replay_policy,
)
from sglang_dynasor.offline import Sample, Samples, TraceProblem
from sglang_dynasor.offline.contenders import Shuffles

DETECT_STEPS = (3, 5, 8, *range(10, 101, 5))
THRESHOLDS = tuple(tenths / 10 for tenths in range(3, 11))
STATIC = Threshold()  # the paper's operating point: 0.7, asked after five branches
_ALL_BRANCHES = Even(sys.maxsize)


@dataclass(frozen=True, slots=True)
class Correlation:
    """How well a signal predicts oracle steps; -1 to 1, 1 the best.

    None where it can't be told: the signal or the oracle steps are the same for all problems.
    """

    pearson: float | None
    kendall: float | None


@dataclass(frozen=True, slots=True)
class DetectStep:
    """The signals after `step` branches.

    `problems` is how many a shuffle correlates, on average: those whose vote ends right. `stopped`
    is the share of all problems at the paper's threshold or above.
    """

    step: int
    problems: float
    stopped: float
    certaindex: Correlation
    mean_length: Correlation


@dataclass(frozen=True, slots=True)
class PolicyFigures:
    """Means of one policy over problems and shuffles.

    `harm` is the share where the vote of all branches is right and the policy's wrong.
    `tokens_saved` is against all branches.
    """

    policy: str
    accuracy: float
    harm: float
    tokens_saved: float
    branches: float
    rounds: float


@dataclass(frozen=True, slots=True)
class Study:
    """What the analyses found. The vote of `never_right` problems ends wrong in every shuffle."""

    problems: int
    never_right: int
    shuffles: int
    signals: list[DetectStep]
    thresholds: list[PolicyFigures]
    ladder: list[PolicyFigures]


def study(problems: Sequence[TraceProblem], max_branches: int, shuffles: int = 10) -> Study:
    """Analyse the first `max_branches` samples of each problem in this many orders.

    Raises ValueError where a problem has fewer samples.
    """
    for problem in problems:
        if len(problem.samples) < max_branches:
            raise ValueError(f"problem {problem.id} has fewer than {max_branches} samples")
    sources = [Shuffles(problem, max_branches) for problem in problems]
    orders = [[_program(source, seed) for source in sources] for seed in range(shuffles)]
    everyone = [program for order in orders for program in order]
    ever_right = sum(any(p.needed is not None for p in same) for same in zip(*orders, strict=True))
    return Study(
        problems=len(problems),
        never_right=len(problems) - ever_right,
        shuffles=shuffles,
        signals=[_detect(orders, step) for step in DETECT_STEPS if step <= max_branches],
        thresholds=[
            _figures(f"{threshold:.1f}", ((p, Threshold(threshold)) for p in everyone))
            for threshold in THRESHOLDS
        ],
        ladder=list(_ladder(orders, max_branches)),
    )


@dataclass(frozen=True, slots=True)
class _Program:
    """One problem in one order; `needed` are its oracle steps."""

    samples: list[Sample]
    known: Samples
    keys: dict[str, str]
    right: set[str]
    full: str
    needed: int | None

    def certaindex(self, step: int) -> float:
        return self.known.counted().evidence(step).certaindex

    def is_right(self, answer: str) -> bool:
        return self.keys.get(answer) in self.right


_Run = tuple[_Program, AllocationPolicy]


def _program(source: Shuffles, seed: int) -> _Program:
    samples = source.draw(seed)
    known = Samples(samples, source.keys.__getitem__)
    leader = known.counted().leader(len(samples))
    full = source.keys[leader.answer] if leader else ""
    # A trace may label several spellings right: what the vote must reach is the one it ends at.
    needed = oracle_steps(samples, full) if full in source.right else None
    return _Program(samples, known, source.keys, source.right, full, needed)


def _detect(orders: Sequence[Sequence[_Program]], step: int) -> DetectStep:
    stopped = [p.certaindex(step) >= STATIC.threshold for order in orders for p in order]
    solved = [[p for p in order if p.needed is not None] for order in orders]
    oracle = [[p.needed for p in order] for order in solved]
    # Few steps go with high certainty and with short answers: one sign must be turned.
    uncertainty = [[-p.certaindex(step) for p in order] for order in solved]
    length = [[sum(s.n_tokens for s in p.samples[:step]) / step for p in order] for order in solved]
    return DetectStep(
        step=step,
        problems=float(np.mean([len(order) for order in solved])),
        stopped=float(np.mean(stopped)),
        certaindex=_correlation(uncertainty, oracle),
        mean_length=_correlation(length, oracle),
    )


def _correlation(
    signal_by_order: Sequence[Sequence[float]], oracle_by_order: Sequence[Sequence[int | None]]
) -> Correlation:
    """The mean over the orders in which both vary."""
    varying = [
        (signal, oracle)
        for signal, oracle in zip(signal_by_order, oracle_by_order, strict=True)
        if len(set(signal)) > 1 and len(set(oracle)) > 1
    ]
    if not varying:
        return Correlation(None, None)
    return Correlation(
        pearson=float(np.mean([stats.pearsonr(*pair).statistic for pair in varying])),
        kendall=float(np.mean([stats.kendalltau(*pair).statistic for pair in varying])),
    )


def _ladder(orders: Sequence[Sequence[_Program]], max_branches: int) -> list[PolicyFigures]:
    everyone = [program for order in orders for program in order]
    first = min(STATIC.at, max_branches)
    rungs: dict[str, Iterable[_Run]] = {
        "even": ((program, _ALL_BRANCHES) for program in everyone),
        "static": ((program, STATIC) for program in everyone),
        "initial curve": _cross_fitted(orders, [first]),
        "5-step": ((program, Threshold(every=5)) for program in everyone),
        "single-step": ((program, Threshold(every=1)) for program in everyone),
        "dynamic curve": _cross_fitted(orders, range(first, max_branches + 1)),
    }
    return [_figures(name, runs) for name, runs in rungs.items()]


def _cross_fitted(orders: Sequence[Sequence[_Program]], steps: Sequence[int]) -> Iterator[_Run]:
    """Each half of the problems with the curves of the other: nothing is judged in sample."""
    for seed, order in enumerate(orders):
        mixed = random.Random(seed).sample(order, len(order))
        halves = mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
        for fitted, judged in (halves, halves[::-1]):
            policy = _fit(fitted, steps)
            yield from ((program, policy) for program in judged)


def _fit(programs: Sequence[_Program], steps: Sequence[int]) -> AllocationPolicy:
    solved = [program for program in programs if program.needed is not None]
    if not solved:
        return _ALL_BRANCHES  # nothing is known about what a problem needs
    return fit_curves([p.samples for p in solved], [p.full for p in solved], steps)


def _figures(name: str, runs: Iterable[_Run]) -> PolicyFigures:
    rows = []
    for program, policy in runs:
        run = replay_policy(program.known, policy)
        right = program.is_right(run.outcome.answer)
        every_token = sum(sample.n_tokens for sample in program.samples)
        harmed = program.needed is not None and not right
        rows.append((right, harmed, run.tokens, every_token, run.finished, run.outcome.rounds))
    accuracy, harm, tokens, all_tokens, branches, rounds = np.mean(rows, axis=0).tolist()
    return PolicyFigures(name, accuracy, harm, 1 - tokens / all_tokens, branches, rounds)
