"""Replay: what a stop rule and a grant policy would have done on recorded samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sglang_dynasor.allocation.decision import Decision
from sglang_dynasor.allocation.grants import GrantPolicy
from sglang_dynasor.allocation.rules import StopRule
from sglang_dynasor.certaindex.tracker import CertaindexTracker

Order = Literal["sequential", "concurrent"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One recorded branch; `correct` is the trace's own label, where it has one."""

    answer: str
    n_tokens: int
    correct: bool | None = None


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
) -> Outcome:
    """Return what happens when the samples come as `grants` asks and `rule` is asked after each.

    concurrent: the branches of a grant run side by side, one token a step, and finish shortest
    first (ties: lowest index); on a stop the running ones have spent as many tokens as it took.
    sequential: they finish in sample order, and a branch behind the stop was never started.
    Raises ValueError without samples or for an unknown order.
    """
    if order not in ("sequential", "concurrent"):
        raise ValueError(f"order must be sequential or concurrent, not {order!r}")
    tracker = CertaindexTracker(len(samples))
    decision: Decision | None = None
    started = tokens = rounds = critical_path = 0
    while decision is None and started < len(samples):
        granted = range(started, started + grants.next_grant(tracker.evidence(), rounds))
        rounds += 1
        finish_order = list(granted)
        if order == "concurrent":
            finish_order.sort(key=lambda branch: samples[branch].n_tokens)
        ended = 0
        while decision is None and ended < len(finish_order):
            branch = finish_order[ended]
            ended += 1
            tracker.add(branch, samples[branch].answer)
            decision = rule.decide(tracker.evidence())
        spent = [samples[branch].n_tokens for branch in finish_order[:ended]]
        round_length = max(spent)
        if order == "concurrent":
            spent += [round_length] * (len(finish_order) - ended)
        started += len(spent)
        tokens += sum(spent)
        critical_path += round_length
    return Outcome(
        answer=tracker.leader.answer if tracker.leader else "",
        decision=decision,
        tokens=tokens,
        branches_started=started,
        branches_finished=tracker.finished,
        rounds=rounds,
        critical_path_tokens=critical_path,
    )


def full_vote(samples: Sequence[Sample]) -> str:
    """Return the majority answer of all samples, ties to the lowest index; "" without answers.

    Raises ValueError without samples.
    """
    tracker = CertaindexTracker(len(samples))
    for branch, sample in enumerate(samples):
        tracker.add(branch, sample.answer)
    return tracker.leader.answer if tracker.leader else ""
