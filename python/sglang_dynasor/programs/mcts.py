"""Monte Carlo tree search over steps, several iterations side by side (paper App. A).

An iteration selects by PUCT, adds one step, runs that to its end, and backs up the reward of the
answer. Until then its path carries a virtual loss, so that others of its wave look elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import Field

from sglang_dynasor.certaindex.reward import RewardAggregate
from sglang_dynasor.programs.params import MAX_BRANCHES, RequestTraits
from sglang_dynasor.programs.protocol import Start
from sglang_dynasor.programs.search_params import SearchSettings, SteppedParams
from sglang_dynasor.programs.tree_search import TreeNode, TreeSearch

NEUTRAL = 0.5  # the reward of what nobody judges


class MctsParams(SteppedParams):
    """Fields of `algorithm: mcts`."""

    aggregate: ClassVar[RewardAggregate] = "mean"
    operating_points: ClassVar[Mapping[str, tuple[float | None, float | None, int]]] = {
        "gsm8k": (0.99, 0.4, 3),
        "asdiv": (None, 0.4, 3),
    }
    iterations: int | None = Field(
        None, ge=1, le=MAX_BRANCHES, description="iterations, each of which ends with a leaf; 16"
    )
    expansion: int | None = Field(None, ge=1, le=512, description="children a step may have; 4")
    exploration: float | None = Field(
        None, gt=0, le=100, description="weight of what was tried little, in PUCT; 1"
    )

    def most(self) -> int:
        return self.iterations or 16

    def shape(self, request: RequestTraits) -> dict[str, object]:
        return super().shape(request) | {
            "expansion": self.expansion or 4,
            "exploration": self.exploration or 1.0,
        }


@dataclass(slots=True, eq=False)
class _Place:
    """A node of the search tree, the root included. `visits` count iterations under way too."""

    node: TreeNode | None
    parent: _Place | None
    visits: int = 0
    value: float = 0.0
    begun: int = 0  # children, those under way included
    children: list[_Place] = field(default_factory=list)  # which have ended and go on
    over: bool = False  # nothing below it can be added

    def score(self, exploration: float) -> float:
        """PUCT, with the node's own reward as its prior and as its value before any visit."""
        assert self.node is not None and self.parent is not None
        own = NEUTRAL if self.node.reward is None else self.node.reward
        mean = (own + self.value) / (1 + self.visits)
        return mean + exploration * own * math.sqrt(self.parent.visits) / (1 + self.visits)


class Mcts(TreeSearch):
    """`max_branches` iterations, as many at once as could settle the vote."""

    def __init__(self, settings: SearchSettings) -> None:
        super().__init__(settings)
        self._root = _Place(None, None)
        self._places: dict[str, _Place] = {}  # of steps and rollouts under way: whose they are
        self._rollouts: list[_Place] = []  # steps that are to run to their end
        self._named = 0

    def closed(self, node: TreeNode, is_leaf: bool) -> None:
        place = self._places.pop(node.name)
        if not is_leaf:
            assert place.parent is not None
            place.parent.children.append(place)
            self._rollouts.append(place)
            return
        place.over = place.over or node is place.node
        reward = NEUTRAL if node.reward is None else node.reward
        for above in _up(place):
            above.value += reward

    def lost(self, node: TreeNode) -> None:
        self.votes.lose()
        place = self._places.pop(node.name)
        place.over = place.over or node is place.node
        for above in _up(place):
            above.visits -= 1

    def grow(self, grant: int) -> Sequence[Start]:
        starts = [self._begin(place, place.node, whole=True) for place in self._rollouts]
        self._rollouts.clear()
        self.rounds += grant > 0
        for _ in range(grant):
            parent = self._select(self._root)
            if parent is None:
                break
            parent.begun += 1
            place = _Place(None, parent)
            for above in _up(place):
                above.visits += 1
            starts.append(self._begin(place, parent.node))
            place.node = self._open[starts[-1].node]
        return starts

    def _begin(self, place: _Place, parent: TreeNode | None, *, whole: bool = False) -> Start:
        name = str(self._named)
        self._named += 1
        self._places[name] = place
        return self.node(name, parent, whole=whole)

    def _select(self, place: _Place) -> _Place | None:
        """The best place for another step; None where none is left below `place`."""
        if place.begun < self.settings.expansion:
            return place
        exploration = self.settings.exploration
        for child in sorted(place.children, key=lambda child: -child.score(exploration)):
            if not child.over and (found := self._select(child)) is not None:
                return found
        return None


def _up(place: _Place) -> Sequence[_Place]:
    places = [place]
    while places[-1].parent is not None:
        places.append(places[-1].parent)
    return places
