"""The leaves of a search: what they answer, what they are worth, and what both say together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from sglang_dynasor.certaindex import CertaindexTracker, Evidence, Vote, WeightedTracker
from sglang_dynasor.programs.protocol import Finished, ProgramStop
from sglang_dynasor.programs.search_params import SearchSettings


class Leaf(NamedTuple):
    """A path that has come to its end; `reward` is None where none was to be had."""

    event: Finished
    reward: float | None


class LeafVotes:
    """Counts leaves, anew where a group is split.

    Rules judge equal votes, the answer is that of the settings' vote: the search is certain only
    where both lead.
    """

    def __init__(self, settings: SearchSettings) -> None:
        self.leaves: list[Leaf] = []
        self._settings = settings
        self._groups: dict[str, str] = {}
        self._count_anew()

    def _count_anew(self) -> None:
        most = self._settings.max_branches
        self._counts = CertaindexTracker(most, self._groups.__getitem__, self._settings.aggregate)
        self._weights = WeightedTracker(most, self._groups.__getitem__)

    def add(self, leaf: Leaf) -> None:
        """Count a leaf; the order in which they are added breaks ties."""
        self.leaves.append(leaf)
        self._vote(len(self.leaves) - 1, leaf)

    def lose(self) -> None:
        """Take note of a path that has failed: there will be one leaf less."""
        index = len(self.leaves)
        self.leaves.append(Leaf(Finished("", "", 0, "pruned"), None))
        self._vote(index, self.leaves[index])

    def regroup(self, groups: Mapping[str, str]) -> None:
        """Count everything again with the groups of all nodes as they are now."""
        leaves = [
            Leaf(replace(event, group=groups.get(event.node, event.group)), reward)
            for event, reward in self.leaves
        ]
        self.leaves.clear()
        self._groups.clear()
        self._count_anew()
        for leaf in leaves:
            self.add(leaf)

    def _vote(self, index: int, leaf: Leaf) -> None:
        event = leaf.event
        if event.stop_reason == "pruned":
            self._counts.exclude(index)
            self._weights.exclude(index)
            return
        self._groups[event.answer] = event.group
        self._counts.add(index, event.answer, reward=leaf.reward)
        weight = 1.0 if leaf.reward is None or self._is_majority else leaf.reward
        self._weights.add(index, event.answer, weight)

    @property
    def _is_majority(self) -> bool:
        return self._settings.vote == "majority"

    @property
    def counted(self) -> list[Leaf]:
        """The leaves that have come to their end."""
        return [leaf for leaf in self.leaves if leaf.event.stop_reason != "pruned"]

    @property
    def evidence(self) -> Evidence:
        """What a rule may know."""
        return self._counts.evidence()

    def decide(self) -> ProgramStop | None:
        """Why to stop, None to go on."""
        settings, evidence = self._settings, self.evidence
        decision = settings.rule.decide(evidence)
        if decision is None:
            return None
        if decision.stop_reason == "hopeless":
            return "hopeless"
        bar = settings.reward_threshold
        if bar is not None and settings.judged and (evidence.reward or 0.0) < bar:
            return None
        if not self._is_agreed():
            return None
        if decision.stop_reason == "decided" and not self._is_majority:
            return "certain"  # rewards to come could still outweigh it
        return decision.stop_reason

    def _is_agreed(self) -> bool:
        counted, shown = self._counts.leader, self.leader
        if counted is None or shown is None:
            return False
        return self._groups[counted.answer] == self._groups[shown.answer]

    @property
    def leader(self) -> Vote | None:
        """The group whose answer is that of the search."""
        if self._settings.vote != "best":
            return self._weights.leader
        answered = [
            (leaf.reward or 0.0, -i) for i, leaf in enumerate(self.leaves) if leaf.event.answer
        ]
        if not answered:
            return None
        index = -max(answered)[1]
        group = self._groups[self.leaves[index].event.answer]
        return next(
            replace(vote, first_branch=index)
            for vote in self._weights.votes()
            if self._groups[vote.answer] == group
        )

    def votes(self) -> tuple[Vote, ...]:
        """All groups, the heaviest first."""
        return tuple(self._weights.votes())
