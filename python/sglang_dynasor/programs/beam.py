"""Beam search over steps, and its diverse form (DVTS): the best steps get all children."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pydantic import Field

from sglang_dynasor.programs.layered_search import LayeredSearch
from sglang_dynasor.programs.params import RequestTraits
from sglang_dynasor.programs.search_params import SearchSettings, WidthParams
from sglang_dynasor.programs.tree_search import TreeNode


class BeamParams(WidthParams):
    """Fields of `algorithm: beam` and `dvts`."""

    expansion: int | None = Field(
        None, ge=1, le=512, description="children of each step that is kept; 4"
    )

    def shape(self, request: RequestTraits) -> dict[str, object]:
        return super().shape(request) | {"expansion": self.expansion or 4}


def widen_best(
    layer: Sequence[TreeNode], leaves: int, settings: SearchSettings
) -> Sequence[tuple[TreeNode, int]]:
    """Keep the best steps of the layer, so many that all leaves are shared among them."""
    ranked = sorted(layer, key=_rank)
    shares = []
    for node in ranked:
        share = min(leaves, settings.expansion)
        if share <= 0:
            break
        shares.append((node, share))
        leaves -= share
    return shares


def widen_best_of_trees(
    layer: Sequence[TreeNode], leaves: int, settings: SearchSettings
) -> Sequence[tuple[TreeNode, int]]:
    """Keep the best step of each subtree: as many subtrees as there are leaves by `expansion`."""
    trees: dict[int, list[TreeNode]] = defaultdict(list)
    for node in layer:
        trees[node.tree // settings.expansion].append(node)
    best = [min(nodes, key=_rank) for nodes in trees.values()]
    return widen_best(best, leaves, settings)


def _rank(node: TreeNode) -> tuple[float, int]:
    return (-(node.reward or 0.0), int(node.name))


def beam(settings: SearchSettings) -> LayeredSearch:
    return LayeredSearch(settings, widen_best)


def dvts(settings: SearchSettings) -> LayeredSearch:
    return LayeredSearch(settings, widen_best_of_trees)
