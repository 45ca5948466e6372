"""Self-consistency: sample branches, let them vote, stop when the vote is settled (paper 3.1)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import lru_cache

from sglang_dynasor.allocation import FixedGrants, GrantPolicy, Sample, branch_values, replay
from sglang_dynasor.certaindex import (
    AnswerGroups,
    CertaindexTracker,
    Evidence,
    WeightedTracker,
    extract_answer,
)
from sglang_dynasor.programs.base import (
    FinishedBranch,
    Grant,
    Offer,
    Outcome,
    ProgramStop,
    ReasoningProgram,
    ShadowOutcome,
    Step,
)
from sglang_dynasor.programs.grouping import Grouping
from sglang_dynasor.programs.spec import ProgramSpec

_MAY_HAVE_ANSWERED = ("completed", "certain")


def self_consistency(
    spec: ProgramSpec,
    pattern_time_limit_s: float,
    grouping: Grouping | None = None,
) -> ReasoningProgram:
    """Run the resolved `spec`; in shadow mode run every branch and only note the decision.

    `grouping` says which answers are one, by default those of equal spelling. Where it may take its
    time, branches should come `with_answer`: see `run_program`.
    """
    assert spec.max_branches is not None, "resolve() first"
    shadow = spec.mode == "shadow"
    rule = spec.stop_rule()
    grants = FixedGrants((spec.max_branches,)) if shadow else spec.grant_policy(rule)
    vote = _Vote(spec, pattern_time_limit_s, grouping or AnswerGroups())
    planned = rounds = 0  # branches that have finished, run, or must run now
    while vote.tracker.ended < spec.max_branches:
        evidence, ended = vote.tracker.evidence(), vote.tracker.ended
        step: Step = Grant(0)
        if spec.draw == "offer" and not shadow:
            step = _offer(evidence, grants, spec.max_branches)
            rounds += ended + step.needed > planned
            planned = max(planned, ended + step.needed)
        elif ended == planned:
            size = grants.next_grant(evidence, rounds)
            share = _token_share(spec, vote.tokens, size)
            if share == 0:
                return vote.outcome("budget", rounds)
            step = Grant(size, share, evidence.certaindex)
            planned += size
            rounds += 1
        branch = yield step
        if branch is None:
            return vote.outcome("deadline", rounds)
        if branch.stop_reason == "aborted":
            return vote.outcome("aborted", rounds)
        vote.add(branch)
        decision = None if shadow else rule.decide(vote.tracker.evidence())
        if decision is not None:
            return vote.outcome(decision.stop_reason, rounds)
    return vote.outcome("completed", rounds, vote.would_have_stopped() if shadow else None)


async def with_answer(
    branch: FinishedBranch, spec: ProgramSpec, pattern_time_limit_s: float, grouping: Grouping
) -> FinishedBranch:
    """Extract a branch's answer and have it grouped, so that no step of the program waits."""
    if spec.answer_format == "regex":  # a client's own pattern may take all of its limit
        answer = await asyncio.to_thread(_answer_of, branch, spec, pattern_time_limit_s)
    else:
        answer = _answer_of(branch, spec, pattern_time_limit_s)
    await grouping.prepare(answer)
    return replace(branch, answer=answer)


def _answer_of(branch: FinishedBranch, spec: ProgramSpec, pattern_time_limit_s: float) -> str:
    if branch.answer is not None:
        return branch.answer
    if branch.stop_reason not in _MAY_HAVE_ANSWERED:
        return ""  # a branch cut off by length, or in a loop, has not answered
    return extract_answer(
        branch.text, spec.answer_format, spec.answer_pattern, pattern_time_limit_s
    )


def _offer(evidence: Evidence, grants: GrantPolicy, max_branches: int) -> Offer:
    """The fewest branches that could settle the vote are needed, the rest is offered.

    No round has to end first: each answer that disagrees makes more branches needed at once.
    """
    needed = grants.next_grant(evidence, 0)
    gains = branch_values(evidence, mean_tokens=1.0)
    return Offer(
        needed=needed,
        values=gains[needed:],
        worth=min(1.0, sum(gains[:needed]) / _first_gain(max_branches)),
        certaindex=evidence.certaindex,
    )


@lru_cache
def _first_gain(max_branches: int) -> float:
    """What all branches of a program add together when nothing is known yet."""
    nothing = CertaindexTracker(max_branches).evidence()
    return sum(branch_values(nothing, mean_tokens=1.0))


