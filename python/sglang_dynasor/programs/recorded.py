"""Drive a program on recorded nodes: no engine and no clock, every node makes one token a step."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sglang_dynasor.programs.protocol import (
    Action,
    Ask,
    Cancel,
    Event,
    Failed,
    Finished,
    Granted,
    Outcome,
    Probed,
    ReasoningProgram,
    Score,
    Scored,
    Start,
    Trimmed,
    Watch,
)

Recorded = Callable[[Start], Finished | Failed]
# What each node would have answered on its way, by rising `at`.
RecordedProbes = Callable[[str], Sequence[Probed]]


RecordedRewards = Callable[[str], float | None]


def _never_probed(node: str) -> Sequence[Probed]:
    return ()


def _never_judged(node: str) -> float | None:
    return None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a program cost on recorded nodes.

    `tokens` counts what cancelled nodes had generated too, and `probe_tokens`; `sequential_tokens`
    is the longest path that had to be waited for, as in `ProgramRun`; `steps` is when the outcome
    was reached.
    """

    outcome: Outcome
    tokens: int
    started: int
    finished: int
    sequential_tokens: int
    steps: int
    probe_tokens: int = 0


def replay_nodes(
    program: ReasoningProgram,
    recorded: Recorded,
    slots: int | None = None,
    draws: int = 0,
    probes_of: RecordedProbes = _never_probed,
    reward_of: RecordedRewards = _never_judged,
) -> Replayed:
    """Run to the outcome; `recorded` says what each node comes to, whenever it is started.

    At most `slots` nodes run side by side (None: all that are asked for), in the order in which
    they were asked for, and finish shortest first, ties in the order of their start. Offers are
    drawn while fewer than `draws` nodes run; a drawn node that nobody needs makes room for one
    that is needed. A node longer than its `max_tokens` ends there without an answer. A watched one
    is probed where `probes_of` it has a probe, the next no nearer than `every`; each costs all of
    its tokens. A node is judged at once, as `reward_of` it says. Nothing is granted beyond the
    budget.

    Raises RuntimeError for a program that waits while nothing runs.
    """
    nodes = _Slots(recorded, slots, draws, probes_of, reward_of)
    step: Sequence[Action] | Outcome = program.start()
    while not isinstance(step, Outcome):
        nodes.apply(step)
        step = program.on(nodes.next_events())
    return nodes.replayed(step)


class _Running:
    """A node that runs; `path` is what had been waited for when it was asked for.

    `probe` is what comes of it next, `probed_at` where it was probed last.
    """

    __slots__ = ("begun", "event", "path", "probe", "probed_at", "spare", "tokens")

    def __init__(
        self, event: Finished | Failed, tokens: int, begun: int, path: int, spare: bool
    ) -> None:
        self.event = event
        self.tokens = tokens
        self.begun = begun
        self.path = path
        self.spare = spare
        self.probe: Probed | None = None
        self.probed_at = 0


