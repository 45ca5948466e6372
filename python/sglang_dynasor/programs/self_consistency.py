"""Self-consistency: sample branches, let them vote, stop when the vote is settled (paper 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from sglang_dynasor.allocation import branch_values
from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.certaindex import CertaindexTracker, Evidence, WeightedTracker
from sglang_dynasor.programs.branch_probes import BranchProbes
from sglang_dynasor.programs.params import MAX_BRANCHES
from sglang_dynasor.programs.protocol import (
    Action,
    Ask,
    Event,
    Expired,
    Failed,
    Finished,
    Granted,
    Outcome,
    Probed,
    ProgramStop,
    Regrouped,
    ShadowOutcome,
    Start,
    Trimmed,
    Watch,
)
from sglang_dynasor.programs.recorded import replay_nodes
from sglang_dynasor.programs.self_consistency_params import SelfConsistencySettings
from sglang_dynasor.programs.token_cap import TokenCap
from sglang_dynasor.programs.votes import Votes, VoteTracker
from sglang_dynasor.programs.worth import worth_of

_NAMES = tuple(map(str, range(MAX_BRANCHES)))
_STARTS = tuple(map(Start, _NAMES))


class SelfConsistency:
    """Branch i is node "i", a sample of the prompt; needed are the lowest that have not ended.

    In rounds a grant is needed until all of it has ended. With offers, the fewest branches that
    could settle the vote are needed at any time, or `pace` times as many: each answer that
    disagrees makes more of them needed at once, and a few times as many are offered. Once some
    answer has enough finished votes, branches that run are probed, and those that give it count. In
    shadow mode every branch runs, and the decision is only noted.
    """

    def __init__(
        self, settings: SelfConsistencySettings, tracker: VoteTracker | None = None
    ) -> None:
        """`tracker` counts the votes, an empty one; by default as the settings say."""
        self._settings = settings
        self._offers = settings.offers and not settings.shadow
        self._votes = Votes(tracker, self._new_tracker, self._weight_of)
        self._probes: BranchProbes | None = None
        if settings.probes is not None and not settings.shadow:
            self._probes = BranchProbes(settings.probes, settings.rule)
        self._recorded: dict[str, list[Probed]] = {}  # in shadow mode, all of them
        self._ended: set[int] = set()
        self._boundary = 0  # branches below it are needed until they end
        self._needed = 0  # of these
        self._cap = TokenCap(settings.max_total_tokens)
        self._share: int | None = None  # tokens of each branch of this round
        self._again: list[int] = []  # needed ones that had to make room
        self._planned = self._rounds = 0

    def start(self) -> Sequence[Action]:
        """Return the first branches."""
        return self._next_actions()

    def on(self, events: Sequence[Event]) -> Sequence[Action] | Outcome:
        """Count what has ended, and ask the rule after each vote."""
        for event in events:
            if isinstance(event, Finished | Probed):
                decision = self._count(event)
                if decision is not None:
                    return self._outcome(decision)
            elif isinstance(event, Failed):
                self._exclude(int(event.node))
            elif isinstance(event, Trimmed):
                self._make_again(int(event.node))
            elif isinstance(event, Regrouped):
                self._votes.regroup(event)
                if self._probes is not None:
                    self._probes.forget()
            elif isinstance(event, Granted):
                self._cap.grant(event.tokens)
            else:
                return self._outcome("deadline" if isinstance(event, Expired) else "aborted")
        if len(self._ended) == self._settings.max_branches:
            return self._outcome("completed")
        if all(isinstance(event, Probed) for event in events):
            return ()
        if self._needed and not self._offers and not self._again:
            return ()  # the round still runs
        if self._settings.max_total_tokens is None or self._needed:
            return self._next_actions()
        size = self._grant_size()
        if missing := self._cap.missing(size):
            return [Ask(missing, self._gain(size) / (size * self._cap.longest))]
        return self._next_actions() if self._cap.fits(size) else self._outcome("budget")

    def _gain(self, branches: int) -> float:
        return sum(branch_values(self._votes.evidence, 1.0, after=0, limit=branches))

    def _count(self, event: Finished | Probed) -> ProgramStop | None:
        if isinstance(event, Probed):
            if self._settings.shadow:
                self._recorded.setdefault(event.node, []).append(event)
            if self._probes is None or int(event.node) in self._ended:
                return None  # one that has ended votes, and confirms nothing besides
            self._probes.take(event)
            return self._certain_with_running()
        self._cap.spend(event.n_tokens)
        self._end(int(event.node))
        self._votes.add(event)
        if self._settings.shadow:
            return None
        self._votes.update()
        decision = self._settings.rule.decide(self._votes.evidence)
        return self._certain_with_running() if decision is None else decision.stop_reason

    def _certain_with_running(self) -> ProgramStop | None:
        votes = self._votes
        if self._probes is None or not self._probes.is_certain(votes.evidence, votes.sizes):
            return None
        return "certain"

    def _exclude(self, branch: int) -> None:
        self._end(branch)
        self._votes.exclude(branch)
        self._votes.update()

    def _end(self, branch: int) -> None:
        self._ended.add(branch)
        self._needed -= branch < self._boundary
        if self._probes is not None:
            self._probes.ended(branch)

    def _make_again(self, branch: int) -> None:
        if self._probes is not None:
            self._probes.ended(branch)
        if branch < self._boundary:
            self._again.append(branch)

    def _new_tracker(self, key_of: Callable[[str], str]) -> CertaindexTracker:
        settings = self._settings
        if settings.vote == "majority":
            return CertaindexTracker(settings.max_branches, key_of)
        keep_top = settings.keep_top if settings.vote == "filtered" else None
        return WeightedTracker(settings.max_branches, key_of, keep_top)

    def _weight_of(self, event: Finished) -> float:
        if self._settings.vote == "majority":
            return 1.0
        return event.certainty.lowest_group if event.certainty else 0.0

    def _next_actions(self) -> Sequence[Action]:
        """What is needed now, and what is offered beyond it."""
        starts = [self._start(branch) for branch in self._again]
        self._again.clear()
        if self._offers:
            return self._offered(starts)
        if not self._needed:
            return self._granted(starts)
        return starts

    def _granted(self, starts: list[Start]) -> Sequence[Action]:
        size = self._grant_size()
        if self._settings.max_total_tokens is not None:
            size = self._cap.fits(size)
            self._share = self._cap.share(size)
        self._rounds += 1
        starts += self._need(size)
        evidence = self._votes.evidence
        demand = Demand(evidence.certaindex, 1.0, self._work(evidence))
        plan = self._settings.probes
        if plan is None:
            return [demand, *starts]
        # Rounds of the shadow mode: what the acting program would be told is told of every branch.
        watches = [Watch(one.node, plan.every, plan.text, plan.max_tokens, True) for one in starts]
        return [demand, *starts, *watches]

    def _offered(self, starts: list[Start]) -> Sequence[Action]:
        evidence = self._votes.evidence
        settings = self._settings
        fewest = settings.grants.next_grant(evidence, 0)
        needed = min(evidence.remaining, math.ceil((settings.pace or 1.0) * fewest))
        planned = len(self._ended) + needed
        self._rounds += planned > self._planned
        self._planned = max(self._planned, planned)
        spared = self._needed
        starts += self._need(needed)
        spared -= self._needed
        demand = Demand(evidence.certaindex, worth_of(evidence, needed), self._work(evidence))
        beyond = math.ceil(settings.idle_pace * fewest) - needed
        offers = list(self._offer(max(0, beyond, spared)))
        return [demand, *starts, *offers, *self._watches(offers)]

    def _watches(self, offers: Sequence[Start]) -> Sequence[Watch]:
        """Offered branches are watched too: one may have been drawn."""
        if self._probes is None:
            return ()
        needed = (branch for branch in range(self._boundary) if branch not in self._ended)
        running = [*needed, *(int(offer.node) for offer in offers)]
        return self._probes.watches(self._votes.evidence, self._votes.sizes, running)

    def _grant_size(self) -> int:
        if self._settings.shadow:
            return self._settings.max_branches
        return self._settings.grants.next_grant(self._votes.evidence, self._rounds)

    def _need(self, count: int) -> list[Start]:
        """Move the boundary so that `count` branches are needed."""
        starts = []
        while self._needed < count:
            if self._boundary not in self._ended:
                self._needed += 1
                starts.append(self._start(self._boundary))
            self._boundary += 1
        while self._needed > count:
            self._boundary -= 1
            self._needed -= self._boundary not in self._ended
        return starts

    def _start(self, branch: int) -> Start:
        if self._share is None:
            return _STARTS[branch]
        return Start(_NAMES[branch], max_tokens=self._share)

    def _offer(self, limit: int) -> Iterator[Start]:
        values = branch_values(self._votes.evidence, 1.0, after=self._needed, limit=limit)
        branch = self._boundary
        for value in values:
            while branch in self._ended:
                branch += 1
            yield Start(_NAMES[branch], value=value)
            branch += 1

    def _work(self, evidence: Evidence) -> float:
        """Branches to come, less the nearer the program is to certain."""
        unsent = self._settings.max_branches - len(self._ended) - self._needed
        return unsent * (1 - evidence.certaindex)

    def _outcome(self, stop_reason: ProgramStop) -> Outcome:
        leader = self._votes.tracker.leader
        lowest = min((int(event.node) for event in self._votes.finished), default=None)
        shown = leader.first_branch if leader else lowest
        voted = [event for event in self._votes.finished if event.stop_reason != "pruned"]
        voted.sort(key=lambda event: int(event.node))
        shadow = self._settings.shadow and stop_reason == "completed"
        return Outcome(
            stop_reason=stop_reason,
            answer=leader.answer if leader else "",
            node=None if shown is None else _NAMES[shown],
            certaindex=self._votes.tracker.certaindex,
            votes=tuple(self._votes.tracker.votes()),
            answers={event.node: event.answer for event in voted},
            rounds=self._rounds,
            shadow=self._would_have_stopped() if shadow else None,
            inactive=self._inactive(),
            probes={
                node: sorted({probe.at: probe for probe in probes}.values(), key=lambda p: p.at)
                for node, probes in self._recorded.items()
            },
        )

    def _would_have_stopped(self) -> ShadowOutcome:
        """This very program on these very samples, acting, with nothing drawn."""
        recorded: dict[str, Finished | Failed] = {
            _NAMES[branch]: Failed(_NAMES[branch], "it failed") for branch in self._votes.failed
        }
        recorded |= {
            event.node: replace(event, group=self._votes.groups.get(event.answer, ""))
            for event in self._votes.finished
        }
        acting = SelfConsistency(replace(self._settings, shadow=False))
        acted = replay_nodes(
            acting,
            lambda start: recorded[start.node],
            probes_of=lambda node: self._recorded.get(node, ()),
        )
        return ShadowOutcome(
            stop_reason=acted.outcome.stop_reason,
            answer=acted.outcome.answer,
            tokens=acted.tokens,
            branches=acted.started,
            rounds=acted.outcome.rounds,
        )

    def _inactive(self) -> dict[str, str]:
        """What was asked for and could not work, and why."""
        settings = self._settings
        found = dict(settings.inactive)
        if reason := settings.rule.inactive(self._votes.tracker.evidence()):
            found["rule"] = reason
        unmeasured = sum(event.certainty is None for event in self._votes.finished)
        if unmeasured and settings.vote != "majority":
            found["vote"] = f"{unmeasured} branches have no token certainty and weigh nothing"
        if settings.stops_branches and settings.shadow:
            found["branch_rule"] = "shadow mode stops no branch"
        elif settings.stops_branches and unmeasured:
            found["branch_rule"] = f"{unmeasured} branches have no token certainty"
        silent = sum(
            not event.answer for event in self._votes.finished if event.stop_reason == "certain"
        )
        if silent:
            stopped = "1 branch was" if silent == 1 else f"{silent} branches were"
            found["entropy_floor"] = f"{stopped} stopped before an answer"
        return found
