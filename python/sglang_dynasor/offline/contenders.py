"""Replays of many rules over many shuffles of recorded problems, on the same samples."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from sglang_dynasor.allocation import (
    AdaptiveGrants,
    BetaRule,
    DecidedRule,
    DeepConfRule,
    DirichletRule,
    DynasorRule,
    EProcessRule,
    EscRule,
    FixedGrants,
    HopelessRule,
    SprtRule,
    ThresholdRule,
)
from sglang_dynasor.certaindex import canonical_key
from sglang_dynasor.offline.curve import CurvePoint, cheapest_equal, share_saved, vote_leaders
from sglang_dynasor.offline.replay import Contender, Order, Sample, Samples
from sglang_dynasor.offline.traces import TraceProblem, TraceSample
from sglang_dynasor.programs import Replayed
from sglang_dynasor.programs.branch_probes import ProbePlan

BOOTSTRAP_SAMPLES = 1000
DEEPCONF_WARM_UP = 16
_INTERVAL_PERCENT = (2.5, 97.5)
ONE_AT_A_TIME = FixedGrants((1,))
# How many times the fewest branches that could settle the vote `dynasor_pace` keeps running.
PACE = 5.0
EVERY_RECORDED_PROBE = ProbePlan(every=1)


def contenders(max_branches: int) -> dict[str, Contender]:
    """Every rule in the form its authors use it, and ours as shipped; none is tuned to a file."""
    esc, decided, dynasor = EscRule(), DecidedRule(), DynasorRule()
    warm_up = min(DEEPCONF_WARM_UP, max_branches)
    paced = Contender(dynasor, AdaptiveGrants(dynasor), offers=True, pace=PACE)
    return {
        "threshold": Contender(
            ThresholdRule(recheck=False), FixedGrants((5, max(1, max_branches - 5)))
        ),
        "threshold_every_step": Contender(ThresholdRule(), ONE_AT_A_TIME),
        "esc": Contender(esc, FixedGrants((esc.window,))),
        "adaptive_consistency": Contender(BetaRule(), ONE_AT_A_TIME),
        "dirichlet": Contender(DirichletRule(), ONE_AT_A_TIME),
        "sprt": Contender(SprtRule(), ONE_AT_A_TIME),
        "e_process": Contender(EProcessRule(), ONE_AT_A_TIME),
        # Its consensus; which branches its bar would have pruned, and when, no trace tells.
        "deepconf": Contender(
            DeepConfRule(warm_up=warm_up), FixedGrants((warm_up, 1)), weighted=True
        ),
        "hopeless": Contender(HopelessRule(), ONE_AT_A_TIME),
        "decided": Contender(decided, AdaptiveGrants(decided)),
        "dynasor": Contender(dynasor, AdaptiveGrants(dynasor)),
        "dynasor_offers": Contender(dynasor, AdaptiveGrants(dynasor), offers=True),
        "dynasor_pace": paced,
        # As the former where a trace has no probes.
        "dynasor_running": replace(paced, probes=EVERY_RECORDED_PROBE),
        "dynasor_all_at_once": replace(paced, pace=float(max_branches)),
    }


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over problems and shuffles; shares are fractions, the rest is per problem.

    `harm`: the full vote is right and the rule wrong; `gain`: the reverse; `disagreements`: other
    answers than the full vote's. `critical_path` is the longest token path in mean branch lengths,
    `sequential_tokens` the same in tokens. `tokens` hold `probe_tokens`.
    """

    accuracy: float
    harm: float
    gain: float
    disagreements: float
    tokens: float
    samples: float
    rounds: float
    critical_path: float
    sequential_tokens: float
    probe_tokens: float


_FIELDS = tuple(field.name for field in fields(Figures))


@dataclass(frozen=True)
class Comparison:
    """What the contenders did on the same shuffles.

    `per_problem` holds, by contender, a problems x figures array of means over shuffles;
    `fixed`, the full vote, is one of them. `curve` is the fixed vote by number of branches.
    """

    per_problem: dict[str, np.ndarray]
    curve: list[CurvePoint]

    def figures(self, name: str) -> Figures:
        """The means of one contender, or of `fixed`."""
        return Figures(*(float(value) for value in self.per_problem[name].mean(axis=0)))

    def row(self, name: str) -> dict[str, float]:
        """The figures of one contender with both savings."""
        figures = self.figures(name)
        equal = cheapest_equal(self.curve, figures.accuracy) or self.curve[-1]
        row = {field: getattr(figures, field) for field in _FIELDS}
        row["tokens_saved"] = float(share_saved(figures.tokens, self.figures("fixed").tokens))
        row["tokens_saved_vs_equal"] = float(share_saved(figures.tokens, equal.tokens))
        fixed = self.figures("fixed")
        row["sequential_share"] = figures.sequential_tokens / (fixed.sequential_tokens or 1.0)
        row["probe_token_share"] = figures.probe_tokens / (figures.tokens or 1.0)
        return row

    def interval(self, name: str, seed: int = 0) -> dict[str, tuple[float, float]]:
        """95% bootstrap intervals over whole problems: a problem's shuffles are not new data."""
        rows, fixed = self.per_problem[name], self.per_problem["fixed"]
        problems = len(rows)
        drawn = np.random.default_rng(seed).multinomial(
            problems, np.full(problems, 1 / problems), BOOTSTRAP_SAMPLES
        )
        tokens = _FIELDS.index("tokens")
        samples = {
            "accuracy": drawn @ rows[:, 0] / problems,
            "harm": drawn @ rows[:, 1] / problems,
            "tokens_saved": share_saved(drawn @ rows[:, tokens], drawn @ fixed[:, tokens]),
        }
        return {
            field: (float(low), float(high))
            for field, (low, high) in (
                (field, np.percentile(values, _INTERVAL_PERCENT))
                for field, values in samples.items()
            )
        }


