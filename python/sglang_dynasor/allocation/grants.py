"""Grant policies: how many branches a program gets next, once all it was granted have finished."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from sglang_dynasor.allocation.rules import StopRule
from sglang_dynasor.certaindex.tracker import Evidence

MAX_GRANT = 512
MAX_GRANTS = 64


class GrantPolicy(Protocol):
    """Trades rounds (latency) for branches (tokens)."""

    def next_grant(self, evidence: Evidence, rounds: int) -> int:
        """Return how many branches to start now: 1 to `evidence.remaining`, 0 if none remains.

        `rounds` is the number of grants given so far, all of whose branches have finished.
        """


def parse_grants(text: str) -> tuple[int, ...]:
    """Return the sizes in a list such as "4,3,3,6"; raises ValueError naming `grants`."""
    sizes = tuple(int(size) if _is_count(size.strip()) else 0 for size in text.split(","))
    if len(sizes) > MAX_GRANTS or not all(1 <= size <= MAX_GRANT for size in sizes):
        raise ValueError(
            f"grants must be 1 to {MAX_GRANTS} numbers from 1 to {MAX_GRANT} "
            f"with commas between them, such as '4,3,3,6'"
        )
    return sizes


@dataclass(frozen=True, slots=True)
class FixedGrants:
    """Grants these sizes in turn; the last repeats."""

    sizes: Sequence[int]

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"grants must be numbers of at least 1, not {self.sizes}")

    def next_grant(self, evidence: Evidence, rounds: int) -> int:
        """Return the size for this round, cut to what remains."""
        return min(self.sizes[min(rounds, len(self.sizes) - 1)], evidence.remaining)


@dataclass(frozen=True, slots=True)
class AdaptiveGrants:
    """Grants the fewest branches after which `rule` could stop if all agreed with the leader.

    No branch is granted that asking the rule after every single branch would have saved: for the
    rules of this package, agreement with the leader is the fastest way to a stop.
    """

    rule: StopRule

    def next_grant(self, evidence: Evidence, rounds: int) -> int:
        """Return that number, or all that remain where nothing can stop the program earlier."""
        sizes = self.rule.asked_after(evidence)
        stops = partial(self._stops, evidence)
        end = 1  # it is mostly one of the first, and these are the cheap ones to judge
        while end < len(sizes) and not stops(sizes[end - 1]):
            end *= 2
        first = bisect_left(sizes, True, end // 2, min(end, len(sizes)), key=stops)
        return sizes[first] if first < len(sizes) else evidence.remaining

    def _stops(self, evidence: Evidence, size: int) -> bool:
        return self.rule.decide(evidence.after_agreement(size)) is not None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 4
