"""Probes of the branches of a vote: which are watched, and what they would answer now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sglang_dynasor.allocation import StopRule
from sglang_dynasor.allocation.running_votes import CONFIRMED_FROM, with_running_votes
from sglang_dynasor.certaindex import Evidence
from sglang_dynasor.programs.protocol import PROBE_TOKENS, Probed, Watch

# Nothing is probed unless the program could stop if so many of the running branches confirmed the
# leader: below it probes are paid for in vain.
_HOPED_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """How branches are probed: each `every` tokens, with this forced text."""

    every: int
    text: str = ""
    max_tokens: int = PROBE_TOKENS


class BranchProbes:
    """The latest answers of running branches; watched are those that could settle the vote."""

    def __init__(self, plan: ProbePlan, rule: StopRule) -> None:
        self._plan = plan
        self._rule = rule
        self._latest: dict[int, str] = {}  # group of the answer
        self._latest_at: dict[int, int] = {}  # its place: a box of its own may overtake a probe
        self._watched: set[int] = set()

    def take(self, event: Probed) -> None:
        branch = int(event.node)
        if event.at < self._latest_at.get(branch, 0):
            return
        self._latest_at[branch] = event.at
        if event.counts:
            self._latest[branch] = event.group
        else:
            self._latest.pop(branch, None)

    def ended(self, branch: int) -> None:
        """A branch has finished or failed, or has to start anew."""
        self._latest.pop(branch, None)
        self._latest_at.pop(branch, None)
        self._watched.discard(branch)

    def forget(self) -> None:
        """Groups have been split: what was known of running branches may be another one's."""
        self._latest.clear()

    def is_certain(self, evidence: Evidence, finished: Mapping[str, int]) -> bool:
        """Whether the vote is settled once running branches that confirm an answer count."""
        votes = with_running_votes(evidence, finished, Counter(self._latest.values()))
        return votes is not None and self._rule.decide(votes) is not None

    def watches(
        self, evidence: Evidence, finished: Mapping[str, int], running: Iterable[int]
    ) -> list[Watch]:
        """What is to be watched from now on, or no longer, of the branches that may be running."""
        branches = list(running)
        if not self._hopes(evidence, finished, len(branches)):
            ended = [Watch(str(branch), 0) for branch in sorted(self._watched)]
            self._watched.clear()
            return ended
        plan = self._plan
        new = [branch for branch in branches if branch not in self._watched]
        self._watched.update(new)
        return [Watch(str(branch), plan.every, plan.text, plan.max_tokens) for branch in new]

    def _hopes(self, evidence: Evidence, finished: Mapping[str, int], running: int) -> bool:
        if max(finished.values(), default=0) < CONFIRMED_FROM or not running:
            return False
        leader = max(finished, key=finished.__getitem__)
        confirming = max(1, round(_HOPED_SHARE * running))
        votes = with_running_votes(evidence, finished, {leader: confirming})
        return votes is not None and self._rule.decide(votes) is not None
