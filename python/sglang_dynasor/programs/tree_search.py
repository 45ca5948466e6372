"""What all search programs share: a tree of nodes that grow, are judged, and vote as leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sglang_dynasor.allocation import branch_values
from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.programs.leaf_votes import Leaf, LeafVotes
from sglang_dynasor.programs.protocol import (
    Action,
    Ask,
    Event,
    Expired,
    Failed,
    Finished,
    Granted,
    Outcome,
    ProgramStop,
    Regrouped,
    Score,
    Scored,
    ShadowOutcome,
    Start,
    Trimmed,
)
from sglang_dynasor.programs.search_params import SearchSettings
from sglang_dynasor.programs.token_cap import TokenCap


@dataclass(slots=True, eq=False)
class TreeNode:
    """A step of a path: `depth` 1 continues the prompt. `tree` numbers the first steps."""

    start: Start
    parent: TreeNode | None
    depth: int
    tree: int
    event: Finished | None = None
    reward: float | None = None

    @property
    def name(self) -> str:
        return self.start.node

    @property
    def tokens(self) -> int:
        """Generated tokens of the whole path."""
        before = self.parent.tokens if self.parent else 0
        return before + (self.event.n_tokens if self.event else 0)


class TreeSearch(ABC):
    """Runs the events of a tree; an algorithm says how it grows.

    A node is open until it has ended and has its reward; where no reward is to be had the search
    goes on by votes alone. In shadow mode a decision is only noted.
    """

    def __init__(self, settings: SearchSettings) -> None:
        self.settings = settings
        self.votes = LeafVotes(settings)
        self.rounds = 0
        self._open: dict[str, TreeNode] = {}
        self._cap = TokenCap(settings.max_total_tokens)
        self._share: int | None = None  # tokens of each path of this wave
        self._no_reward = ""
        self._best: TreeNode | None = None  # of the steps, in case no path ends in time
        self._shadow: ShadowOutcome | None = None

    @abstractmethod
    def closed(self, node: TreeNode, is_leaf: bool) -> None:
        """Take a node that has ended and is judged; a leaf is counted already."""

    @abstractmethod
    def lost(self, node: TreeNode) -> None:
        """Take note of a node that has failed."""

    @abstractmethod
    def grow(self, grant: int) -> Sequence[Start]:
        """Return what is started next; nothing where others are waited for, or nothing is left.

        `grant` further leaves may be begun: all that were granted before have ended.
        """

    def start(self) -> Sequence[Action]:
        """Return the first steps."""
        step = self._next()
        assert not isinstance(step, Outcome)
        return step

    def on(self, events: Sequence[Event]) -> Sequence[Action] | Outcome:
        """Take what has ended and what was judged, ask the rule, and let the tree grow."""
        actions: list[Action] = []
        leaves = len(self.votes.leaves)
        for event in events:
            if isinstance(event, Finished):
                actions += self._end(event)
            elif isinstance(event, Scored):
                self._no_reward = self._no_reward or event.error
                node = self._open[event.node]
                node.reward = event.reward
                self._close(node)
            elif isinstance(event, Failed):
                self.lost(self._open.pop(event.node))
            elif isinstance(event, Trimmed):
                actions.append(self._open[event.node].start)
            elif isinstance(event, Regrouped):
                self._regroup(event)
            elif isinstance(event, Granted):
                self._cap.grant(event.tokens)
            else:
                return self._outcome("deadline" if isinstance(event, Expired) else "aborted")
        if len(self.votes.leaves) > leaves and (stop_reason := self._decide()):
            return self._outcome(stop_reason)
        step = self._next()
        return step if isinstance(step, Outcome) else [*actions, *step]

    def node(
        self, name: str, parent: TreeNode | None, *, tree: int = 0, whole: bool = False
    ) -> Start:
        """Open a node: a step behind `parent`, or the `whole` rest of its path."""
        settings = self.settings
        depth = 1 if parent is None else parent.depth + 1
        last = whole or depth >= settings.depth
        limits = [] if last else [settings.step_tokens]
        if self._share is not None:
            limits.append(max(1, self._share - (parent.tokens if parent else 0)))
        start = Start(
            name,
            None if parent is None else parent.name,
            max_tokens=min((limit for limit in limits if limit is not None), default=None),
            kind="branch" if last else "step",
            stop="" if last else settings.step_stop,
        )
        self._open[name] = TreeNode(start, parent, depth, parent.tree if parent else tree)
        return start

    def _end(self, event: Finished) -> Sequence[Action]:
        node = self._open[event.node]
        node.event = event
        self._cap.spent += event.n_tokens
        if self.settings.judged and not self._no_reward:
            return [Score((event.node,))]
        self._close(node)
        return ()

    def _close(self, node: TreeNode) -> None:
        del self._open[node.name]
        event = node.event
        assert event is not None
        is_leaf = self._is_leaf(node, event)
        if is_leaf:
            self.votes.add(Leaf(event, node.reward))
            self._cap.ended += 1
            self._cap.longest = max(self._cap.longest, node.tokens)
        elif self._best is None or (node.reward or 0.0) >= (self._best.reward or 0.0):
            self._best = node
        self.closed(node, is_leaf)

    def _regroup(self, event: Regrouped) -> None:
        """A group was split: leaves that still wait for their reward may be another one's, too."""
        self.votes.regroup(event.groups)
        for node in self._open.values():
            if node.event is not None:
                group = event.groups.get(node.name, node.event.group)
                node.event = replace(node.event, group=group)

    def _is_leaf(self, node: TreeNode, event: Finished) -> bool:
        """Whether a path has come to its end: by itself, by its length, or for want of steps."""
        start = node.start
        if not start.stop or (self._share is not None and node.tokens >= self._share):
            return True
        if event.stop_reason == "completed":
            return event.matched_stop != start.stop
        return event.stop_reason != "length" or event.n_tokens < (start.max_tokens or 0)

    def _decide(self) -> ProgramStop | None:
        stop_reason = self.votes.decide()
        if stop_reason is None or not self.settings.shadow:
            return stop_reason
        if self._shadow is None:
            leader = self.votes.leader
            self._shadow = ShadowOutcome(
                stop_reason,
                leader.answer if leader else "",
                self._cap.spent,
                len(self.votes.leaves),
                self.rounds,
            )
        return None

    def _next(self) -> Sequence[Action] | Outcome:
        starts = self.grow(0)
        if not starts and not self._open:
            grant = self._grant()
            if isinstance(grant, Outcome | Ask):
                return grant if isinstance(grant, Outcome) else [grant]
            starts = self.grow(grant) if grant else ()
            if not starts:
                return self._outcome("completed" if self.votes.counted else "failed")
        if not starts:
            return ()
        return [Demand(self.votes.evidence.certaindex, 1.0, self._work()), *starts]

    def _grant(self) -> int | Ask | Outcome:
        """How many leaves the next wave has, the question for the tokens it needs, or the end."""
        evidence, cap = self.votes.evidence, self._cap
        if not evidence.remaining:
            return 0
        grant = self.settings.grants.next_grant(evidence, self.rounds)
        if cap.limit is None:
            return grant
        if missing := cap.missing(grant):
            gain = sum(branch_values(evidence, 1.0, limit=grant))
            return Ask(missing, gain / (grant * cap.longest))
        grant = cap.fits(grant)
        if not grant:
            return self._outcome("budget")
        self._share = cap.share(grant)
        return grant

    def _work(self) -> float:
        """Leaves to come, less the nearer the search is to certain."""
        evidence = self.votes.evidence
        return evidence.remaining * (1 - evidence.certaindex)

    def _outcome(self, stop_reason: ProgramStop) -> Outcome:
        votes, leader = self.votes, self.votes.leader
        evidence = votes.evidence
        counted = [leaf.event for leaf in votes.counted]
        best = self._best.name if self._best else None
        shown = counted[0].node if counted else best
        if leader is not None:
            shown = votes.leaves[leader.first_branch].event.node
        inactive = dict(self.settings.inactive)
        if self._no_reward:
            inactive["reward"] = self._no_reward
        shadow = self._shadow
        if self.settings.shadow and shadow is None and stop_reason == "completed":
            answer = leader.answer if leader else ""
            shadow = ShadowOutcome("completed", answer, self._cap.spent, len(counted), self.rounds)
        return Outcome(
            stop_reason=stop_reason,
            answer=leader.answer if leader else "",
            node=shown,
            certaindex=evidence.certaindex,
            votes=votes.votes(),
            answers={event.node: event.answer for event in counted},
            rounds=self.rounds,
            shadow=shadow,
            inactive=inactive,
        )
