"""What the table and the order keep of one program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

PLAIN = "plain"  # the class of requests without a program


class ProgramKey(NamedTuple):
    tenant: str
    program_id: str


class WaitingRequest(Protocol):
    """What is read of a request in the queue: upstream's Req, and the number of its arrival."""

    rid: str
    origin_input_ids: Sequence[int]
    arrival: int  # of `ProgramTable.next_arrival`


@dataclass(slots=True, eq=False)
class ProgramEntry:
    """One program in the engine, or one plain request, which is ordered as a program of its own.

    `max_branches` is its knob, `needed` how many branches must be in flight now (None: all it
    sends), `worth` what they are expected to add to P(the vote is right) next to the first
    branches of a program (1), `values` what each offered branch beyond them would add, falling.
    """

    key: ProgramKey
    arrival: int
    prompt_tokens: int = 0
    branch_class: str = PLAIN
    prompt_head: tuple[int, ...] = ()  # how the first request's prompt begins, if it is long
    alike: set[str] = field(default_factory=set)  # requests whose prompt begins like that
    opened: bool = False  # the engine runs it: it stays until it is ended
    rids: dict[str, None] = field(default_factory=dict)  # in order of arrival
    waiting: dict[str, WaitingRequest] = field(default_factory=dict)  # by rid, first come first
    running: dict[str, int] = field(default_factory=dict)  # rid -> progress step of admission
    finished: int = 0
    finished_tokens: int = 0
    served_tokens: int = 0  # all its branches generated
    certaindex: float = 0.0
    max_branches: int = 0
    needed: int | None = None
    worth: float = 1.0
    values: Sequence[float] = ()
    drawn: int = 0  # offered branches asked for, in all
    draws_seen: int = 0  # of these, the ones its last report knew of
    waiting_since: int | None = None  # progress, tokens
    escalate_at: float | None = None  # set once for each wait
    escalated: bool = False
    order_key: tuple[float, ...] = ()
    late: frozenset[str] = frozenset()  # waiting requests beyond the needed ones
    prompt_cached: bool = False  # a branch has been prefilled, so siblings can share its prompt

    @property
    def in_flight(self) -> int:
        return len(self.rids)

    @property
    def underway(self) -> int:
        """Branches drawn that its last report did not know of.

        A report counts the draws of all data-parallel replicas, this table only its own.
        """
        return max(0, self.drawn - self.draws_seen)

    @property
    def started(self) -> bool:
        """Whether it has been served: the gang whose requests go first."""
        return bool(self.running) or (self.opened and self.finished > 0)

    def end_wait(self) -> None:
        self.waiting_since, self.escalate_at, self.escalated = None, None, False

    def surplus(self) -> list[str]:
        """Requests beyond the needed ones, youngest first: the first to be given up."""
        if self.needed is None:
            return []
        return list(reversed(list(self.rids)[self.needed :]))


@dataclass(slots=True)
class EndedProgram:
    """A program being ended: branches that still drain, and the counts of those that are gone."""

    key: ProgramKey
    message_id: str
    draining: set[str]
    tokens_at_end: dict[str, int]
    tokens: dict[str, int] = field(default_factory=dict)
