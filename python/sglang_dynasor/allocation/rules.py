"""Stop rules: when the evidence suffices. Each is one frozen class without state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

from sglang_dynasor.allocation.decision import Decision, RuleStop
from sglang_dynasor.allocation.posteriors import (
    largest_share_posterior,
    lead_survival,
    log_e_value,
    log_likelihood_ratio,
    majority_posterior,
)
from sglang_dynasor.certaindex.entropy import AGREEMENT_DIGITS
from sglang_dynasor.certaindex.tracker import Evidence

DEFAULT_MIN_BRANCHES = 3


class StopRule(Protocol):
    """Decides from the evidence alone, so the same rule runs in the engine and in replay."""

    name: ClassVar[str]

    def decide(self, evidence: Evidence) -> Decision | None:
        """Return why to stop now, or None to go on.

        Always None below the rule's minimum of branches and where no branch remains: a complete
        program has nothing left to stop.
        """

    def inactive(self, evidence: Evidence) -> str | None:
        """Return why the rule can't judge this evidence, None where it can."""

    def asked_after(self, evidence: Evidence) -> range:
        """Return the numbers of further branches after which agreement could be enough.

        Where all of them join the leader and one of these numbers stops the program, every larger
        one does too. At most `evidence.remaining` - 1: with all branches nothing is left to stop.
        """


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule found: why to stop, and the figure it compared, if any."""

    stop_reason: RuleStop
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class _Rule(ABC):
    """What all rules share: they hold back below `min_branches` and without any answer."""

    name: ClassVar[str]
    threshold_field: ClassVar[str | None] = None
    needs_answer: ClassVar[bool] = True
    judges_weights: ClassVar[bool] = False
    min_branches: int = field(default=DEFAULT_MIN_BRANCHES, kw_only=True)

    def __post_init__(self) -> None:
        for name, value in ((item.name, getattr(self, item.name)) for item in fields(self)):
            if isinstance(value, bool):
                continue
            if isinstance(value, int):
                if value < 1:
                    raise ValueError(f"{name} must be at least 1, not {value}")
            elif not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {value}")

    def decide(self, evidence: Evidence) -> Decision | None:
        if evidence.remaining == 0 or evidence.finished < self.min_branches:
            return None
        if (self.needs_answer and not evidence.counts) or self.inactive(evidence):
            return None
        verdict = self._verdict(evidence)
        if verdict is None:
            return None
        return Decision(
            verdict.stop_reason,
            self.name,
            verdict.confidence,
            evidence.certaindex,
            evidence.counts,
            evidence.finished,
        )

    def inactive(self, evidence: Evidence) -> str | None:
        return None if evidence.unit_votes or self.judges_weights else "votes are weighted"

    def asked_after(self, evidence: Evidence) -> range:
        return range(1, evidence.remaining)

    @abstractmethod
    def _verdict(self, evidence: Evidence) -> Verdict | None: ...


@dataclass(frozen=True, slots=True)
class ThresholdRule(_Rule):
    """Stops at a certaindex of `threshold` (0 to 1) from `at` branches on (paper section 3.2).

    Without `recheck` it measures once, at `at`, as the paper's static policy does.
    """

    name: ClassVar[str] = "threshold"
    threshold_field: ClassVar[str | None] = "threshold"
    threshold: float = 0.7
    at: int = 5
    recheck: bool = True

    def _verdict(self, evidence: Evidence) -> Verdict | None:
        if evidence.finished < self.at or (evidence.finished > self.at and not self.recheck):
            return None
        return _met("certain", evidence.certaindex, self.threshold, report=False)

    def asked_after(self, evidence: Evidence) -> range:
        if self.recheck:
            return range(1, evidence.remaining)
        at = self.at - evidence.finished
        return range(at, at + 1) if 1 <= at < evidence.remaining else range(0)


@dataclass(frozen=True, slots=True)
class DecidedRule(_Rule):
    """Stops once the leader cannot be overtaken: the answer is provably the full vote's.

    That holds whatever the remaining branches answer and in whatever order they finish, but only
    where every vote counts the same.
    """

    name: ClassVar[str] = "decided"

    def _verdict(self, evidence: Evidence) -> Verdict | None:
        return Verdict("decided") if _is_decided(evidence) else None


@dataclass(frozen=True, slots=True)
class BetaRule(_Rule):
    """Stops once the leader holds the majority against the runner-up with this probability.

    Adaptive-Consistency (arXiv 2305.11860): the posterior of a Beta(leader + 1, runner-up + 1).
    """

    name: ClassVar[str] = "beta"
    threshold_field: ClassVar[str | None] = "confidence"
    confidence: float = 0.95

    def _verdict(self, evidence: Evidence) -> Verdict | None:
        return _met("certain", majority_posterior(*_top_two(evidence)), self.confidence)


@dataclass(frozen=True, slots=True)
class DirichletRule(_Rule):
    """Stops once the leader has the largest share of all groups with this probability.

    Adaptive-Consistency's second form, over the groups seen; exact instead of by Monte Carlo.
    """

    name: ClassVar[str] = "dirichlet"
    threshold_field: ClassVar[str | None] = "confidence"
    confidence: float = 0.95

    def _verdict(self, evidence: Evidence) -> Verdict | None:
        counts = evidence.counts if len(evidence.counts) > 1 else (*evidence.counts, 0)
        # To be the largest it must beat the runner-up: that bound costs far less than the integral.
        if _met("certain", majority_posterior(*_top_two(evidence)), self.confidence) is None:
            return None
        return _met("certain", largest_share_posterior(counts), self.confidence)


@dataclass(frozen=True, slots=True)
class EscRule(_Rule):
    """Stops after a window of `window` branches that all gave the same answer.

    ESC (ICLR 2024): windows follow each other in the order of finishing, they do not slide.
    """

    name: ClassVar[str] = "esc"
    window: int = 5

    def _verdict(self, evidence: Evidence) -> Verdict | None:
        whole = evidence.finished % self.window == 0 and evidence.run >= self.window
        return Verdict("certain") if whole else None

    def asked_after(self, evidence: Evidence) -> range:
        return range(self.window - evidence.finished % self.window, evidence.remaining, self.window)


@dataclass(frozen=True, slots=True)
class SprtRule(_Rule):
    """Wald's sequential test of "the leader gets `share` of leader and runner-up" against one half.

    Both error rates are 1 - `confidence` (ConSol).
    """

    name: ClassVar[str] = "sprt"
    threshold_field: ClassVar[str | None] = "confidence"
    confidence: float = 0.95
    share: float = 0.8

    def _verdict(self, evidence: Evidence) -> Verdict | None:
        error = max(1 - self.confidence, 1e-12)
        ratio = log_likelihood_ratio(*_top_two(evidence), min(max(self.share, 0.501), 0.999))
        return Verdict("certain", ratio) if ratio >= math.log((1 - error) / error) else None


@dataclass(frozen=True, slots=True)
class EProcessRule(_Rule):
    """Stops once the leader is certified as the likeliest answer, valid at any time.

    At `confidence` the chance to ever certify a wrong mode is at most 1 - confidence, for branches
    that are independent draws. Which group leads is seen in the data, so the k-th answer to appear
    has 1 / (k (k + 1)) of the error to spend, and its first vote, which made it a candidate, does
    not count (after CITE, arXiv 2605.05873).
    """

    name: ClassVar[str] = "e_process"
    threshold_field: ClassVar[str | None] = "confidence"
    confidence: float = 0.95

    def _verdict(self, evidence: Evidence) -> Verdict | None:
        leader, rival = _top_two(evidence)
        order = evidence.leader_order
        bar = math.log(order * (order + 1) / max(1 - self.confidence, 1e-12))
        evidence_value = log_e_value(leader - 1, rival)
        return Verdict("certain", evidence_value) if evidence_value >= bar else None


@dataclass(frozen=True, slots=True)
class DeepConfRule(_Rule):
    """Stops on consensus: the leader holds this share of the votes' weight after a warm-up.

    DeepConf (arXiv 2508.15260); weights are token certainties in a weighted vote, and
    branches outside the kept share weigh nothing in a filtered one. Equal votes weigh 1 each.
    """

    name: ClassVar[str] = "deepconf"
    threshold_field: ClassVar[str | None] = "consensus"
    judges_weights: ClassVar[bool] = True
    consensus: float = 0.95
    warm_up: int = 4

    def _verdict(self, evidence: Evidence) -> Verdict | None:
        if evidence.finished < self.warm_up or evidence.total_weight <= 0:
            return None
        return _met("consensus", evidence.leader_weight / evidence.total_weight, self.consensus)


@dataclass(frozen=True, slots=True)
class DynasorRule(_Rule):
    """Stops once the answer of the full vote is known, or known with `confidence`: our default.

    Beta and its like ask whether the leader would win an endless vote. The program's vote ends at
    its maximum, so this asks whether the leader survives the branches left: the fewer they are, the
    less agreement it takes, down to `decided` where nothing can change the vote. Near the end that
    is little evidence, so the Beta posterior must reach `posterior` too, or `confidence` if lower.
    """

    name: ClassVar[str] = "dynasor"
    threshold_field: ClassVar[str | None] = "confidence"
    confidence: float = 0.945
    posterior: float = 0.9

    def _verdict(self, evidence: Evidence) -> Verdict | None:
        if _is_decided(evidence):
            return Verdict("decided")
        majority = majority_posterior(*_top_two(evidence))
        if _met("certain", majority, min(self.posterior, self.confidence)) is None:
            return None
        survival = lead_survival(*_top_two(evidence), evidence.remaining)
        return _met("certain", survival, self.confidence)


@dataclass(frozen=True, slots=True)
class HopelessRule(_Rule):
    """Stops where `DynasorRule` is certain, and gives up where agreement stays low.

    The second threshold is that of Conformal Thinking (arXiv 2602.03814): a program whose
    certaindex is at most `agreement` after `at` branches is not going to be settled by more of
    them. Where there is a reward model, its reward must be at most `reward` too. Calibration counts
    the harm of both sides as one. In a weighted vote only the lower side judges.
    """

    name: ClassVar[str] = "hopeless"
    threshold_field: ClassVar[str | None] = "agreement"
    needs_answer: ClassVar[bool] = False
    judges_weights: ClassVar[bool] = True
    agreement: float = 0.1
    reward: float = 0.2
    at: int = 8

    def _verdict(self, evidence: Evidence) -> Verdict | None:
        if evidence.unit_votes and evidence.counts:
            certain = DynasorRule(min_branches=self.min_branches)._verdict(evidence)
            if certain is not None:
                return certain
        if evidence.finished < self.at or evidence.certaindex > self.agreement:
            return None
        if evidence.reward is not None and evidence.reward > self.reward:
            return None
        return Verdict("hopeless", evidence.certaindex)


_RULES: dict[str, type[_Rule]] = {
    rule.name: rule
    for rule in (
        DynasorRule,
        ThresholdRule,
        DecidedRule,
        BetaRule,
        DirichletRule,
        EscRule,
        SprtRule,
        EProcessRule,
        DeepConfRule,
        HopelessRule,
    )
}
RULES = tuple(_RULES)
# The only ones that can judge a weighted or filtered vote.
WEIGHT_RULES = tuple(name for name, rule in _RULES.items() if rule.judges_weights)


def make_rule(
    name: str, *, threshold: float | None = None, min_branches: int = DEFAULT_MIN_BRANCHES
) -> StopRule:
    """Return the rule of this name; it never stops below `min_branches` finished branches.

    `threshold` (0 to 1) is what the rule compares with: certaindex, posterior, consensus or
    agreement; None means the rule's own. Raises ValueError naming the field.
    """
    if name not in _RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, not {name!r}")
    kind = _RULES[name]
    if threshold is None:
        return kind(min_branches=min_branches)
    if kind.threshold_field is None:
        raise ValueError(f"threshold must be absent for rule {name!r}, which has none")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1, not {threshold}")
    options: dict[str, Any] = {kind.threshold_field: threshold, "min_branches": min_branches}
    return kind(**options)


def _met(
    stop_reason: RuleStop, value: float, threshold: float, report: bool = True
) -> Verdict | None:
    if round(value, AGREEMENT_DIGITS) < round(threshold, AGREEMENT_DIGITS):
        return None
    return Verdict(stop_reason, value if report else None)


def _top_two(evidence: Evidence) -> tuple[int, int]:
    counts = evidence.counts
    return counts[0], counts[1] if len(counts) > 1 else 0


def _is_decided(evidence: Evidence) -> bool:
    leader, rival = _top_two(evidence)
    margin = leader - (rival + evidence.remaining)  # the worst case: all of them join the rival
    return margin > 0 or (margin == 0 and evidence.leader_wins_ties)
