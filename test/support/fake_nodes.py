"""A node client without an engine: each node makes one token a (virtual) second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sglang_dynasor.certaindex import AnswerGroups, TokenCertainty
from sglang_dynasor.programs import (
    AnswerFormat,
    Answers,
    Demand,
    Generated,
    Grouping,
    NodeStop,
    ProgramRun,
    ReasoningProgram,
    Start,
    Watch,
    run_program,
)
from sglang_dynasor.programs.client import Judgement, Probe, RewardError

# How many of a running node's tokens its client has not seen yet.
UNSEEN_TOKENS = 2


@dataclass(frozen=True)
class FakeSample:
    """What one node will do, left alone."""

    answer: str
    n_tokens: int
    error: Exception | None = None  # at its end
    aborted: bool = False
    confidence: float | None = None
    stopped: NodeStop | None = None  # in place of completed
    text: str | None = None  # in place of a boxed answer
    probes: Mapping[int, str] = field(default_factory=dict)  # what it would answer from there on


class FakeNodes:
    """Implements NodeClient over recorded samples: node i is the i-th, or those of a mapping."""

    def __init__(
        self,
        samples: Sequence[FakeSample] | Mapping[str, FakeSample],
        unwanted_after_s: float | None = None,
        unwanted: Exception | None = None,
    ) -> None:
        self.started: list[str] = []
        self.starts: list[Start] = []
        self.running: set[str] = set()
        self.times_ended = 0
        self.closed = False
        self.demands: list[tuple[Demand, int]] = []
        named = {str(index): sample for index, sample in enumerate(samples)}
        self._samples = samples if isinstance(samples, Mapping) else named
        self._unwanted_after_s = unwanted_after_s
        self._unwanted = unwanted
        self._stops: dict[str, asyncio.Event] = {}
        self._cancelled: set[str] = set()
        self._cut: set[str] = set()
        self.watches: list[Watch] = []
        self._watched: dict[str, asyncio.Task[None]] = {}
        self._started_at: dict[str, float] = {}

    async def generate(self, start: Start) -> Generated:
        node = start.node
        sample = self._samples[node]
        self.started.append(node)
        self.starts.append(start)
        self.running.add(node)
        begun = self._started_at[node] = round(_now(), 3)
        stop = self._stops[node] = asyncio.Event()
        length = sample.n_tokens
        if start.max_tokens is not None:
            length = min(length, start.max_tokens)
        try:
            # Equal lengths end in the order of their start, not in that of the loop's timers.
            async with asyncio.timeout_at(begun + length + 1e-6 * len(self.started)):
                await stop.wait()
        except TimeoutError:
            return self._ended(sample, length)
        finally:
            self.running.discard(node)
        if node in self._cut:
            return Generated(sample.text or "s", self._tokens_now(node), "cut")
        if node in self._cancelled:
            self._cancelled.discard(node)
            return Generated("s", self._tokens_now(node), "cancelled")
        seen = max(0, self._tokens_now(node) - UNSEEN_TOKENS)
        return Generated("s" * seen, seen, "cancelled")

    def _ended(self, sample: FakeSample, length: int) -> Generated:
        if sample.error is not None:
            raise sample.error
        stop_reason = sample.stopped or "completed"
        if sample.aborted:
            return Generated("s", length, "aborted")
        if length < sample.n_tokens:
            stop_reason = "length"
        text = f"so \\boxed{{{sample.answer}}}" if sample.answer else "so"
        text = text if sample.text is None else sample.text
        return Generated(text, length, stop_reason, _certainty(length, sample.confidence))

    async def score(self, node: str) -> Judgement:
        raise RewardError("nobody judges")

    async def end(self) -> dict[str, int]:
        self.times_ended += 1
        for task in self._watched.values():
            task.cancel()
        tokens = {node: self._tokens_now(node) for node in self.running}
        for node in self.running:
            self._stops[node].set()
        return tokens

    def trim(self, node: str) -> None:
        """Cancel a node as an engine does that needs its room."""
        self.cancel([node])

    def cancel(self, nodes: Sequence[str], keep_kv: bool = False) -> None:
        for node in nodes:
            (self._cut if keep_kv else self._cancelled).add(node)
            self._stops[node].set()

    def watch(self, watch: Watch) -> None:
        self.watches.append(watch)
        if watch.node in self._watched:
            self._watched.pop(watch.node).cancel()
        if watch.every:
            self._watched[watch.node] = asyncio.ensure_future(self._probe(watch))

    async def _probe(self, watch: Watch) -> None:
        sample = self._samples[watch.node]
        while watch.node not in self._started_at:
            await asyncio.sleep(1)
        while True:
            at = (self._tokens_now(watch.node) // watch.every + 1) * watch.every
            await asyncio.sleep(self._started_at[watch.node] + at - _now())
            if watch.node not in self.running:
                return
            known = [answer for since, answer in sorted(sample.probes.items()) if since <= at]
            text = f"{known[-1]}}}" if known else ""
            self.take_probe(Probe(watch.node, at, watch.text, text, len(text), bool(text)))

    def on_probe(self, take: Callable[[Probe], None]) -> None:
        self.take_probe = take

    def demand(self, demand: Demand, draws_seen: int) -> None:
        self.demands.append((demand, draws_seen))

    def on_draw(self, start: Callable[[int], None]) -> None:
        self.draw = start

    def close(self) -> None:
        self.closed = True

    async def check_wanted(self) -> None:
        if self._unwanted_after_s is not None and _now() >= self._unwanted_after_s:
            assert self._unwanted is not None
            raise self._unwanted

    def _tokens_now(self, node: str) -> int:
        return int(_now() - self._started_at[node])


def boxed_answers(grouping: Grouping | None = None) -> Answers:
    return Answers(AnswerFormat("boxed"), grouping or Spelling(), 0.05)


class Spelling:
    """Groups by spelling and exact number, and by what a test says is the same."""

    revision = 0
    inactive = ""

    def __init__(self, same: Mapping[str, str] | None = None) -> None:
        self._same = same or {}
        self._groups = AnswerGroups()

    def key(self, answer: str) -> str:
        return self._groups.key(self._same.get(answer, answer))

    async def prepare(self, answer: str) -> None: ...


async def run_fake(
    program: ReasoningProgram,
    client: FakeNodes,
    deadline_s: float | None = None,
    grouping: Grouping | None = None,
) -> ProgramRun:
    return await run_program(program, client, boxed_answers(grouping), deadline_s)


def _certainty(tokens: int, confidence: float | None) -> TokenCertainty | None:
    if confidence is None:
        return None
    return TokenCertainty(tokens, confidence, confidence, confidence)


def _now() -> float:
    return asyncio.get_running_loop().time()
