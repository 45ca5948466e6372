"""The votes of a program: which branches have ended, how, and what they say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from sglang_dynasor.certaindex import Evidence, Vote
from sglang_dynasor.programs.protocol import Finished, Regrouped


class VoteTracker(Protocol):
    """What counts the votes of a program: `CertaindexTracker`, or what knows its figures."""

    @property
    def certaindex(self) -> float: ...

    @property
    def leader(self) -> Vote | None: ...

    def add(self, branch: int, answer: str, weight: float = 1.0) -> None: ...

    def exclude(self, branch: int) -> None: ...

    def votes(self) -> list[Vote]: ...

    def evidence(self) -> Evidence: ...


class Votes:
    """Counts what branches answer, anew where a group is split.

    `finished` are in finishing order, `sizes` the branches of each group; `evidence` is what a rule
    may know.
    """

    def __init__(
        self,
        tracker: VoteTracker | None,
        new_tracker: Callable[[Callable[[str], str]], VoteTracker],
        weight_of: Callable[[Finished], float],
    ) -> None:
        self.finished: list[Finished] = []
        self.failed: list[int] = []
        self.groups: dict[str, str] = {}  # of each answer
        self.sizes: Counter[str] = Counter()
        self._new_tracker = new_tracker
        self._weight_of = weight_of
        self.tracker = tracker or new_tracker(self.groups.__getitem__)
        self.evidence = self.tracker.evidence()

    def add(self, event: Finished) -> None:
        """Count a branch that has finished."""
        self.finished.append(event)
        self._vote(event)

    def exclude(self, branch: int) -> None:
        """Take note of a branch that has failed."""
        self.failed.append(branch)
        self.tracker.exclude(branch)

    def update(self) -> None:
        """Bring `evidence` up to date."""
        self.evidence = self.tracker.evidence()

    def regroup(self, event: Regrouped) -> None:
        """Count everything again: a group has been split."""
        self.tracker = self._new_tracker(self.groups.__getitem__)
        self.sizes.clear()
        for branch in self.failed:
            self.tracker.exclude(branch)
        for finished in self.finished:
            self._vote(replace(finished, group=event.groups[finished.node]))
        self.update()

    def _vote(self, event: Finished) -> None:
        branch = int(event.node)
        if event.stop_reason == "pruned":
            self.tracker.exclude(branch)
            return
        self.groups[event.answer] = event.group
        if event.group:
            self.sizes[event.group] += 1
        self.tracker.add(branch, event.answer, self._weight_of(event))