def compare(
    problems: Sequence[TraceProblem],
    contending: Mapping[str, Contender],
    max_branches: int,
    seeds: int,
    order: Order,
) -> Comparison:
    """Replay every contender on `seeds` shuffles of every problem.

    Raises ValueError where a problem has fewer than `max_branches` samples.
    """
    names = ("fixed", *contending)
    rows: dict[str, list[list[float]]] = {name: [] for name in names}
    correct_by_k = np.zeros(max_branches)
    tokens_per_branch = 0.0
    for problem in problems:
        if len(problem.samples) < max_branches:
            raise ValueError(
                f"problem {problem.id} has {len(problem.samples)} samples, fewer than "
                f"max_branches {max_branches}"
            )
        totals = {name: np.zeros(len(_FIELDS)) for name in names}
        shuffles = Shuffles(problem, max_branches)
        tokens_per_branch += shuffles.mean_tokens
        for seed in range(seeds):
            drawn = shuffles.draw(seed)
            samples = Samples(drawn, shuffles.keys.__getitem__)
            leaders = vote_leaders([shuffles.keys[sample.answer] for sample in drawn])
            full = leaders[-1]
            correct_by_k += [leader in shuffles.right for leader in leaders]
            totals["fixed"] += shuffles.fixed(drawn, full)
            for name, contender in contending.items():
                totals[name] += shuffles.figures(samples.replay(contender, order), full)
        for name, total in totals.items():
            rows[name].append(list(total / seeds))
    runs = len(problems) * seeds
    curve = [
        CurvePoint(k, float(correct_by_k[k - 1]) / runs, k * tokens_per_branch / len(problems))
        for k in range(1, max_branches + 1)
    ]
    return Comparison({name: np.array(values) for name, values in rows.items()}, curve)


def merged(parts: Sequence[Comparison], sizes: Sequence[int]) -> Comparison:
    """Join comparisons of disjoint sets of problems, of `sizes` problems each."""
    problems = sum(sizes)
    curve = [
        CurvePoint(
            points[0].k,
            sum(p.accuracy * n for p, n in zip(points, sizes, strict=True)) / problems,
            sum(p.tokens * n for p, n in zip(points, sizes, strict=True)) / problems,
        )
        for points in zip(*(part.curve for part in parts), strict=True)
    ]
    names = parts[0].per_problem
    rows = {name: np.concatenate([part.per_problem[name] for part in parts]) for name in names}
    return Comparison(rows, curve)


class Shuffles:
    """The samples of one problem in random orders, and which answers are right."""

    def __init__(self, problem: TraceProblem, max_branches: int) -> None:
        self._id = problem.id
        self._max_branches = max_branches
        self._samples = [_sample(recorded) for recorded in problem.samples]
        answers = {sample.answer for sample in problem.samples}
        answers |= {probe.answer for sample in problem.samples for probe in sample.probes}
        self.keys = {answer: canonical_key(answer) for answer in answers}
        # A trace's own labels, where it has them, know more than the spelling of the gold answer.
        self.right = {self.keys[sample.answer] for sample in problem.samples if sample.correct}
        if all(sample.correct is None for sample in problem.samples):
            self.right = {canonical_key(problem.gold)}
        self.right.discard("")
        self.mean_tokens = sum(sample.n_tokens for sample in problem.samples) / len(self._samples)

    def draw(self, seed: int) -> list[Sample]:
        return random.Random(f"{seed}:{self._id}").sample(self._samples, self._max_branches)

    def figures(self, replayed: Replayed, full: str | None) -> list[float]:
        """One row in the order of `Figures`."""
        return self._row(
            self.keys.get(replayed.outcome.answer) or None,
            full,
            replayed.tokens,
            replayed.finished,
            replayed.outcome.rounds,
            replayed.sequential_tokens,
            replayed.probe_tokens,
        )

    def fixed(self, samples: Sequence[Sample], full: str | None) -> list[float]:
        """The row of the fixed maximum: every branch at once."""
        lengths = [sample.n_tokens for sample in samples]
        return self._row(full, full, sum(lengths), len(lengths), 1, max(lengths), 0)

    def _row(
        self,
        key: str | None,
        full: str | None,
        tokens: int,
        samples: int,
        rounds: int,
        path: int,
        probe_tokens: int,
    ) -> list[float]:
        right, full_right = key in self.right, full in self.right
        return [
            float(right),
            float(full_right and not right),
            float(right and not full_right),
            float(key != full),
            tokens,
            samples,
            rounds,
            path / (self.mean_tokens or 1.0),
            path,
            probe_tokens,
        ]


def _sample(recorded: TraceSample) -> Sample:
    confidence = (recorded.certainty or {}).get("lowest_group")
    return Sample(
        recorded.answer,
        recorded.n_tokens,
        recorded.correct,
        confidence,
        probes=recorded.probes,
    )
