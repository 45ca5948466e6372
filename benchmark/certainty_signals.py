"""How well each signal tells right answers from wrong ones, on recorded and labelled branches.

AUROC: the probability that a right answer has the higher signal than a wrong one, ties counting
half (Hanley and McNeil, 1982); 0.5 is chance. Intervals are bootstrapped over whole problems, for
branches of one problem are not independent evidence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sglang_dynasor.certaindex import CertaindexTracker, WeightedTracker, canonical_key
from sglang_dynasor.offline.traces import TraceProblem, TraceSample

BOOTSTRAP_SAMPLES = 1000
KEPT_SHARES = (0.1, 0.5, 0.9)
_INTERVAL_PERCENT = (2.5, 97.5)
# Of a trace's certainty, higher meaning more certain; the model's uncertainty has its sign turned.
_MEASURED = {
    "mean": 1,
    "lowest_group": 1,
    "tail": 1,
    "self_certainty": 1,
    "logprob": 1,
    "entropy": -1,
}

Level: TypeAlias = Literal["branch", "within problem", "program"]
Floats: TypeAlias = NDArray[np.float64]
Weight: TypeAlias = Callable[[TraceSample], float]


@dataclass(frozen=True, slots=True)
class SignalFigures:
    """AUROC of one signal with its 95% interval; None where all are right, or all wrong.

    - branch: every answer against every other, of any problem.
    - within problem: only against answers to the same problem, which is what a vote can use.
    - program: the vote of all branches, by the mean signal of its branches or its certaindex.
    """

    level: Level
    signal: str
    right: int
    wrong: int
    auroc: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class VoteFigures:
    """Accuracy of one way to vote, and its difference from the majority's with its 95% interval."""

    vote: str
    accuracy: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CertaintyStudy:
    """`unanswered` branches gave no answer: they have no vote and are in no AUROC of branches."""

    problems: int
    branches: int
    unanswered: int
    signals: list[SignalFigures]
    votes: list[VoteFigures]


def certainty_study(
    problems: Sequence[TraceProblem], max_branches: int, seed: int = 0
) -> CertaintyStudy:
    """Study the first `max_branches` samples of each problem; `seed` is the bootstrap's.

    Raises ValueError where a problem has fewer, or a sample without token certainty.
    """
    for problem in problems:
        if len(problem.samples) < max_branches:
            raise ValueError(f"problem {problem.id} has fewer than {max_branches} samples")
        if any(sample.certainty is None for sample in problem.samples[:max_branches]):
            raise ValueError(f"problem {problem.id} has samples without token certainty")
    programs = [_Program(problem, max_branches) for problem in problems]
    drawn = np.random.default_rng(seed).multinomial(
        len(problems), np.full(len(problems), 1 / len(problems)), BOOTSTRAP_SAMPLES
    )
    return CertaintyStudy(
        problems=len(problems),
        branches=max_branches,
        unanswered=sum(max_branches - len(program.keys) for program in programs),
        signals=[*_branch_figures(programs, drawn), *_program_figures(programs, drawn)],
        votes=_vote_figures(programs, drawn),
    )


def auroc(signal: Floats, right: NDArray[np.bool_], weight: Floats | None = None) -> float | None:
    """Return the AUROC of `signal`, higher meaning right; None without both kinds.

    `weight` says how often each item counts.
    """
    counts = np.ones(len(signal)) if weight is None else weight
    _, rank = np.unique(signal, return_inverse=True)
    of_right = np.bincount(rank, counts * right)
    of_wrong = np.bincount(rank, counts * ~right)
    pairs = of_right.sum() * of_wrong.sum()
    if not pairs:
        return None
    below = np.cumsum(of_wrong) - of_wrong / 2
    return float(of_right @ below / pairs)


