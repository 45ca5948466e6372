"""Replay: what self-consistency would have done on recorded samples, by the very program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sglang_dynasor.allocation import FixedGrants, GrantPolicy, StopRule
from sglang_dynasor.certaindex import (
    CertaindexTracker,
    Evidence,
    TokenCertainty,
    Vote,
    WeightedTracker,
    canonical_key,
)
from sglang_dynasor.offline.traces import TraceProbe
from sglang_dynasor.programs import (
    Finished,
    Probed,
    Replayed,
    SelfConsistency,
    SelfConsistencySettings,
    replay_nodes,
)
from sglang_dynasor.programs.branch_probes import ProbePlan

Order = Literal["sequential", "concurrent"]
_SLOTS: dict[Order, int | None] = {"sequential": 1, "concurrent": None}


@dataclass(frozen=True, slots=True)
class Sample:
    """One recorded branch, with the trace's own label where it has one.

    `confidence` is the weight of its vote where votes are weighted, 0 where it was not measured. A
    `pruned` one has no vote; its tokens are all counted, for a trace does not tell when it would
    have been stopped. `probes` are what it would have answered on its way.
    """

    answer: str
    n_tokens: int
    correct: bool | None = None
    confidence: float | None = None
    pruned: bool = False
    probes: Sequence[TraceProbe] = ()


@dataclass(frozen=True, slots=True)
class Contender:
    """Self-consistency with a stop rule and the grants it is used with.

    `offers`: branches start one by one instead, as many as `grants` would, or `pace` times as many;
    `probes`: how running ones are probed; `weighted`: votes count by confidence.
    """

    rule: StopRule
    grants: GrantPolicy
    offers: bool = False
    weighted: bool = False
    pace: float | None = None
    probes: ProbePlan | None = None

    @property
    def one_at_a_time(self) -> bool:
        """Whether only one branch runs at any time, so that the order of finishing is given."""
        return self.grants == FixedGrants((1,)) and not self.offers

    def settings(self, max_branches: int) -> SelfConsistencySettings:
        """What the program is made of."""
        return SelfConsistencySettings(
            max_branches=max_branches,
            rule=self.rule,
            grants=self.grants,
            offers=self.offers,
            pace=self.pace,
            probes=self.probes,
            vote="weighted" if self.weighted else "majority",
        )


class Samples:
    """The samples of one problem in one order, ready to be replayed by several contenders.

    In sequential order what is known after each sample is the same for all of them, and is counted
    once.
    """

    def __init__(
        self, samples: Sequence[Sample], key_of: Callable[[str], str] = canonical_key
    ) -> None:
        """`key_of` gives the group of an answer. Raises ValueError without samples."""
        if not samples:
            raise ValueError("max_branches must be at least 1: there are no samples")
        self.samples = samples
        self.nodes = {
            str(branch): _finished(str(branch), sample, key_of(sample.answer))
            for branch, sample in enumerate(samples)
        }
        self._key_of = key_of
        self._counted: dict[bool, Counted] = {}
        self._probed: dict[str, list[Probed]] = {}

    def probes_of(self, node: str) -> Sequence[Probed]:
        """What a sample would have answered on its way."""
        if node not in self._probed:
            self._probed[node] = [
                Probed(
                    node,
                    probe.at,
                    probe.answer,
                    self._key_of(probe.answer),
                    probe.hedged,
                    probe.certainty,
                )
                for probe in self.samples[int(node)].probes
            ]
        return self._probed[node]

    def counted(self, weighted: bool = False) -> Counted:
        """What is known after each sample, in their order."""
        if weighted not in self._counted:
            self._counted[weighted] = Counted(self.samples, self._key_of, weighted)
        return self._counted[weighted]

    def replay(self, contender: Contender, order: Order = "concurrent") -> Replayed:
        """Return what happens when the samples come as the contender asks.

        concurrent: branches run side by side, one token a step, and finish shortest first (ties:
        lowest index); on a stop the running ones have spent as many tokens as it took. sequential:
        they finish in sample order, and a branch behind the stop was never started. Nothing is
        drawn. Raises ValueError for an unknown order.
        """
        if order not in _SLOTS:
            raise ValueError(f"order must be sequential or concurrent, not {order!r}")
        tracker = None
        if order == "sequential":
            tracker = CountedVotes(self.counted(contender.weighted))
        program = SelfConsistency(contender.settings(len(self.samples)), tracker)
        return replay_nodes(
            program,
            lambda start: self.nodes[start.node],
            _SLOTS[order],
            probes_of=self.probes_of,
        )


class Counted:
    """What a tracker says after each of the samples, computed as far as somebody asks."""

    def __init__(
        self, samples: Sequence[Sample], key_of: Callable[[str], str], weighted: bool
    ) -> None:
        kind = WeightedTracker if weighted else CertaindexTracker
        self._samples = samples
        self._key_of = key_of
        self._tracker = kind(len(samples), key_of)
        self._weighted = weighted
        self._evidence = [self._tracker.evidence()]
        self._leaders: list[Vote | None] = [None]

    def evidence(self, finished: int) -> Evidence:
        """What is known once the first `finished` have ended."""
        while len(self._evidence) <= finished:
            self._count()
        return self._evidence[finished]

    def leader(self, finished: int) -> Vote | None:
        """Who leads then."""
        self.evidence(finished)
        if not self._weighted:
            return self._leaders[finished]
        # It takes all votes to know, so only the latest is at hand.
        if finished == len(self._evidence) - 1:
            return self._tracker.leader
        again = Counted(self._samples, self._key_of, self._weighted)
        return again.leader(finished)

    def _count(self) -> None:
        branch = len(self._evidence) - 1
        sample = self._samples[branch]
        if sample.pruned:
            self._tracker.exclude(branch)
        else:
            weight = sample.confidence or 0.0 if self._weighted else 1.0
            self._tracker.add(branch, sample.answer, weight)
        self._evidence.append(self._tracker.evidence())
        if not self._weighted:
            self._leaders.append(self._tracker.leader)


class CountedVotes:
    """The tracker of a program whose branches end in their order: all is counted already.

    But for the votes, of which only the leader is known; nobody reads the others of a replay.
    """

    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self._ended = 0

    def add(self, branch: int, answer: str = "", weight: float = 1.0) -> None:
        """Count the next branch, whatever it did. Raises ValueError for another one."""
        if branch != self._ended:
            raise ValueError(f"branch {branch} has ended before branch {self._ended}")
        self._ended += 1

    exclude = add

    def evidence(self) -> Evidence:
        return self._counted.evidence(self._ended)

    @property
    def certaindex(self) -> float:
        return self.evidence().certaindex

    @property
    def leader(self) -> Vote | None:
        return self._counted.leader(self._ended)

    def votes(self) -> list[Vote]:
        return [] if self.leader is None else [self.leader]


def replay(
    samples: Sequence[Sample],
    rule: StopRule,
    grants: GrantPolicy,
    order: Order = "concurrent",
    offers: bool = False,
) -> Replayed:
    """One contender on one problem: see `Samples.replay`."""
    return Samples(samples).replay(Contender(rule, grants, offers), order)


def full_vote(samples: Sequence[Sample], key_of: Callable[[str], str] = canonical_key) -> str:
    """Return the majority answer of all samples, ties to the lowest index; "" without answers.

    Raises ValueError without samples.
    """
    leader = Samples(samples, key_of).counted().leader(len(samples))
    return leader.answer if leader else ""


def _finished(node: str, sample: Sample, group: str) -> Finished:
    certainty = None
    if sample.confidence is not None:
        certainty = TokenCertainty(sample.n_tokens, *[sample.confidence] * 3)
    stop_reason: Literal["completed", "pruned"] = "pruned" if sample.pruned else "completed"
    return Finished(node, "", sample.n_tokens, stop_reason, sample.answer, group, certainty)
