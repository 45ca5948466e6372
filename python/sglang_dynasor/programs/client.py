"""What a runner needs of whoever generates the nodes: a live engine, a replay, a fake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.certaindex import TokenCertainty
from sglang_dynasor.errors import RequestError
from sglang_dynasor.programs.protocol import NodeStop, Start, Watch


@dataclass(frozen=True, slots=True)
class Generated:
    """What came of one node; `n_tokens` counts generated tokens.

    `text` is that of the node's whole path, from the prompt on, forced text included.

    `cancelled`: it was ended before its end, because it had to make room or by `cancel` or `end`;
    then text and tokens are what the client had seen of it. `aborted`: somebody else ended it.
    `matched_stop` is the stop string that ended it, "" where none did.
    """

    text: str
    n_tokens: int
    stop_reason: NodeStop | Literal["cancelled", "aborted"]
    certainty: TokenCertainty | None = None
    matched_stop: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe of `node` generated behind the `forced` text, after `at` tokens of the node.

    `text` is None for one that was ended before it could answer: its tokens count all the same.
    `is_whole`: it has closed the box that was open, or ended by itself.
    """

    node: str
    at: int
    forced: str
    text: str | None
    n_tokens: int
    is_whole: bool
    confidence: float | None = None


class NodeError(RequestError):
    """A node was refused or broke. Where nothing can answer, the first ends the program."""


class RewardError(Exception):
    """No reward is to be had: the program goes on without."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The reward of a path, 0 to 1, and how many tokens were read for it (0: it was known)."""

    reward: float
    n_tokens: int = 0


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

    def watch(self, watch: Watch) -> None:
        """Probe a node while it runs, once it does."""
        ...

    def on_probe(self, take: Callable[[Probe], None]) -> None:
        """Call `take` with each probe that has ended."""
        ...

    async def score(self, node: str) -> Judgement:
        """Have the reward model judge the path of a finished node. Raises RewardError."""
        ...

    def cancel(self, nodes: Sequence[str], keep_kv: bool = False) -> None:
        """End these nodes; their `generate` returns `cancelled`.

        With `keep_kv` they are cut, to be continued: it returns `cut`, unless they have ended.
        """
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