def _token_share(spec: ProgramSpec, spent: int, branches: int) -> int | None:
    """Tokens each of the next branches may use so that the program keeps to its cap."""
    if spec.max_total_tokens is None:
        return None
    return max(0, spec.max_total_tokens - spent) // branches


def _tracker_of(spec: ProgramSpec, grouping: Grouping) -> CertaindexTracker:
    assert spec.max_branches is not None, "resolve() first"
    if spec.vote == "weighted":
        return WeightedTracker(spec.max_branches, grouping.key)
    if spec.vote == "filtered":
        return WeightedTracker(spec.max_branches, grouping.key, spec.keep_top)
    return CertaindexTracker(spec.max_branches, grouping.key)


class _Vote:
    """The branches counted so far."""

    def __init__(self, spec: ProgramSpec, pattern_time_limit_s: float, grouping: Grouping) -> None:
        self.tracker = _tracker_of(spec, grouping)
        self._confidences: dict[int, float | None] = {}
        self._grouping = grouping
        self._revision = grouping.revision
        self.tokens = 0
        self._spec = spec
        self._limit_s = pattern_time_limit_s
        self._answers: dict[int, str] = {}
        self._lengths: dict[int, int] = {}  # of all that ended, in the order of their end

    def add(self, branch: FinishedBranch) -> None:
        self.tokens += branch.n_tokens
        self._lengths[branch.index] = branch.n_tokens
        confidence = branch.certainty.lowest_group if branch.certainty else None
        self._confidences[branch.index] = confidence
        if branch.stop_reason != "pruned":
            self._answers[branch.index] = _answer_of(branch, self._spec, self._limit_s)
        self._count(branch.index)
        if self._revision != self._grouping.revision:
            self._recount()

    def _count(self, index: int) -> None:
        if index in self._answers:
            self.tracker.add(index, self._answers[index], self._weight(index))
        else:
            self.tracker.exclude(index)

    def _recount(self) -> None:
        """This answer took groups apart, so earlier ones count otherwise now."""
        self._revision = self._grouping.revision
        self.tracker = _tracker_of(self._spec, self._grouping)
        for index in self._lengths:
            self._count(index)

    def _weight(self, index: int) -> float:
        weighted = self._spec.vote in ("weighted", "filtered")
        return self._confidences[index] or 0.0 if weighted else 1.0

    def outcome(
        self, stop_reason: ProgramStop, rounds: int, shadow: ShadowOutcome | None = None
    ) -> Outcome:
        leader = self.tracker.leader
        return Outcome(
            stop_reason=stop_reason,
            answer=leader.answer if leader else "",
            branch=leader.first_branch if leader else min(self._lengths, default=None),
            certaindex=self.tracker.certaindex,
            votes=tuple(self.tracker.votes()),
            answers=dict(sorted(self._answers.items())),
            rounds=rounds,
            shadow=shadow,
            inactive=self._inactive(),
        )

    def _inactive(self) -> dict[str, str]:
        """What was asked for and could not work, and why."""
        found = {}
        if reason := self._spec.stop_rule().inactive(self.tracker.evidence()):
            found["rule"] = reason
        unmeasured = sum(value is None for value in self._confidences.values())
        if unmeasured and self._spec.vote in ("weighted", "filtered"):
            found["vote"] = f"{unmeasured} branches have no token certainty and weigh nothing"
        if reason := self._grouping.inactive:
            found["equality"] = reason
        if self._spec.branch_rule == "deepconf" or self._spec.stop_loops:
            if self._spec.mode == "shadow":
                found["branch_rule"] = "shadow mode stops no branch"
            elif unmeasured:
                found["branch_rule"] = f"{unmeasured} branches have no token certainty"
        return found

    def would_have_stopped(self) -> ShadowOutcome:
        """Replay the rule over these very samples: branches of a grant finish by length."""
        samples = [
            Sample(self._answers[i], self._lengths[i], confidence=self._confidences[i])
            for i in sorted(self._answers)
        ]
        rule = self._spec.stop_rule()
        tracker = _tracker_of(self._spec, self._grouping)
        acted = replay(samples, rule, self._spec.grant_policy(rule), tracker=tracker)
        return ShadowOutcome(
            stop_reason=acted.decision.stop_reason if acted.decision else "completed",
            answer=acted.answer,
            tokens=acted.tokens,
            branches=acted.branches_started,
            rounds=acted.rounds,
        )
