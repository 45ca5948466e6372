"""Self-consistency: sample branches, let them vote, stop when the vote is settled (paper 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from sglang_dynasor.allocation import FixedGrants, GrantPolicy, Sample, branch_values, replay
from sglang_dynasor.certaindex import CertaindexTracker, Evidence, canonical_key, extract_answer
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
from sglang_dynasor.programs.spec import ProgramSpec


def self_consistency(
    spec: ProgramSpec,
    pattern_time_limit_s: float,
    key_of: Callable[[str], str] = canonical_key,
) -> ReasoningProgram:
    """Run the resolved `spec`; in shadow mode run every branch and only note the decision.

    `key_of` gives the group of an answer. It may take its time: see `run_program`.
    """
    assert spec.max_branches is not None, "resolve() first"
    shadow = spec.mode == "shadow"
    rule = spec.stop_rule()
    grants = FixedGrants((spec.max_branches,)) if shadow else spec.grant_policy(rule)
    vote = _Vote(spec, pattern_time_limit_s, key_of)
    planned = rounds = 0  # branches that have finished, run, or must run now
    while vote.tracker.finished < spec.max_branches:
        evidence = vote.tracker.evidence()
        step: Step = Grant(0)
        if spec.draw == "offer" and not shadow:
            step = _offer(evidence, grants)
            rounds += evidence.finished + step.needed > planned
            planned = max(planned, evidence.finished + step.needed)
        elif evidence.finished == planned:
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


def _offer(evidence: Evidence, grants: GrantPolicy) -> Offer:
    """The fewest branches that could settle the vote are needed, the rest is offered.

    No round has to end first: each answer that disagrees makes more branches needed at once.
    """
    needed = grants.next_grant(evidence, 0)
    gains = branch_values(evidence, mean_tokens=1.0)
    return Offer(
        needed=needed,
        values=gains[needed:],
        worth=min(1.0, sum(gains[:needed]) / _first_gain(evidence.finished + evidence.remaining)),
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


class _Vote:
    """The branches counted so far."""

    def __init__(
        self, spec: ProgramSpec, pattern_time_limit_s: float, key_of: Callable[[str], str]
    ) -> None:
        assert spec.max_branches is not None
        self.tracker = CertaindexTracker(spec.max_branches, key_of)
        self._key_of = key_of
        self._spelling: dict[str, str] = {}  # of each group, as first seen
        self.tokens = 0
        self._spec = spec
        self._limit_s = pattern_time_limit_s
        self._answers: dict[int, str] = {}
        self._lengths: dict[int, int] = {}

    def add(self, branch: FinishedBranch) -> None:
        answer = ""  # a branch cut off by length has not answered
        if branch.stop_reason == "completed":
            answer = extract_answer(
                branch.text, self._spec.answer_format, self._spec.answer_pattern, self._limit_s
            )
        self._spelling.setdefault(self._key_of(answer), answer)
        self.tracker.add(branch.index, answer)
        self.tokens += branch.n_tokens
        self._answers[branch.index] = answer
        self._lengths[branch.index] = branch.n_tokens

    def outcome(
        self, stop_reason: ProgramStop, rounds: int, shadow: ShadowOutcome | None = None
    ) -> Outcome:
        leader = self.tracker.leader
        reason = self._spec.stop_rule().inactive(self.tracker.evidence())
        return Outcome(
            stop_reason=stop_reason,
            answer=leader.answer if leader else "",
            branch=leader.first_branch if leader else min(self._answers, default=None),
            certaindex=self.tracker.certaindex,
            votes=tuple(self.tracker.votes()),
            answers=dict(sorted(self._answers.items())),
            rounds=rounds,
            shadow=shadow,
            inactive={"rule": reason} if reason else {},
        )

    def _group_answer(self, answer: str) -> str:
        """The answer, or where only algebra sees its group, that of the group's first branch."""
        key = self._key_of(answer)
        return answer if key == canonical_key(answer) else self._spelling[key]

    def would_have_stopped(self) -> ShadowOutcome:
        """Replay the rule over these very samples: branches of a grant finish by length."""
        samples = [
            Sample(self._group_answer(self._answers[i]), self._lengths[i])
            for i in sorted(self._answers)
        ]
        rule = self._spec.stop_rule()
        acted = replay(samples, rule, self._spec.grant_policy(rule))
        return ShadowOutcome(
            stop_reason=acted.decision.stop_reason if acted.decision else "completed",
            answer=acted.answer,
            tokens=acted.tokens,
            branches=acted.branches_started,
            rounds=acted.rounds,
        )