class _Slots:
    def __init__(
        self,
        recorded: Recorded,
        slots: int | None,
        draws: int,
        probes_of: RecordedProbes = _never_probed,
        reward_of: RecordedRewards = _never_judged,
    ) -> None:
        self._recorded = recorded
        self._probes_of = probes_of
        self._reward_of = reward_of
        self._slots = sys.maxsize if slots is None else slots
        self._draws = draws
        self._now = 0
        self._waited = 0
        self._tokens = 0
        self._probe_tokens = 0
        self._finished = 0
        self._started: set[str] = set()
        self._waiting: dict[str, tuple[Start, int]] = {}  # with the path when it was asked for
        self._offers: dict[str, tuple[Start, int]] = {}
        self._running: dict[str, _Running] = {}
        self._watched: dict[str, Watch] = {}  # also of nodes that are yet to start
        self._due: list[tuple[int, int, _Running, Probed | None]] = []  # heap; None: the end
        self._pushed = 0
        self._ready: list[Event] = []

    def apply(self, actions: Sequence[Action]) -> None:
        if actions:
            self._offers.clear()
        for action in actions:
            if isinstance(action, Start):
                self._ask(action)
            elif isinstance(action, Watch):
                self._watch(action)
            elif isinstance(action, Cancel):
                (self._cut if action.keep_kv else self._cancel)(action.nodes)
            elif isinstance(action, Ask):  # nobody has any to give
                self._ready.append(Granted(0))
            elif isinstance(action, Score):
                self._ready += [Scored(node, self._reward_of(node)) for node in action.nodes]
        while self._waiting and (len(self._running) < self._slots or self._trim()):
            self._begin(*self._waiting.pop(next(iter(self._waiting))))
        while self._offers and len(self._running) < self._draws:
            self._begin(*self._offers.pop(next(iter(self._offers))), spare=True)

    def _ask(self, start: Start) -> None:
        node = start.node
        if node in self._running:
            self._running[node].spare = start.value is not None
        elif start.value is None:
            self._waiting[node] = start, self._waited
        else:
            self._waiting.pop(node, None)
            self._offers[node] = start, self._waited

    def _cancel(self, nodes: Sequence[str]) -> None:
        for node in nodes:
            self._waiting.pop(node, None)
            if node in self._running:
                self._tokens += self._now - self._running.pop(node).begun

    def _cut(self, nodes: Sequence[str]) -> None:
        """End running nodes as they are, to be continued."""
        for node in nodes:
            self._waiting.pop(node, None)
            running = self._running.get(node)
            if running is not None:
                self._finish(running)
                self._ready.append(Finished(node, "", self._now - running.begun, "cut"))

    def _watch(self, watch: Watch) -> None:
        self._watched[watch.node] = watch
        running = self._running.get(watch.node)
        if running is not None:
            self._probe_next(running, watch)

    def _probe_next(self, running: _Running, watch: Watch) -> None:
        """Have the next probe of a node come, if there is one."""
        running.probe = None
        if not watch.every:
            return
        at = max(self._now - running.begun, running.probed_at + watch.every - 1, watch.after - 1)
        for probe in self._probes_of(watch.node):
            if at < probe.at < running.tokens:
                running.probe = probe
                self._push(running.begun + probe.at, running, probe)
                return

    def _push(self, when: int, running: _Running, probe: Probed | None) -> None:
        self._pushed += 1
        heapq.heappush(self._due, (when, self._pushed, running, probe))

    def _trim(self) -> bool:
        """Make room by ending the youngest node that can be spared, if there is one."""
        spare = [node for node, running in self._running.items() if running.spare]
        self._cancel(spare[-1:])
        self._ready += map(Trimmed, spare[-1:])
        return bool(spare)

    def _begin(self, start: Start, path: int, spare: bool = False) -> None:
        event = self._recorded(start)
        tokens = 0
        if isinstance(event, Finished):
            tokens = event.n_tokens
            if start.max_tokens is not None and start.max_tokens < tokens:
                tokens = start.max_tokens
                event = replace(event, n_tokens=tokens, stop_reason="length", answer="", group="")
        running = _Running(event, tokens, self._now, path, spare)
        self._running[start.node] = running
        self._started.add(start.node)
        self._push(self._now + tokens, running, None)
        if start.node in self._watched:
            self._probe_next(running, self._watched[start.node])

    def next_events(self) -> Sequence[Event]:
        if self._ready:
            events, self._ready = self._ready, []
            return events
        while self._due:
            when, _, running, probe = heapq.heappop(self._due)
            if self._running.get(running.event.node) is not running:
                continue  # it was cancelled meanwhile
            if probe is None:
                self._now = when
                self._finish(running)
                return (running.event,)
            if probe is running.probe:
                watch = self._watched[probe.node]
                self._now = when
                running.probed_at = probe.at
                self._probe_tokens += watch.max_tokens
                self._probe_next(running, watch)
                return (probe,)
        raise RuntimeError("the program waits, and nothing is running")

    def _finish(self, running: _Running) -> None:
        del self._running[running.event.node]
        tokens = self._now - running.begun
        self._tokens += tokens
        self._waited = max(self._waited, running.path + tokens)
        self._finished += isinstance(running.event, Finished)

    def replayed(self, outcome: Outcome) -> Replayed:
        spent = sum(self._now - running.begun for running in self._running.values())
        return Replayed(
            outcome=outcome,
            tokens=self._tokens + spent + self._probe_tokens,
            started=len(self._started),
            finished=self._finished,
            sequential_tokens=self._waited,
            steps=self._now,
            probe_tokens=self._probe_tokens,
        )
