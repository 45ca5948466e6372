"""The value that a stop rule returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

RuleStop: TypeAlias = Literal["certain", "decided", "consensus", "hopeless"]


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a program needs no further branch, with the evidence that said so.

    `stop_reason` is "certain" (a threshold was met), "decided" (the branches left cannot change
    the answer), "consensus" (of weighted votes) or "hopeless"; `confidence` is the figure the rule
    compared: a probability, a share of weight, a reward, or the log of a ratio.
    `counts` are the sizes of the answer groups, leader first.
    """

    stop_reason: RuleStop
    rule: str
    confidence: float | None
    certaindex: float
    counts: tuple[int, ...]
    finished: int

    def to_json(self) -> dict[str, object]:
        """Return the fields as values that `json.dumps` takes."""
        return asdict(self) | {"counts": list(self.counts)}
