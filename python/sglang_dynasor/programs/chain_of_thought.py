"""One chain of thought: probed on its way, ended once its answer is there, and made to answer.

Paper 2.1, in the engine. Node "0" is the chain; cut or at its end it is continued by the next
number, which shares its KV. What it wrote is never lost: it closes its thought and answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from sglang_dynasor.allocation.chain_rule import ProbeAnswer, next_interval
from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.certaindex import Vote
from sglang_dynasor.programs.chain_of_thought_params import ChainSettings
from sglang_dynasor.programs.protocol import (
    Action,
    Cancel,
    Event,
    Expired,
    Failed,
    Finished,
    Outcome,
    Probed,
    ProgramStop,
    Regrouped,
    ShadowOutcome,
    Start,
    Trimmed,
    Watch,
)
from sglang_dynasor.programs.thought import is_thinking, may_be_cut

_BOX = "\\boxed{"


class ChainOfThought:
    """Thinks until it ends, its probes agree, or its tokens are spent; then it answers.

    A natural end wins over every exit. In shadow mode the exit is only noted.
    """

    def __init__(self, settings: ChainSettings) -> None:
        self._settings = settings
        self._node = 0
        self._start = Start("0", max_tokens=self._thinking_limit(), kind="thought")
        self._before = 0  # tokens of the chain's earlier nodes
        self._probes: list[ProbeAnswer] = []
        self._probe_names: list[str] = []
        self._answer_of: dict[str, str] = {}  # group to its first spelling
        self._every = settings.probe_interval
        self._exit: ProgramStop | None = None  # why the chain was ended, once it is
        self._answering = False
        self._last: Finished | None = None
        self._shadow: tuple[int, str] | None = None  # tokens and answer at the exit not taken

    def start(self) -> Sequence[Action]:
        """Return the chain's first node, and how it is watched."""
        return [Demand(), self._start, *self._watch()]

    def on(self, events: Sequence[Event]) -> Sequence[Action] | Outcome:
        """Take probes until they agree, and what each node has come to."""
        actions: list[Action] = []
        for event in events:
            step: Sequence[Action] | Outcome = ()
            if isinstance(event, Probed):
                step = self._take_probe(event)
            elif isinstance(event, Finished):
                step = self._take_node(event)
            elif isinstance(event, Failed):
                step = self._outcome(self._exit or "failed", insert=True)
            elif isinstance(event, Trimmed):
                step = [self._start]
            elif isinstance(event, Regrouped):
                self._regroup(event)
            else:
                expired = isinstance(event, Expired)
                step = self._outcome("deadline" if expired else "aborted", insert=True)
            if isinstance(step, Outcome):
                return step
            actions += step
        return actions

    def _watch(self) -> list[Action]:
        settings = self._settings
        if settings.rule is None or self._shadow is not None:
            return []
        measured = settings.rule.min_confidence is not None
        after = max(0, settings.rule.warmup_tokens - self._before)
        return [
            Watch(
                str(self._node),
                self._every,
                settings.probe_text,
                settings.probe_tokens,
                measured,
                after,
            )
        ]

    def _take_probe(self, event: Probed) -> Sequence[Action]:
        if event.node != str(self._node) or self._exit or self._answering or self._shadow:
            return ()
        rule = self._settings.rule
        assert rule is not None
        at = self._before + event.at
        if self._probes and at <= self._probes[-1].at:
            return ()  # a box of the chain's own has overtaken it
        self._probes.append(ProbeAnswer(at, event.group, event.counts, event.confidence))
        self._probe_names.append(f"{event.node}@{event.at}")
        self._answer_of.setdefault(event.group, event.answer)
        if rule.stops(self._probes):
            if self._settings.shadow:
                self._shadow = at, event.answer
                return [Watch(event.node, 0)]
            self._exit = "certain"
            return [Cancel((event.node,), keep_kv=True)]
        every = next_interval(at, self._settings.probe_interval, self._settings.interval_growth)
        if every == self._every:
            return ()
        self._every = every
        return self._watch()

    def _take_node(self, event: Finished) -> Sequence[Action] | Outcome:
        self._last = event
        self._before += event.n_tokens
        if self._answering:
            return self._outcome(self._exit or "completed")
        thinking = is_thinking(event.text, self._settings.opens_thought, self._settings.think_end)
        if event.stop_reason == "cut":
            return self._take_cut(event, thinking)
        if event.matched_stop or not thinking:
            return self._outcome("completed")
        if event.stop_reason == "completed":  # it has ended without closing its thought
            return self._answer("completed", thinking)
        limit = self._settings.max_thinking_tokens
        if limit is not None and self._before >= limit and may_be_cut(event.text):
            return self._answer("budget", thinking)
        return self._outcome("completed")

    def _take_cut(self, event: Finished, thinking: bool) -> Sequence[Action] | Outcome:
        """The exit, unless the chain has come to an end of its own or may not be cut here."""
        ended = not thinking and self._has_answered(event.text)
        if not ended and may_be_cut(event.text):
            return self._answer("certain", thinking)
        self._exit, self._answering = None, ended
        self._node += 1
        self._start = Start(
            str(self._node), event.node, max_tokens=self._thinking_limit(), kind="thought"
        )
        return [self._start] if ended else [self._start, *self._watch()]

    def _has_answered(self, text: str) -> bool:
        return self._settings.think_end in text or _BOX in text

    def _answer(self, stop_reason: ProgramStop, thinking: bool) -> Sequence[Action] | Outcome:
        """Have the model close its thought and answer, or put in what its probes agreed on.

        Where an answer is to be inserted and there is none, the probe's text asks for it.
        """
        assert self._last is not None
        self._exit = stop_reason
        left = self._left()
        if (self._settings.on_exit == "insert" and self._agreed()) or left == 0:
            return self._outcome(stop_reason, insert=True)
        self._answering = True
        self._node += 1
        suffix = self._settings.probe_text
        if thinking:
            suffix = (
                self._settings.think_end
                if self._settings.on_exit == "answer"
                else self._closed(suffix)
            )
        self._start = Start(str(self._node), self._last.node, None, suffix, left, "answer")
        return [self._start]

    def _left(self) -> int | None:
        """Tokens of the program's own cap that are not spent."""
        cap = self._settings.max_total_tokens
        return None if cap is None else max(0, cap - self._before)

    def _thinking_limit(self) -> int | None:
        settings = self._settings
        spent = self._before if self._node else 0
        limits = [settings.max_thinking_tokens, settings.max_total_tokens]
        return min((max(1, limit - spent) for limit in limits if limit is not None), default=None)

    def _agreed(self) -> str:
        """The answer of the newest probe that counts."""
        groups = [probe.group for probe in self._probes if probe.counts]
        return self._answer_of[groups[-1]] if groups else ""

    def _regroup(self, event: Regrouped) -> None:
        self._probes = [
            probe._replace(group=event.groups.get(name, probe.group))
            for probe, name in zip(self._probes, self._probe_names, strict=True)
        ]

    def _outcome(self, stop_reason: ProgramStop, insert: bool = False) -> Outcome:
        """`insert`: where the chain has not answered, what its probes agreed on is its answer."""
        last, settings = self._last, self._settings
        agreed = self._agreed() if insert or stop_reason == "certain" else ""
        answer = last.answer if last and last.answer else agreed
        closing = ""
        if insert and last is not None and not last.answer:
            closing = self._closing(last.text, agreed)
        agreement = settings.rule.agreement(self._probes) if settings.rule else 0.0
        votes = (Vote(answer, 1, 1.0, 0),) if answer else ()
        return Outcome(
            stop_reason=stop_reason,
            answer=answer,
            node=None if last is None else last.node,
            certaindex=agreement,
            votes=votes,
            answers={} if last is None else {last.node: answer},
            rounds=len(self._probes),
            shadow=self._would_have_stopped(stop_reason, answer) if settings.shadow else None,
            inactive=dict(settings.inactive),
            closing=closing,
        )

    def _closing(self, text: str, answer: str) -> str:
        """What completes a text whose thought may be open, with the answer where there is one."""
        settings = self._settings
        thinking = is_thinking(text, settings.opens_thought, settings.think_end)
        if not answer:
            return settings.think_end if thinking else ""
        forced = f"{settings.probe_text}{answer}{settings.probe_text_end}"
        return self._closed(forced) if thinking else forced

    def _closed(self, forced: str) -> str:
        """Forced text that closes the thought before it answers."""
        think_end = self._settings.think_end
        return forced if think_end in forced else think_end + forced

    def _would_have_stopped(self, stop_reason: ProgramStop, answer: str) -> ShadowOutcome:
        if self._shadow is None:
            return ShadowOutcome(stop_reason, answer, self._before, 1, len(self._probes))
        tokens, noted = self._shadow
        return ShadowOutcome("certain", noted, tokens, 1, len(self._probes))
