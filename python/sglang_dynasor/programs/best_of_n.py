"""Best-of-N: whole answers, the one of highest reward or of most reward counts (paper App. A)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from sglang_dynasor.programs.layered_search import LayeredSearch
from sglang_dynasor.programs.params import MAX_BRANCHES
from sglang_dynasor.programs.search_params import SearchParams, SearchSettings, SearchVote
from sglang_dynasor.programs.tree_search import TreeNode


class BestOfNParams(SearchParams):
    """Fields of `algorithm: best_of_n`."""

    default_vote: ClassVar[SearchVote] = "best"
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
