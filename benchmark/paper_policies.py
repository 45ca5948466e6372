"""The paper's allocation policies: how many branches in all, decided between rounds.

Paper sections 3.2, B.2 and G.4 (Table 4) name seven; here they are four classes:

| paper                  | here                                            |
| ---------------------- | ----------------------------------------------- |
| baseline-even          | `Even(cap)`                                     |
| baseline-length        | `Length(at, max_tokens)`                        |
| static threshold       | `Threshold(threshold, at)`                      |
| k-step threshold       | `Threshold(threshold, at, every=k)`             |
| single-step threshold  | `Threshold(threshold, at, every=1)`             |
| initial-step curve     | `Curves({at: curve})`                           |
| dynamic curve          | `Curves` with a curve for each step             |

A stop rule is another thing: it is asked after every single branch and cancels the running ones.
A policy lets a round finish, so its tokens are never wasted and its checks never overlap; what it
trades is the number of rounds, the program's latency, against the branches it saves. It is run by
a program of its own, `PolicyProgram`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sglang_dynasor.certaindex import CertaindexTracker, Evidence, canonical_key
from sglang_dynasor.certaindex.entropy import AGREEMENT_DIGITS
from sglang_dynasor.offline import Sample, Samples
from sglang_dynasor.programs import (
    Action,
    Event,
    Finished,
    Outcome,
    ProgramStop,
    Replayed,
    Start,
    replay_nodes,
)

AllocationStop = Literal["certain", "budget"]


class AllocationPolicy(Protocol):
    """Says what a program gets next: implement this one method for a policy of your own."""

    def next_step(self, evidence: Evidence, spent_tokens: int) -> int | AllocationStop:
        """Return how many branches to start now (1 to `evidence.remaining`), or why to stop.

        Asked before the first branch, and whenever all granted branches have finished while some
        remain. `spent_tokens` counts what they generated. "certain": the evidence suffices;
        "budget": the program has had its share.
        """


@dataclass(frozen=True, slots=True)
class Even:
    """Gives every program `cap` branches at once: the baseline that looks at nothing."""

    cap: int

    def __post_init__(self) -> None:
        _check_minimum("cap", self.cap)

    def next_step(self, evidence: Evidence, spent_tokens: int) -> int | AllocationStop:
        """Return all branches below the cap, then stop."""
        return _up_to(self.cap, evidence) or "budget"


@dataclass(frozen=True, slots=True)
class Length:
    """Stops where the first `at` branches took at most `max_tokens` together, else runs them all.

    The baseline that reads difficulty off the length: short answers come from easy questions
    (paper Figure 10).
    """

    at: int
    max_tokens: int

    def __post_init__(self) -> None:
        _check_minimum("at", self.at)
        _check_minimum("max_tokens", self.max_tokens)

    def next_step(self, evidence: Evidence, spent_tokens: int) -> int | AllocationStop:
        """Return the branches up to the check, all others, or stop."""
        if evidence.finished < self.at:
            return _up_to(self.at, evidence)
        return "certain" if spent_tokens <= self.max_tokens else evidence.remaining


@dataclass(frozen=True, slots=True)
class Threshold:
    """Stops at a certaindex of `threshold` (0 to 1), asked after `at` branches and `every` more.

    Without `every` it is asked once, and a program below the threshold runs all its branches.
    Asked at more steps, a program never takes more branches, only more rounds to get there.
    Nothing stops before some branch has answered.
    """

    threshold: float = 0.7
    at: int = 5
    every: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be between 0 and 1, not {self.threshold}")
        _check_minimum("at", self.at)
        if self.every is not None:
            _check_minimum("every", self.every)

    def next_step(self, evidence: Evidence, spent_tokens: int) -> int | AllocationStop:
        """Return the branches up to the next check, or stop."""
        if evidence.finished < self.at:
            return _up_to(self.at, evidence)
        threshold = round(self.threshold, AGREEMENT_DIGITS)
        if evidence.counts and evidence.certaindex >= threshold:
            return "certain"
        return min(self.every or evidence.remaining, evidence.remaining)


@dataclass(frozen=True, slots=True)
class StepCurve:
    """A falling step function from certaindex (0 to 1) to branches: `fit_envelope` makes it.

    `steps[i]` holds above `certaindex[i - 1]` up to and with `certaindex[i]`; below the first and
    above the last point the nearest holds.
    """

    certaindex: tuple[float, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.steps or len(self.certaindex) != len(self.steps):
            raise ValueError("a curve needs as many steps as certaindex values, and some")
        if list(self.certaindex) != sorted(set(self.certaindex)):
            raise ValueError(f"certaindex must rise: {self.certaindex}")
        if list(self.steps) != sorted(self.steps, reverse=True):
            raise ValueError(f"steps must not rise with certaindex: {self.steps}")

    def branches(self, certaindex: float) -> int:
        """Return the most branches that a problem at least this certain needed."""
        return self.steps[min(bisect_left(self.certaindex, certaindex), len(self.steps) - 1)]


@dataclass(frozen=True, slots=True)
class Curves:
    """At each step that has a curve, takes the program's total number of branches from it.

    A later curve overrides the earlier ones: it has seen more. On the problems that the curves
    were fitted to, in the same order of samples, no right vote is lost.
    """

    curves: Mapping[int, StepCurve]

    def __post_init__(self) -> None:
        if not self.curves:
            raise ValueError("curves must not be empty")
        _check_minimum("curves", min(self.curves))

    def next_step(self, evidence: Evidence, spent_tokens: int) -> int | AllocationStop:
        """Return the branches up to the total or the next curve, or stop."""
        if evidence.finished == 0:
            return _up_to(min(self.curves), evidence)
        curve = self.curves.get(evidence.finished)
        if curve is None:
            return "budget"  # the total of the last curve, between two steps, has run
        total = curve.branches(evidence.certaindex)
        ahead = min((step for step in self.curves if step > evidence.finished), default=total)
        return _up_to(min(total, ahead), evidence) or "certain"


def fit_envelope(points: Sequence[tuple[float, int]]) -> StepCurve:
    """Return the lowest falling step function on or above all points (paper section B.2).

    A point is one calibration problem: its certaindex at the step where it is measured, and its
    `oracle_steps`. Raises ValueError without points.
    """
    if not points:
        raise ValueError("points must not be empty: a curve needs a problem whose vote is right")
    highest: dict[float, int] = {}
    most = 0
    for certaindex, steps in sorted(points, reverse=True):  # from the most certain down
        most = max(most, steps)
        highest[certaindex] = most
    rising = sorted(highest.items())
    return StepCurve(tuple(value for value, _ in rising), tuple(steps for _, steps in rising))


def fit_curves(
    samples_by_problem: Sequence[Sequence[Sample]], gold_keys: Sequence[str], at: Sequence[int]
) -> Curves:
    """Return the policy with a curve at each of these steps, fitted to labelled samples.

    One step gives the paper's initial-step curve, several its dynamic one. A problem whose vote
    ends wrong says nothing about what it needs and is left out. Raises ValueError where the
    lengths differ, a step exceeds a problem's samples, or no problem is left.
    """
    points: dict[int, list[tuple[float, int]]] = {step: [] for step in at}
    for samples, gold_key in zip(samples_by_problem, gold_keys, strict=True):
        if not 1 <= min(at) <= max(at) <= len(samples):
            raise ValueError(f"steps must be between 1 and {len(samples)}, not {tuple(at)}")
        needed = oracle_steps(samples, gold_key)
        if needed is not None:
            certaindex = [value for _, value in _votes(samples)]
            for step in at:
                points[step].append((certaindex[step - 1], needed))
    return Curves({step: fit_envelope(at_step) for step, at_step in points.items()})


def oracle_steps(samples: Sequence[Sample], gold_key: str) -> int | None:
    """Return the fewest branches from which on the vote stays right; None where it ends wrong.

    `gold_key` is the canonical key of the right answer.
    """
    needed: int | None = None
    for branches, (leader_key, _) in enumerate(_votes(samples), start=1):
        if leader_key != gold_key:
            needed = None
        elif needed is None:
            needed = branches
    return needed


class PolicyProgram:
    """Runs the grants of a policy to their end, at most `max_branches`, and takes the majority."""

    def __init__(self, policy: AllocationPolicy, max_branches: int) -> None:
        self._policy = policy
        self._tracker = CertaindexTracker(max_branches)
        self._answers: dict[str, str] = {}
        self._spent = self._started = self._rounds = 0

    def start(self) -> Sequence[Action]:
        """Return the first grant. Raises ValueError for a policy that stops before it."""
        step = self._policy.next_step(self._tracker.evidence(), 0)
        if isinstance(step, str):
            raise ValueError(f"a program needs a first grant, not {step}")
        return self._grant(step)

    def on(self, events: Sequence[Event]) -> Sequence[Action] | Outcome:
        """Count what has ended; ask the policy once all of a grant have."""
        for event in events:
            assert isinstance(event, Finished), "recorded branches do nothing else"
            self._tracker.add(int(event.node), event.answer)
            self._answers[event.node] = event.answer
            self._spent += event.n_tokens
        evidence = self._tracker.evidence()
        if not evidence.remaining:
            return self._outcome("completed")
        if evidence.finished < self._started:
            return ()
        step = self._policy.next_step(evidence, self._spent)
        return self._outcome(step) if isinstance(step, str) else self._grant(step)

    def _grant(self, size: int) -> Sequence[Action]:
        remaining = self._tracker.evidence().remaining
        if not 1 <= size <= remaining:
            raise ValueError(f"a grant must be 1 to {remaining}, not {size}")
        first = self._started
        self._started += size
        self._rounds += 1
        return [Start(str(branch)) for branch in range(first, self._started)]

    def _outcome(self, stop_reason: ProgramStop) -> Outcome:
        leader = self._tracker.leader
        return Outcome(
            stop_reason=stop_reason,
            answer=leader.answer if leader else "",
            node=str(leader.first_branch) if leader else None,
            certaindex=self._tracker.certaindex,
            votes=tuple(self._tracker.votes()),
            answers=self._answers,
            rounds=self._rounds,
        )


def replay_policy(samples: Samples, policy: AllocationPolicy) -> Replayed:
    """Return what `policy` would have done on recorded samples, the program's most branches.

    Raises ValueError for a grant that is not within 1 and what remains.
    """
    program = PolicyProgram(policy, len(samples.samples))
    return replay_nodes(program, lambda start: samples.nodes[start.node])


def _votes(samples: Sequence[Sample]) -> Iterator[tuple[str, float]]:
    """Yield the leader's key and the certaindex after each branch."""
    tracker = CertaindexTracker(len(samples))
    for branch, sample in enumerate(samples):
        tracker.add(branch, sample.answer)
        leader = tracker.leader
        yield canonical_key(leader.answer) if leader else "", tracker.certaindex


def _up_to(total: int, evidence: Evidence) -> int:
    """Branches still to start so that `total` have run, as far as they remain."""
    return max(0, min(total - evidence.finished, evidence.remaining))


def _check_minimum(field: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{field} must be at least 1, not {value}")
