"""Search in waves: each wave is a tree of its own that grows layer by layer to its leaves.

A wave has as many leaves as could settle the vote, so that what a decided problem does not need is
never begun; a problem that stays open gets further trees, and its leaves vote together. Trees are
independent samples, which is what the rules of the vote assume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sglang_dynasor.programs.protocol import Start
from sglang_dynasor.programs.search_params import SearchSettings
from sglang_dynasor.programs.tree_search import TreeNode, TreeSearch

# Given the scored nodes of a layer, how many leaves they may come to and the settings: how many
# children each of them gets.
Widening = Callable[[Sequence[TreeNode], int, SearchSettings], Sequence[tuple[TreeNode, int]]]


class LayeredSearch(TreeSearch):
    """`widen` is the algorithm."""

    def __init__(self, settings: SearchSettings, widen: Widening) -> None:
        super().__init__(settings)
        self._widen = widen
        self._layer: list[TreeNode] = []  # judged steps to be widened
        self._left = 0  # leaves this wave may still come to
        self._named = 0

    def closed(self, node: TreeNode, is_leaf: bool) -> None:
        if is_leaf:
            self._left -= 1
        else:
            self._layer.append(node)

    def lost(self, node: TreeNode) -> None:
        if node.parent is None:
            self.votes.lose()
            self._left -= 1

    def grow(self, grant: int) -> Sequence[Start]:
        if self._open:
            return ()  # a layer is widened as a whole
        layer = sorted(self._layer, key=lambda node: int(node.name))
        self._layer.clear()
        shares = self._widen(layer, self._left, self.settings) if layer and self._left > 0 else ()
        starts = [self.node(self._name(), parent) for parent, count in shares for _ in range(count)]
        if starts or not grant:
            return starts
        self.rounds += 1
        self._left = grant
        return [self.node(self._name(), None, tree=tree) for tree in range(grant)]

    def _name(self) -> str:
        self._named += 1
        return str(self._named - 1)
