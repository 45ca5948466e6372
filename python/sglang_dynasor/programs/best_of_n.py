"""Best-of-N: whole answers, that of most reward counts, or that of the best (paper App. A)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from sglang_dynasor.programs.layered_search import LayeredSearch
from sglang_dynasor.programs.params import MAX_BRANCHES
from sglang_dynasor.programs.search_params import SearchParams, SearchSettings
from sglang_dynasor.programs.tree_search import TreeNode


class BestOfNParams(SearchParams):
    """Fields of `algorithm: best_of_n`."""

    max_branches: int | None = Field(
        None, ge=1, le=MAX_BRANCHES, description="branches it may use; 16"
    )

    def most(self) -> int:
        return self.max_branches or 16


def widen(
    layer: Sequence[TreeNode], leaves: int, settings: SearchSettings
) -> Sequence[tuple[TreeNode, int]]:
    """Every first step runs to its end: there is nothing to widen."""
    return ()


def best_of_n(settings: SearchSettings) -> LayeredSearch:
    return LayeredSearch(settings, widen)
