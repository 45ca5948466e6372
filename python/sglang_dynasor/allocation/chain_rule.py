"""When a single chain of thought has reached its answer, judged by its probes (paper 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class ProbeAnswer(NamedTuple):
    """One probe: after `at` tokens the chain would have answered what is in `group`.

    `counts`: there is an answer and the model does not doubt it. `confidence` is the mean
    probability of the answer's tokens, 0 to 1, None where it was not measured.
    """

    at: int
    group: str
    counts: bool
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class ChainRule:
    """Stops where the last `window` probes agree: C_k >= `tau`, the share of them that count and
    give the newest one's answer.

    Probes before `warmup_tokens` are passed over. `min_confidence`: the newest answer must also
    have this mean probability (DEER, arXiv 2504.15895; with a window of 1 it is that rule alone).
    An answer that was not measured never has it.
    """

    window: int
    tau: float = 1.0
    warmup_tokens: int = 0
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window: must be at least 1, not {self.window}")
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau: must be above 0 and at most 1, not {self.tau}")

    def agreement(self, probes: Sequence[ProbeAnswer]) -> float:
        """C_k at the newest probe, 0 to 1: 0 before the window is full, or where it has no
        answer."""
        recent = probes[-self.window :]
        if len(recent) < self.window or recent[0].at < self.warmup_tokens or not recent[-1].counts:
            return 0.0
        newest = recent[-1].group
        return sum(probe.counts and probe.group == newest for probe in recent) / self.window

    def stops(self, probes: Sequence[ProbeAnswer]) -> bool:
        """Whether the chain has reached its answer at the newest of `probes`."""
        if self.agreement(probes) < self.tau:
            return False
        confidence = probes[-1].confidence
        if self.min_confidence is None:
            return True
        return confidence is not None and confidence >= self.min_confidence


def next_interval(at: int, interval: int, growth: float) -> int:
    """Tokens to the next probe: `interval`, or the share `growth` of the chain where that is more.

    So probes cost a bounded share of the longest chain.
    """
    return max(interval, int(growth * at))
