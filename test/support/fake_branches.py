"""A branch client without an engine: each branch makes one token a (virtual) second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from sglang_dynasor.certaindex import TokenCertainty
from sglang_dynasor.programs import BranchStop, FinishedBranch, Step

# How many of a running branch's tokens its client has not seen yet.
UNSEEN_TOKENS = 2


@dataclass(frozen=True)
class FakeSample:
    """What one branch will do, left alone."""

    answer: str
    n_tokens: int
    error: Exception | None = None
    aborted: bool = False
    confidence: float | None = None
    stopped: BranchStop | None = None  # in place of completed


class FakeBranches:
    """Implements BranchClient over recorded samples."""

    def __init__(self, samples: list[FakeSample], unwanted_after_s: float | None = None) -> None:
        self.started: list[int] = []
        self.token_limits: list[int | None] = []
        self.running: set[int] = set()
        self.times_ended = 0
        self.closed = False
        self.reports: list[tuple[Step, int]] = []
        self._samples = samples
        self._unwanted_after_s = unwanted_after_s
        self._stops: dict[int, asyncio.Event] = {}
        self._trimmed: set[int] = set()
        self._started_at: dict[int, float] = {}

    async def run_branch(self, index: int, max_tokens: int | None) -> FinishedBranch:
        sample = self._samples[index]
        self.started.append(index)
        self.token_limits.append(max_tokens)
        self.running.add(index)
        self._started_at[index] = _now()
        stop = self._stops[index] = asyncio.Event()
        length = sample.n_tokens if max_tokens is None else min(sample.n_tokens, max_tokens)
        try:
            # Equal lengths end in the order of the branches, not in that of the loop's timers.
            async with asyncio.timeout(length + 1e-6 * (index + 1)):
                await stop.wait()
        except TimeoutError:
            if sample.error is not None:
                raise sample.error from None
            stop_reason = sample.stopped or "completed"
            if sample.aborted:
                stop_reason = "aborted"
            elif length < sample.n_tokens:
                stop_reason = "length"
            answered = sample.answer and stop_reason != "length"
            return FinishedBranch(
                index=index,
                text=f"so \\boxed{{{sample.answer}}}" if answered else "so",
                n_tokens=length,
                stop_reason=stop_reason,
                certainty=_certainty(length, sample.confidence),
            )
        finally:
            self.running.discard(index)
        if index in self._trimmed:
            self._trimmed.discard(index)
            return FinishedBranch(index, "s", self._tokens_now(index), "cancelled")
        seen = max(0, self._tokens_now(index) - UNSEEN_TOKENS)
        return FinishedBranch(index, "s" * seen, seen, "aborted")

    async def end_program(self) -> dict[int, int]:
        self.times_ended += 1
        tokens = {index: self._tokens_now(index) for index in self.running}
        for index in self.running:
            self._stops[index].set()
        return tokens

    def trim(self, index: int) -> None:
        """Cancel a branch as an engine does that needs its room."""
        self._trimmed.add(index)
        self._stops[index].set()

    def report(self, step: Step, draws_seen: int) -> None:
        self.reports.append((step, draws_seen))

    def on_draw(self, start: Callable[[int], None]) -> None:
        self.draw = start

    def close(self) -> None:
        self.closed = True

    async def check_wanted(self) -> None:
        if self._unwanted_after_s is not None and _now() >= self._unwanted_after_s:
            raise ValueError("client gone")

    def _tokens_now(self, index: int) -> int:
        return int(_now() - self._started_at[index])


def _certainty(tokens: int, confidence: float | None) -> TokenCertainty | None:
    if confidence is None:
        return None
    return TokenCertainty(tokens, confidence, confidence, confidence)


def _now() -> float:
    return asyncio.get_running_loop().time()
