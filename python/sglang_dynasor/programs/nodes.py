"""The nodes of a running program: what became of each, and what it cost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.certaindex.hedges import is_hedged
from sglang_dynasor.programs.answers import Answers, Reading
from sglang_dynasor.programs.batch_budget import Budget
from sglang_dynasor.programs.client import (
    Generated,
    NodeClient,
    NodeError,
    Probe,
    ProgramAborted,
    RewardError,
)
from sglang_dynasor.programs.program_run import ProgramRun
from sglang_dynasor.programs.protocol import (
    Aborted,
    Action,
    Ask,
    Cancel,
    Event,
    Expired,
    Failed,
    Finished,
    Granted,
    Outcome,
    Probed,
    Regrouped,
    Score,
    Scored,
    Start,
    Trimmed,
    Watch,
)

# How often a program with nothing to decide looks whether its client is still there.
POLL_INTERVAL_S = 0.5


class Nodes:
    """The nodes of one program: takes its actions, keeps count, and gives its events."""

    def __init__(
        self,
        client: NodeClient,
        answers: Answers,
        deadline_s: float | None,
        budget: Budget | None = None,
    ) -> None:
        self._client = client
        self._answers = answers
        self._budget = budget
        self._asking: asyncio.Task[None] | None = None
        self._clock = asyncio.get_running_loop().time
        self._expires_at = None if deadline_s is None else self._clock() + deadline_s
        self._tasks: dict[str, asyncio.Task[None]] = {}  # of running nodes, until they are read
        self._reading: set[str] = set()
        self._needed: set[str] = set()  # of the running ones
        self._due: dict[str, Start] = {}  # needed, and not started yet
        self._offers: dict[str, Start] = {}
        self._demand = Demand()
        self._said: tuple[Demand, int] | None = None
        self._draws = 0
        self._events: list[Event] = []
        self._news = asyncio.Event()
        self._error: Exception | None = None  # the first of any node
        self._broken: Exception | None = None  # the first that is no refusal, but a defect
        self._refused = False  # since a node failed, until another finishes
        self._aborted = self._expired = self._over = False
        self._waited = 0  # tokens of the longest path that has ended
        self._waited_at: dict[str, int] = {}  # that path when a node was started
        self._finished: dict[str, Finished] = {}
        self._cancelled: dict[str, Generated] = {}
        self._trimmed: list[tuple[str, Generated]] = []
        self._failed: dict[str, str] = {}
        self._drawn: set[str] = set()
        self._cancelling: set[str] = set()
        self._probe_tokens = 0
        self._continued: set[str] = set()  # nodes that are parents
        self._probes: set[asyncio.Task[None]] = set()  # those that are read
        self._scoring: set[asyncio.Task[None]] = set()
        self._reward_tokens = 0
        self._parents: dict[str, str] = {}
        self._rewards: dict[str, float] = {}
        client.on_draw(self._draw)
        client.on_probe(self._take_probe)

    def apply(self, actions: Sequence[Action]) -> None:
        """Start what is needed now, and say what is offered beyond it."""
        if actions:
            self._offers.clear()
        for action in actions:
            if isinstance(action, Start):
                self._ask(action)
            elif isinstance(action, Watch):
                self._client.watch(action)
            elif isinstance(action, Cancel):
                self._cancel(action)
            elif isinstance(action, Ask):
                self._asking = asyncio.ensure_future(self._grant(action))
            elif isinstance(action, Score):
                self._score(action)
            else:
                self._demand = action
        # No storm of refusals: who was refused waits until a place has become free.
        due = {} if self._refused and self._tasks else self._due
        if not (self._tasks or due or self._offers or self._asking or self._scoring):
            raise RuntimeError("the program waits, and nothing is running")
        self._needed |= due.keys()
        if actions or due:
            self._say()
        for start in list(due.values()):
            self._launch(start)
        due.clear()

    def _ask(self, start: Start) -> None:
        node = start.node
        if node in self._finished or node in self._failed or node in self._cancelled:
            raise ValueError(f"node {node} has ended and can't be started")
        self._due.pop(node, None)
        if node in self._tasks:
            (self._needed.add if start.value is None else self._needed.discard)(node)
        elif start.value is None:
            self._due[node] = start
        else:
            self._offers[node] = start

    def _cancel(self, cancel: Cancel) -> None:
        for node in cancel.nodes:
            self._due.pop(node, None)
        running = [n for n in cancel.nodes if n in self._tasks and n not in self._reading]
        if cancel.keep_kv:
            if running:
                self._client.cancel(running, keep_kv=True)
            return
        self._needed.difference_update(running)
        self._cancelling.update(running)
        if running:
            self._client.cancel(running)

    def _score(self, score: Score) -> None:
        for node in score.nodes:
            task = asyncio.ensure_future(self._judge(node))
            self._scoring.add(task)
            task.add_done_callback(self._scoring.discard)
            task.add_done_callback(lambda _: self._news.set())

    async def _judge(self, node: str) -> None:
        try:
            judgement = await self._client.score(node)
        except RewardError as error:
            self._events.append(Scored(node, None, str(error)))
        except Exception as error:
            self._broken = self._broken or error
        else:
            self._reward_tokens += judgement.n_tokens
            self._events.append(Scored(node, judgement.reward))

    async def _grant(self, ask: Ask) -> None:
        more = 0 if self._budget is None else await self._budget.more(ask.tokens, ask.value)
        self._asking = None
        self._events.append(Granted(more))
        self._news.set()

    def _draw(self, count: int) -> None:
        """The engine has room for `count` of the offered nodes; it may ask for too many."""
        if self._over:
            return
        self._draws += count
        drawn = sorted(self._offers.values(), key=lambda start: -(start.value or 0.0))[:count]
        for start in drawn:
            del self._offers[start.node]
        self._say()
        for start in drawn:
            self._drawn.add(start.node)
            self._launch(start)

    def _say(self) -> None:
        values = sorted((start.value or 0.0 for start in self._offers.values()), reverse=True)
        demand = replace(self._demand, needed=len(self._needed), values=tuple(values))
        if (demand, self._draws) != self._said:
            self._said = (demand, self._draws)
            self._client.demand(demand, self._draws)

    def _launch(self, start: Start) -> None:
        if start.parent is not None:
            self._continued.add(start.parent)
            self._parents[start.node] = start.parent
        self._waited_at[start.node] = self._waited
        task = asyncio.ensure_future(self._generate(start))
        task.add_done_callback(lambda _: self._news.set())
        self._tasks[start.node] = task

    async def _generate(self, start: Start) -> None:
        """One node, to the event that tells of its end."""
        node = start.node
        try:
            generated = await self._client.generate(start)
            if not self._over:
                await self._take(start, generated)
            else:
                self._cancelled[node] = generated
        except Exception as error:
            self._failed[node] = str(error)
            self._events.append(Failed(node, str(error)))
            self._error = self._error or error
            if not isinstance(error, NodeError):
                self._broken = self._broken or error
        finally:
            self._reading.discard(node)
            self._needed.discard(node)
            del self._tasks[node]

    async def _take(self, start: Start, generated: Generated) -> None:
        node = start.node
        if generated.stop_reason == "aborted":
            self._aborted = True
            self._cancelled[node] = generated
        elif generated.stop_reason == "cancelled":
            if node in self._cancelling:
                self._cancelled[node] = generated
            else:
                self._trimmed.append((node, generated))
                self._events.append(Trimmed(node))
        else:
            self._reading.add(node)
            reading = Reading("", "")
            if not start.stop or generated.matched_stop != start.stop:  # a step has no answer
                reading = await self._answers.read(node, generated)
            if reading.regrouped:
                self._events.append(Regrouped(reading.regrouped))
            self._events.append(
                Finished(
                    node,
                    generated.text,
                    generated.n_tokens,
                    generated.stop_reason,
                    reading.answer,
                    reading.group,
                    generated.certainty,
                    generated.matched_stop,
                )
            )

    def _take_probe(self, probe: Probe) -> None:
        self._probe_tokens += probe.n_tokens
        if self._over or probe.text is None:
            return
        task = asyncio.ensure_future(self._read_probe(probe))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)
        task.add_done_callback(lambda _: self._news.set())

    async def _read_probe(self, probe: Probe) -> None:
        try:
            reading = await self._answers.read_probe(probe)
        except Exception as error:
            self._broken = self._broken or error
            return
        if reading.regrouped:
            self._events.append(Regrouped(reading.regrouped))
        self._events.append(
            Probed(
                probe.node,
                probe.at,
                reading.answer,
                reading.group,
                is_hedged(probe.text or "", reading.answer),
                probe.confidence,
            )
        )

    async def next_events(self) -> list[Event]:
        """What has happened, in finishing order; the end of time comes last."""
        while not (self._events or self._aborted or self._is_late()):
            try:
                await self._client.check_wanted()
            except ProgramAborted:
                self._aborted = True
            if not (self._events or self._aborted):
                await self._wait()
        if self._aborted or self._is_late():
            self._answers.settle()
            while self._reading:
                self._news.clear()
                await self._news.wait()
            self._expired = not self._aborted
            self._events.append(Expired() if self._expired else Aborted())
        if self._broken is not None:
            raise self._broken
        events, self._events = self._events, []
        for event in events:
            self._note(event)
        over = self._aborted or self._expired
        if not (over or self._tasks or self._finished) and self._error is not None:
            raise self._error  # nothing can answer
        return events

    def _is_late(self) -> bool:
        return self._expires_at is not None and self._clock() >= self._expires_at

    async def _wait(self) -> None:
        timeout = POLL_INTERVAL_S
        if self._expires_at is not None:
            timeout = min(timeout, self._expires_at - self._clock())
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._news.wait()

    def _note(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._refused = True
        elif isinstance(event, Finished):
            self._refused = False
            self._finished[event.node] = event
            self._waited = max(self._waited, self._waited_at[event.node] + event.n_tokens)
        elif isinstance(event, Scored) and event.reward is not None:
            self._rewards[event.node] = event.reward

    async def end(self) -> None:
        """End the nodes that still run, and those that ended too late to be counted."""
        self._over = True
        self._offers.clear()
        if self._asking is not None:
            self._asking.cancel()
        self._answers.settle()
        for task in (*self._probes, *self._scoring):
            task.cancel()
        tokens: dict[str, int] = {}
        if not self._tasks.keys() - self._reading:
            self._client.close()
        while self._tasks:
            if self._tasks.keys() - self._reading:
                # Repeated, for a node may reach the engine only after the first call.
                tokens |= await self._client.end()
            if self._tasks:
                await asyncio.wait(self._tasks.values(), timeout=POLL_INTERVAL_S)
        late = [event for event in self._events if isinstance(event, Finished)]
        for event in late:
            part = Generated(event.text, event.n_tokens, "cancelled", event.certainty)
            self._cancelled[event.node] = part
        for node, part in self._cancelled.items():
            exact = tokens.get(node, part.n_tokens)
            self._cancelled[node] = replace(part, n_tokens=exact, stop_reason="cancelled")

    def run(self, outcome: Outcome) -> ProgramRun:
        """The whole of it, once it has ended."""
        waited = [self._waited]
        if self._expired:
            waited += [self._waited_at[n] + part.n_tokens for n, part in self._cancelled.items()]
        return ProgramRun(
            outcome=outcome,
            finished=self._finished,
            cancelled=self._cancelled,
            trimmed=tuple(self._trimmed),
            failed=self._failed,
            drawn=frozenset(self._drawn),
            started=tuple(self._waited_at),
            sequential_tokens=max(waited),
            inactive=self._answers.inactive,
            probe_tokens=self._probe_tokens,
            reward_tokens=self._reward_tokens,
            continued=frozenset(self._continued),
            parents=self._parents,
            rewards=self._rewards,
        )
