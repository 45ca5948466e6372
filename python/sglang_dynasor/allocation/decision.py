"""The value that a stop rule returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a program needs no further branch, with the evidence that said so.

    `stop_reason` is "certain" (a threshold was met) or "decided" (the branches left cannot
    change the answer); `confidence` is the posterior (0 to 1) of a rule that computes one.
    `counts` are the sizes of the answer groups, leader first.
    """

    stop_reason: Literal["certain", "decided"]
    rule: str
    confidence: float | None
    certaindex: float
    counts: tuple[int, ...]
    finished: int

    def to_json(self) -> dict[str, object]:
        """Return the fields as values that `json.dumps` takes."""
        return asdict(self) | {"counts": list(self.counts)}
