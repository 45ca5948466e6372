"""A program and a policy that are not the package's: what an author of another would write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sglang_dynasor.certaindex import Evidence, Vote
from sglang_dynasor.programs import (
    Aborted,
    Action,
    Cancel,
    Demand,
    Event,
    Expired,
    Failed,
    Finished,
    Outcome,
    ProgramStop,
    Start,
)

SUFFIX = " So the answer is"


class TwoLevels:
    """A tree: `width` first steps, then `width` continuations of the first `keep` to finish.

    Steps that come later are cancelled. The leaves vote, and the first two that agree decide.
    """

    def __init__(self, width: int = 3, keep: int = 2, step_tokens: int | None = None) -> None:
        self._width = width
        self._keep = keep
        self._step_tokens = step_tokens
        self._kept: list[str] = []
        self._leaves: dict[str, Finished] = {}
        self._open = {f"s{i}" for i in range(width)}  # neither ended nor cancelled

    def start(self) -> Sequence[Action]:
        steps = sorted(self._open)
        starts = [Start(step, kind="step", max_tokens=self._step_tokens) for step in steps]
        return [Demand(work=self._width * self._keep), *starts]

    def on(self, events: Sequence[Event]) -> Sequence[Action] | Outcome:
        actions: list[Action] = []
        for event in events:
            if isinstance(event, Expired | Aborted):
                return self._outcome("deadline" if isinstance(event, Expired) else "aborted")
            if not isinstance(event, Finished | Failed):
                continue
            self._open.discard(event.node)
            if isinstance(event, Finished) and "l" in event.node:
                self._leaves[event.node] = event
            elif isinstance(event, Finished) and len(self._kept) < self._keep:
                actions += self._branch_off(event.node)
        if self._votes() and self._votes()[0].count >= 2:
            return self._outcome("certain")
        return actions if self._open else self._outcome("completed")

    def _branch_off(self, step: str) -> list[Action]:
        self._kept.append(step)
        leaves = [
            Start(f"{step}l{i}", parent=step, suffix=SUFFIX, kind="leaf")
            for i in range(self._width)
        ]
        late = tuple(sorted(node for node in self._open if "l" not in node))
        self._open |= {leaf.node for leaf in leaves}
        if len(self._kept) < self._keep:
            return [*leaves]
        self._open -= set(late)
        return [*leaves, Cancel(late)]

    def _votes(self) -> tuple[Vote, ...]:
        counts = Counter(leaf.group for leaf in self._leaves.values() if leaf.group)
        answers = {leaf.group: leaf.answer for leaf in self._leaves.values()}
        return tuple(Vote(answers[group], n, n, 0) for group, n in counts.most_common())

    def _outcome(self, stop_reason: ProgramStop) -> Outcome:
        votes = self._votes()
        answer = votes[0].answer if votes else ""
        shown = [node for node, leaf in self._leaves.items() if leaf.answer == answer]
        return Outcome(
            stop_reason=stop_reason,
            answer=answer,
            node=shown[0] if shown else None,
            certaindex=votes[0].count / len(self._leaves) if votes else 0.0,
            votes=votes,
            answers={node: leaf.answer for node, leaf in self._leaves.items()},
            rounds=2 if self._leaves else 1,
        )


class Doubling:
    """An allocation policy: 1, 2, 4, ... branches."""

    def next_grant(self, evidence: Evidence, rounds: int) -> int:
        return min(2**rounds, evidence.remaining)
