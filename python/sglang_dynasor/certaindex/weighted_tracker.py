"""Votes that weigh as much as their branches are confident (DeepConf, arXiv 2508.15260)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from sglang_dynasor.certaindex.canonical import canonical_key
from sglang_dynasor.certaindex.entropy import AGREEMENT_DIGITS
from sglang_dynasor.certaindex.token_certainty import keep_top_threshold
from sglang_dynasor.certaindex.tracker import CertaindexTracker, Evidence, Vote


class WeightedTracker(CertaindexTracker):
    """The answer with most weight leads; ties go to more branches, then to the lowest branch.

    With `keep_top` (0 to 1) only so many of the most confident branches that answered weigh
    anything, at least one. A branch that was not measured weighs 0: where none was, this is
    the majority vote. Counts and certaindex stay those of equal votes.
    """

    def __init__(
        self,
        max_branches: int,
        key_of: Callable[[str], str] = canonical_key,
        keep_top: float | None = None,
    ) -> None:
        super().__init__(max_branches, key_of)
        self._keep_top = keep_top
        self._ballots: dict[int, tuple[str, float]] = {}  # group and weight of each branch

    def add(
        self, branch: int, answer: str, weight: float = 1.0, reward: float | None = None
    ) -> None:
        """Count the answer of a finished branch whose confidence is `weight`, at least 0."""
        super().add(branch, answer, weight, reward)
        key = self._key_of(answer)
        if key:
            self._ballots[branch] = (key, weight)

    @property
    def leader(self) -> Vote | None:
        """The group with most weight; None without answers."""
        return next(iter(self.votes()), None)

    def votes(self) -> list[Vote]:
        """Return the groups by falling weight, which is that of the branches kept."""
        lowest_kept = 0.0
        if self._keep_top is not None and self._ballots:
            confidences = [weight for _, weight in self._ballots.values()]
            lowest_kept = keep_top_threshold(confidences, self._keep_top)
        kept: dict[str, list[float]] = defaultdict(list)
        for key, weight in self._ballots.values():
            if weight >= lowest_kept:
                kept[key].append(weight)
        votes = [
            # Exact sums: the order in which branches finish must not decide.
            Vote(group.answer, group.count, math.fsum(kept[key]), group.first_branch)
            for key, group in self._groups.items()
        ]
        return sorted(votes, key=_rank)

    def evidence(self) -> Evidence:
        """Return what a stop rule may know now; the leader's weight is that of this leader."""
        votes = self.votes()
        return replace(
            super().evidence(),
            leader_weight=votes[0].weight if votes else 0.0,
            total_weight=math.fsum(vote.weight for vote in votes),
            unit_votes=False,
        )


def _rank(vote: Vote) -> tuple[float, int, int]:
    return (-round(vote.weight, AGREEMENT_DIGITS), -vote.count, vote.first_branch)
