"""What a runner needs of whoever generates the nodes: a live engine, a replay, a fake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.certaindex import TokenCertainty
from sglang_dynasor.errors import RequestError
from sglang_dynasor.programs.protocol import NodeStop, Start


@dataclass(frozen=True, slots=True)
class Generated:
    """What came of one node; `n_tokens` counts generated tokens.

    `cancelled`: it was ended before its end, because it had to make room or by `cancel` or `end`;
    then text and tokens are what the client had seen of it. `aborted`: somebody else ended it.
    """

    text: str
    n_tokens: int
    stop_reason: NodeStop | Literal["cancelled", "aborted"]
    certainty: TokenCertainty | None = None


class NodeError(RequestError):
    """A node was refused or broke. Where nothing can answer, the first ends the program."""


class ClientGone(Exception):
    """Nobody waits for the program any more: it ends without an outcome."""


class ProgramAborted(Exception):
    """The program was aborted by its id: it ends with what it has."""


class NodeClient(Protocol):
    """Generates the nodes of one program: its line to whatever does the work."""

    async def generate(self, start: Start) -> Generated:
        """Generate a node to its end, or to where it is cancelled. Raises NodeError.

        A node that was trimmed may be started again under the same name while its old row drains.
        """
        ...

    def demand(self, demand: Demand, draws_seen: int) -> None:
        """Say what the program needs now, before the nodes for it are generated.

        `draws_seen` is how many draws have reached the program so far.
        """
        ...

    def on_draw(self, start: Callable[[int], None]) -> None:
        """Call `start` with a number of offered nodes whenever there is room for them."""
        ...

    def cancel(self, nodes: Sequence[str]) -> None:
        """End these nodes; their `generate` returns `cancelled`."""
        ...

    async def end(self) -> dict[str, int]:
        """End every running node; return how many tokens each of them generated.

        Waits no longer than a bound of the client's; a node that is missing then counts as seen.
        """
        ...

    def close(self) -> None:
        """The program is over and none of its nodes runs."""
        ...

    async def check_wanted(self) -> None:
        """Raise ClientGone where nobody waits any more, ProgramAborted where it was aborted."""
        ...
