"""What is kept of one program while it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sglang_dynasor.allocation.demand import Demand

PLAIN = "plain"  # the kind of requests without a program
CLIENT = "client"  # the kind of programs whose requests the client sends
NO_DEMAND = Demand()


class ProgramKey(NamedTuple):
    tenant: str
    program_id: str


class Request(Protocol):
    """What is read of a request, upstream's Req.

    Requests are told apart by identity: a client may use an id again while an old row drains.
    """

    @property
    def rid(self) -> str: ...
    @property
    def origin_input_ids(self) -> Sequence[int]: ...
    @property
    def output_ids(self) -> Sequence[int]: ...


@dataclass(slots=True, eq=False)
class EndedProgram:
    """A program being ended: requests that still drain, and the tokens of those that are gone."""

    key: ProgramKey
    message_id: str
    draining: set[Request]
    tokens_at_end: dict[str, int]
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class ProgramEntry:
    """One program in the engine, or one plain request, which is ordered as a program of its own.

    `offers` holds what each offered node would add, falling; `expected` is how many requests a
    client said it will send, 0 where it did not.
    """

    key: ProgramKey | None  # None: a plain request
    arrival: int
    prompt_tokens: int = 0
    kind: str = PLAIN
    open: bool = False  # the engine runs it: it stays, without requests too, until it is ended
    ended: bool = False
    requests: dict[Request, None] = field(default_factory=dict)  # in order of arrival
    waiting: dict[Request, int] = field(default_factory=dict)  # to its turn, first come first
    running: dict[Request, int] = field(default_factory=dict)  # to the step of its admission
    leaving: set[Request] = field(default_factory=set)  # cancelled, but not gone yet
    finished: int = 0
    finished_tokens: int = 0
    expected: int = 0
    demand: Demand = NO_DEMAND
    offers: Sequence[float] = ()
    drawn: int = 0  # offered nodes asked for, in all
    draws_seen: int = 0  # of these, the ones its last demand knew of
    ends: list[EndedProgram] = field(default_factory=list)
    # Of the order.
    waiting_since: int | None = None  # progress, tokens
    escalate_at: float | None = None  # set once for each wait
    escalated: bool = False
    need: float = 0.0  # expected tokens as it first waited, 0 before
    order_key: tuple[float, ...] = ()
    late: frozenset[Request] = frozenset()  # those that wait beyond the needed ones
    # Of the holds.
    prompt_head: tuple[int, ...] = ()  # how its prompts begin, if they are long
    alike: set[Request] = field(default_factory=set)  # requests whose prompt begins like that
    first: Request | None = None  # of these, the one that prefills it
    prompt_cached: bool = False  # one of them has been prefilled, so the others share its prompt

    @property
    def underway(self) -> int:
        """Nodes drawn that its last demand did not know of."""
        return max(0, self.drawn - self.draws_seen)

    @property
    def started(self) -> bool:
        """Whether it has been served: the gang whose requests go first."""
        return bool(self.running) or (self.open and self.finished > 0)

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left and nobody will send more."""
        return not (self.requests or self.open)

    @property
    def has_surplus(self) -> bool:
        """Whether more requests stay in flight than it needs."""
        staying = len(self.requests) - len(self.leaving)
        return self.demand.needed is not None and staying > self.demand.needed

    def surplus(self) -> list[Request]:
        """Requests beyond the needed ones, youngest first: the first to be given up."""
        if not self.has_surplus:
            return []
        staying = [req for req in self.requests if req not in self.leaving]
        return staying[self.demand.needed :][::-1]

    @property
    def further(self) -> float:
        """Requests it is expected to send beyond those in flight."""
        if self.open:
            return self.demand.work
        return max(0, self.expected - self.finished - len(self.requests))

    def end_wait(self) -> None:
        self.waiting_since, self.escalate_at, self.escalated = None, None, False
