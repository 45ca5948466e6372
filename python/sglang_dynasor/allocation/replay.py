"""Replay: what a stop rule and a grant policy would have done on recorded samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sglang_dynasor.allocation.decision import Decision
from sglang_dynasor.allocation.grants import GrantPolicy
from sglang_dynasor.allocation.rules import StopRule
from sglang_dynasor.certaindex.tracker import CertaindexTracker, Evidence
from sglang_dynasor.certaindex.weighted_tracker import WeightedTracker

Order = Literal["sequential", "concurrent"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One recorded branch, with the trace's own label and a reward (0 to 1) where it has them.

    `confidence` is the weight of its vote where votes are weighted, 0 where it was not measured. A
    `pruned` one has no vote; its tokens are all counted, for a trace does not tell when it would
    have been stopped.
    """

    answer: str
    n_tokens: int
    correct: bool | None = None
    reward: float | None = None
    confidence: float | None = None
    pruned: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """One replayed program.

    `decision` is None where every branch ran to its end. `tokens` counts the partial tokens of
    cancelled branches (started, not finished) too. `critical_path_tokens` is the sum over rounds
    of the round's length in tokens: the program's latency with every branch at the same speed.
    """

    answer: str
    decision: Decision | None
    tokens: int
    branches_started: int
    branches_finished: int
    rounds: int
    critical_path_tokens: int


def replay(
    samples: Sequence[Sample],
    rule: StopRule,
    grants: GrantPolicy,
    order: Order = "concurrent",
    tracker: CertaindexTracker | None = None,
) -> Outcome:
    """Return what happens when the samples come as `grants` asks and `rule` is asked after each.

    concurrent: the branches of a grant run side by side, one token a step, and finish shortest
    first (ties: lowest index); on a stop the running ones have spent as many tokens as it took.
    sequential: they finish in sample order, and a branch behind the stop was never started.
    `tracker` counts the votes, an empty one for as many branches as there are samples.
    Raises ValueError without samples or for an unknown order.
    """
    if order == "sequential":
        return replay_in_order(SamplesInOrder(samples, tracker), rule, grants)
    if order != "concurrent":
        raise ValueError(f"order must be sequential or concurrent, not {order!r}")
    tracker = tracker or CertaindexTracker(len(samples))
    decision: Decision | None = None
    started = tokens = rounds = critical_path = 0
    while decision is None and started < len(samples):
        granted = range(started, started + grants.next_grant(tracker.evidence(), rounds))
        rounds += 1
        finish_order = sorted(granted, key=lambda branch: samples[branch].n_tokens)
        ended = 0
        while decision is None and ended < len(finish_order):
            branch = finish_order[ended]
            ended += 1
            _add(tracker, branch, samples[branch])
            decision = rule.decide(tracker.evidence())
        spent = [samples[branch].n_tokens for branch in finish_order[:ended]]
        round_length = max(spent)
        spent += [round_length] * (len(finish_order) - ended)
        started += len(spent)
        tokens += sum(spent)
        critical_path += round_length
    return Outcome(
        answer=tracker.leader.answer if tracker.leader else "",
        decision=decision,
        tokens=tokens,
        branches_started=started,
        branches_finished=tracker.ended,
        rounds=rounds,
        critical_path_tokens=critical_path,
    )


class SamplesInOrder:
    """Samples that finish in their order: what is known after each, shared by all rules."""

    def __init__(self, samples: Sequence[Sample], tracker: CertaindexTracker | None = None) -> None:
        """`tracker` counts the votes, see `replay`. Raises ValueError without samples."""
        self.samples = samples
        self._tracker = tracker or CertaindexTracker(len(samples))
        self._known = [(self._tracker.evidence(), "")]

    def after(self, finished: int) -> tuple[Evidence, str]:
        """Return the evidence and the leading answer once the first `finished` have ended."""
        while len(self._known) <= finished:
            branch = len(self._known) - 1
            _add(self._tracker, branch, self.samples[branch])
            leader = self._tracker.leader
            self._known.append((self._tracker.evidence(), leader.answer if leader else ""))
        return self._known[finished]


def replay_in_order(known: SamplesInOrder, rule: StopRule, grants: GrantPolicy) -> Outcome:
    """`replay` in sequential order; several rules may share one `known`."""
    samples = known.samples
    decision: Decision | None = None
    finished = rounds = critical_path = 0
    while decision is None and finished < len(samples):
        granted_to = finished + grants.next_grant(known.after(finished)[0], rounds)
        rounds += 1
        begun = finished
        while decision is None and finished < granted_to:
            finished += 1
            decision = rule.decide(known.after(finished)[0])
        critical_path += max(sample.n_tokens for sample in samples[begun:finished])
    return Outcome(
        answer=known.after(finished)[1],
        decision=decision,
        tokens=sum(sample.n_tokens for sample in samples[:finished]),
        branches_started=finished,
        branches_finished=finished,
        rounds=rounds,
        critical_path_tokens=critical_path,
    )


def _add(tracker: CertaindexTracker, branch: int, sample: Sample) -> None:
    if sample.pruned:
        tracker.exclude(branch)
    else:
        weighted = isinstance(tracker, WeightedTracker)
        weight = sample.confidence or 0.0 if weighted else 1.0
        tracker.add(branch, sample.answer, weight, sample.reward)


def full_vote(samples: Sequence[Sample]) -> str:
    """Return the majority answer of all samples, ties to the lowest index; "" without answers.

    Raises ValueError without samples.
    """
    tracker = CertaindexTracker(len(samples))
    for branch, sample in enumerate(samples):
        tracker.add(branch, sample.answer)
    return tracker.leader.answer if tracker.leader else ""
