"""Stop rules: when the evidence suffices. Each is one class without state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar, Literal, Protocol

from sglang_dynasor.allocation.decision import Decision
from sglang_dynasor.certaindex.entropy import AGREEMENT_DIGITS
from sglang_dynasor.certaindex.tracker import Evidence

RULES = ("dynasor", "threshold", "decided", "beta")
DEFAULT_MIN_BRANCHES = 3


class StopRule(Protocol):
    """Decides from the evidence alone, so the same rule runs in the engine and in replay."""

    name: ClassVar[str]

    def decide(self, evidence: Evidence) -> Decision | None:
        """Return why to stop now, or None to go on.

        Always None below the rule's minimum of branches, without any answer, and where no
        branch remains: a complete program has nothing left to stop.
        """


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """Stops at a certaindex of `threshold` (0 to 1) from `at` branches on (paper section 3.2)."""

    name: ClassVar[str] = "threshold"
    threshold: float = 0.7
    at: int = 5
    min_branches: int = DEFAULT_MIN_BRANCHES

    def __post_init__(self) -> None:
        _check_fraction("threshold", self.threshold)
        _check_minimum("at", self.at)
        _check_minimum("min_branches", self.min_branches)

    def decide(self, evidence: Evidence) -> Decision | None:
        """Return a certain decision, or None."""
        if not _may_stop(evidence, max(self.at, self.min_branches)):
            return None
        if evidence.certaindex < round(self.threshold, AGREEMENT_DIGITS):
            return None
        return _decision("certain", self.name, None, evidence)


@dataclass(frozen=True, slots=True)
class DecidedRule:
    """Stops once the leader cannot be overtaken: the answer is provably the full vote's.

    That holds whatever the remaining branches answer and in whatever order they finish.
    """

    name: ClassVar[str] = "decided"
    min_branches: int = DEFAULT_MIN_BRANCHES

    def __post_init__(self) -> None:
        _check_minimum("min_branches", self.min_branches)

    def decide(self, evidence: Evidence) -> Decision | None:
        """Return a decision, or None while another group could still win."""
        if not _may_stop(evidence, self.min_branches) or not _is_decided(evidence):
            return None
        return _decision("decided", self.name, None, evidence)


@dataclass(frozen=True, slots=True)
class BetaRule:
    """Stops once the leader holds the majority against the runner-up with this probability.

    Adaptive-Consistency (arXiv 2305.11860): the posterior of a Beta(leader + 1, runner-up + 1).
    """

    name: ClassVar[str] = "beta"
    confidence: float = 0.95
    min_branches: int = DEFAULT_MIN_BRANCHES

    def __post_init__(self) -> None:
        _check_fraction("confidence", self.confidence)
        _check_minimum("min_branches", self.min_branches)

    def decide(self, evidence: Evidence) -> Decision | None:
        """Return a certain decision with its posterior, or None."""
        if not _may_stop(evidence, self.min_branches):
            return None
        confidence = majority_posterior(*_top_two(evidence))
        if confidence < round(self.confidence, AGREEMENT_DIGITS):
            return None
        return _decision("certain", self.name, confidence, evidence)


@dataclass(frozen=True, slots=True)
class DynasorRule:
    """Stops where the vote is decided or its Beta posterior reaches `confidence`: our default."""

    name: ClassVar[str] = "dynasor"
    confidence: float = 0.93
    min_branches: int = DEFAULT_MIN_BRANCHES

    def __post_init__(self) -> None:
        _check_fraction("confidence", self.confidence)
        _check_minimum("min_branches", self.min_branches)

    def decide(self, evidence: Evidence) -> Decision | None:
        """Return a decision, the provable reason first, or None."""
        if not _may_stop(evidence, self.min_branches):
            return None
        if _is_decided(evidence):
            return _decision("decided", self.name, None, evidence)
        confidence = majority_posterior(*_top_two(evidence))
        if confidence < round(self.confidence, AGREEMENT_DIGITS):
            return None
        return _decision("certain", self.name, confidence, evidence)


_WITH_THRESHOLD: dict[str, Callable[..., StopRule]] = {
    "dynasor": DynasorRule,
    "threshold": ThresholdRule,
    "beta": BetaRule,
}


def make_rule(
    name: str, *, threshold: float | None = None, min_branches: int = DEFAULT_MIN_BRANCHES
) -> StopRule:
    """Return the rule of this name; it never stops below `min_branches` finished branches.

    `threshold` (0 to 1) is the certaindex for threshold and the posterior for beta and dynasor;
    None means the rule's own. Raises ValueError naming the field.
    """
    if name not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, not {name!r}")
    if name == "decided":
        if threshold is not None:
            raise ValueError("threshold must be absent for rule 'decided', which has none")
        return DecidedRule(min_branches)
    make = partial(_WITH_THRESHOLD[name], min_branches=min_branches)
    if threshold is None:
        return make()
    _check_fraction("threshold", threshold)
    return make(threshold)


@lru_cache(maxsize=4096)
def majority_posterior(leader: int, rival: int) -> float:
    """Return P(X > 1/2) of X ~ Beta(leader + 1, rival + 1), exact and rounded to 1e-9."""
    # 1 - I_0.5(a + 1, b + 1) is a binomial tail of a + b + 1 fair coins: exact in integers.
    coins = leader + rival + 1
    against = sum(math.comb(coins, heads) for heads in range(rival + 1))
    return round(1 - against / (1 << coins), AGREEMENT_DIGITS)


def _may_stop(evidence: Evidence, min_branches: int) -> bool:
    return evidence.remaining > 0 and evidence.finished >= min_branches and len(evidence.counts) > 0


def _top_two(evidence: Evidence) -> tuple[int, int]:
    counts = evidence.counts
    return counts[0], counts[1] if len(counts) > 1 else 0


def _is_decided(evidence: Evidence) -> bool:
    leader, rival = _top_two(evidence)
    margin = leader - (rival + evidence.remaining)  # the worst case: all of them join the rival
    return margin > 0 or (margin == 0 and evidence.leader_wins_ties)


def _decision(
    stop_reason: Literal["certain", "decided"],
    rule: str,
    confidence: float | None,
    evidence: Evidence,
) -> Decision:
    return Decision(
        stop_reason, rule, confidence, evidence.certaindex, evidence.counts, evidence.finished
    )


def _check_fraction(field: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{field} must be between 0 and 1, not {value}")


def _check_minimum(field: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{field} must be at least 1, not {value}")