class _Program:
    """The branches of one problem that answered: their signals, and which are right."""

    def __init__(self, problem: TraceProblem, max_branches: int) -> None:
        samples = problem.samples[:max_branches]
        self.samples = samples
        self.right_keys = {canonical_key(s.answer) for s in problem.samples if s.correct}
        if any(sample.correct is None for sample in problem.samples):
            self.right_keys.add(canonical_key(problem.gold))
        self.right_keys.discard("")
        answered = [sample for sample in samples if canonical_key(sample.answer)]
        self.keys = [canonical_key(sample.answer) for sample in answered]
        self.right = np.array([key in self.right_keys for key in self.keys], bool)
        votes = Counter(self.keys)
        others = max(1, len(samples) - 1)
        self.signals = {
            # Of the other branches: its own vote says nothing.
            "agreement": np.array([(votes[key] - 1) / others for key in self.keys]),
            "length": np.array([-float(sample.n_tokens) for sample in answered]),
            **_measured(answered),
        }
        tracker = CertaindexTracker(len(samples))
        self.vote = self._answer_of(tracker, lambda sample: 1.0)
        self.certaindex = tracker.certaindex

    def voted(self, keep_top: float | None) -> bool:
        """Whether the vote by lowest group confidence is right."""
        tracker = WeightedTracker(len(self.samples), keep_top=keep_top)
        return self._answer_of(tracker, _lowest_group)

    def _answer_of(self, tracker: CertaindexTracker, weight: Weight) -> bool:
        for branch, sample in enumerate(self.samples):
            tracker.add(branch, sample.answer, weight(sample))
        leader = tracker.leader
        return leader is not None and canonical_key(leader.answer) in self.right_keys


def _lowest_group(sample: TraceSample) -> float:
    assert sample.certainty is not None
    return sample.certainty["lowest_group"]


def _measured(samples: Iterable[TraceSample]) -> Mapping[str, Floats]:
    """The signals that every sample has."""
    folds = [sample.certainty or {} for sample in samples]
    return {
        name: np.array([sign * fold[name] for fold in folds])
        for name, sign in _MEASURED.items()
        if all(name in fold for fold in folds)
    }


def _names(programs: Sequence[_Program]) -> list[str]:
    return [n for n in programs[0].signals if all(n in program.signals for program in programs)]


def _branch_figures(programs: Sequence[_Program], drawn: NDArray[np.int64]) -> list[SignalFigures]:
    sizes = [len(program.keys) for program in programs]
    problem_of = np.repeat(np.arange(len(programs)), sizes)
    right = np.concatenate([program.right for program in programs])
    figures = []
    for name in _names(programs):
        signal = np.concatenate([program.signals[name] for program in programs])
        pooled = [auroc(signal, right, counts[problem_of].astype(float)) for counts in drawn]
        figures.append(_figures("branch", name, right, auroc(signal, right), pooled))
    for name in _names(programs):
        pairs = np.array([p.right.sum() * (~p.right).sum() for p in programs], float)
        value = np.array([auroc(p.signals[name], p.right) or 0.0 for p in programs])
        ordered = pairs * value  # each pair counts the same, whatever its problem
        both = [(counts @ ordered, counts @ pairs) for counts in drawn]
        found = float(ordered.sum() / pairs.sum()) if pairs.any() else None
        samples = [float(top / bottom) if bottom else None for top, bottom in both]
        figures.append(_figures("within problem", name, right, found, samples))
    return figures


def _program_figures(programs: Sequence[_Program], drawn: NDArray[np.int64]) -> list[SignalFigures]:
    right = np.array([program.vote for program in programs])
    figures = []
    for name in _names(programs):
        if name == "agreement":
            values = [program.certaindex for program in programs]
        else:
            # A program in which nobody answered is the least certain of all.
            values = [float(p.signals[name].mean()) if len(p.keys) else -np.inf for p in programs]
        signal = np.array(values)
        samples = [auroc(signal, right, counts.astype(float)) for counts in drawn]
        figures.append(_figures("program", name, right, auroc(signal, right), samples))
    return figures


def _figures(
    level: Level,
    signal: str,
    right: NDArray[np.bool_],
    found: float | None,
    samples: Sequence[float | None],
) -> SignalFigures:
    known = [sample for sample in samples if sample is not None]
    low, high = _interval(known) if found is not None else (None, None)
    count = int(right.sum())
    return SignalFigures(level, signal, count, len(right) - count, found, low, high)


def _vote_figures(programs: Sequence[_Program], drawn: NDArray[np.int64]) -> list[VoteFigures]:
    ways = {"majority": [program.vote for program in programs]}
    ways["weighted"] = [program.voted(None) for program in programs]
    ways |= {
        f"filtered, keep_top {share}": [program.voted(share) for program in programs]
        for share in KEPT_SHARES
    }
    majority = np.array(ways["majority"], float)
    figures = []
    for name, rights in ways.items():
        gain = np.array(rights, float) - majority
        low, high = _interval(drawn @ gain / len(programs))
        figures.append(VoteFigures(name, float(np.mean(rights)), float(gain.mean()), low, high))
    return figures


def _interval(samples: Sequence[float] | Floats) -> tuple[float, float]:
    low, high = np.percentile(samples, _INTERVAL_PERCENT)
    return float(low), float(high)
