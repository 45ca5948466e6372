"""Self-consistency: sample branches, let them vote, stop when the vote is settled (paper 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from sglang_dynasor.allocation import FixedGrants, GrantPolicy, Sample, branch_values, replay
from sglang_dynasor.certaindex import (
    CertaindexTracker,
    Evidence,
    WeightedTracker,
    canonical_key,
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
from sglang_dynasor.programs.spec import ProgramSpec

_MAY_HAVE_ANSWERED = ("completed", "certain")


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


def _tracker_of(spec: ProgramSpec, key_of: Callable[[str], str]) -> CertaindexTracker:
    assert spec.max_branches is not None, "resolve() first"
    if spec.vote == "weighted":
        return WeightedTracker(spec.max_branches, key_of)
    if spec.vote == "filtered":
        return WeightedTracker(spec.max_branches, key_of, spec.keep_top)
    return CertaindexTracker(spec.max_branches, key_of)


class _Vote:
    """The branches counted so far."""

    def __init__(
        self, spec: ProgramSpec, pattern_time_limit_s: float, key_of: Callable[[str], str]
    ) -> None:
        assert spec.max_branches is not None
        self.tracker = _tracker_of(spec, key_of)
        self._confidences: dict[int, float | None] = {}
        self._key_of = key_of
        self._spelling: dict[str, str] = {}  # of each group, as first seen
        self.tokens = 0
        self._spec = spec
        self._limit_s = pattern_time_limit_s
        self._answers: dict[int, str] = {}
        self._lengths: dict[int, int] = {}

    def add(self, branch: FinishedBranch) -> None:
        self.tokens += branch.n_tokens
        self._lengths[branch.index] = branch.n_tokens
        confidence = branch.certainty.lowest_group if branch.certainty else None
        self._confidences[branch.index] = confidence
        if branch.stop_reason == "pruned":
            self.tracker.exclude(branch.index)
            return
        answer = ""  # a branch cut off by length, or in a loop, has not answered
        if branch.stop_reason in _MAY_HAVE_ANSWERED:
            answer = extract_answer(
                branch.text, self._spec.answer_format, self._spec.answer_pattern, self._limit_s
            )
        self._spelling.setdefault(self._key_of(answer), answer)
        self.tracker.add(branch.index, answer, self._weight(branch.index))
        self._answers[branch.index] = answer

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
        if self._spec.branch_rule == "deepconf" or self._spec.stop_loops:
            if self._spec.mode == "shadow":
                found["branch_rule"] = "shadow mode stops no branch"
            elif unmeasured:
                found["branch_rule"] = f"{unmeasured} branches have no token certainty"
        return found

    def _group_answer(self, answer: str) -> str:
        """The answer, or where only algebra sees its group, that of the group's first branch."""
        key = self._key_of(answer)
        return answer if key == canonical_key(answer) else self._spelling[key]

    def would_have_stopped(self) -> ShadowOutcome:
        """Replay the rule over these very samples: branches of a grant finish by length."""
        samples = [
            Sample(
                self._group_answer(self._answers[i]),
                self._lengths[i],
                confidence=self._confidences[i],
            )
            for i in sorted(self._answers)
        ]
        rule = self._spec.stop_rule()
        tracker = _tracker_of(self._spec, canonical_key)
        acted = replay(samples, rule, self._spec.grant_policy(rule), tracker=tracker)
        return ShadowOutcome(
            stop_reason=acted.decision.stop_reason if acted.decision else "completed",
            answer=acted.answer,
            tokens=acted.tokens,
            branches=acted.branches_started,
            rounds=acted.rounds,
        )
