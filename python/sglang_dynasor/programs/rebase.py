"""Rebase: children in balance with their parents' rewards (arXiv 2408.00724, paper App. A)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from sglang_dynasor.programs.layered_search import LayeredSearch
from sglang_dynasor.programs.params import RequestTraits
from sglang_dynasor.programs.search_params import SearchSettings, WidthParams
from sglang_dynasor.programs.tree_search import TreeNode


class RebaseParams(WidthParams):
    """Fields of `algorithm: rebase`."""

    operating_points: ClassVar[Mapping[str, tuple[float | None, float | None, int]]] = {
        "gsm8k": (0.85, 0.99, 16),
        "math": (0.75, None, 16),
    }
    balance: float | None = Field(
        None,
        gt=0,
        le=100,
        description="temperature of the softmax that shares children out by reward: the lower, the "
        "more go to the best; 0.2",
    )

    def shape(self, request: RequestTraits) -> dict[str, object]:
        return super().shape(request) | {"balance": self.balance or 0.2}


def widen(
    layer: Sequence[TreeNode], leaves: int, settings: SearchSettings
) -> Sequence[tuple[TreeNode, int]]:
    """Share the leaves out by the softmax of the rewards, best first, each share rounded up.

    Without rewards all get alike.
    """
    known = [node.reward for node in layer if node.reward is not None]
    mean = sum(known) / len(known) if known else 0.0
    rewards = {node: mean if node.reward is None else node.reward for node in layer}
    best = max(rewards.values())
    weights = {n: math.exp((reward - best) / settings.balance) for n, reward in rewards.items()}
    total = sum(weights.values())
    shares = []
    left = leaves
    for node in sorted(layer, key=lambda node: -rewards[node]):
        share = min(left, math.ceil(leaves * weights[node] / total - 1e-9))
        if share > 0:
            shares.append((node, share))
            left -= share
    return shares


def rebase(settings: SearchSettings) -> LayeredSearch:
    return LayeredSearch(settings, widen)
