"""What a reasoning program and whoever runs it say to each other.

A program is a generator: it yields grants or offers, receives one finished branch at a time, and
returns an outcome. It knows neither engine nor clock: live runs, replays and simulations share it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from sglang_dynasor.allocation import RuleStop, TokenStop
from sglang_dynasor.certaindex import TokenCertainty, Vote

BranchStop: TypeAlias = TokenStop | Literal["completed", "length", "cancelled", "aborted"]
ProgramStop: TypeAlias = RuleStop | Literal["budget", "deadline", "completed", "aborted"]


@dataclass(frozen=True, slots=True)
class Grant:
    """Start this many more branches (0: only wait), each of at most `max_tokens` new tokens."""

    branches: int
    max_tokens: int | None = None
    certaindex: float = 0.0


@dataclass(frozen=True, slots=True)
class Offer:
    """Have `needed` branches in flight now; the engine may draw one more for each of `values`.

    `values` are what those further branches would add to P(the vote is right), falling; `worth` is
    what the needed ones would add next to the first branches of a program (1).
    """

    needed: int
    values: tuple[float, ...]
    worth: float
    certaindex: float


@dataclass(frozen=True, slots=True)
class FinishedBranch:
    """One sampled path that ended by itself. `n_tokens` counts generated tokens.

    `certainty` is there where the tokens were measured (`ProgramSpec.wants_certainty`). A branch
    stopped as `pruned` has no vote, one in a `loop` no answer. `answer` is there where it was
    extracted already, "" where the text gives none.
    """

    index: int
    text: str
    n_tokens: int
    stop_reason: BranchStop
    certainty: TokenCertainty | None = None
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program decided.

    `branch` is the lowest finished branch that gave the answer, the lowest of all when none gave
    one, None when nothing finished;
    `answers` maps every counted branch to its extracted answer; `shadow` is what the rule would
    have done, in shadow mode; `inactive` maps a capability that could not work to the reason.
    """

    stop_reason: ProgramStop
    answer: str
    branch: int | None
    certaindex: float
    votes: tuple[Vote, ...]
    answers: dict[int, str]
    rounds: int
    shadow: ShadowOutcome | None = None
    inactive: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShadowOutcome:
    """Where the rule would have stopped on the same samples; tokens include cancelled branches."""

    stop_reason: ProgramStop
    answer: str
    tokens: int
    branches: int
    rounds: int


# None is sent instead of a branch when the deadline has passed.
Step: TypeAlias = Grant | Offer
ReasoningProgram: TypeAlias = Generator[Step, FinishedBranch | None, Outcome]
