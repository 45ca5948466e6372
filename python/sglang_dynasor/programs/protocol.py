"""What a reasoning program and whoever runs it say to each other: events in, actions out.

A program is an object with two methods. It knows neither engine nor clock, and no step of it waits:
live runs, replays and the virtual clock drive the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from sglang_dynasor.allocation import RuleStop, TokenStop
from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.certaindex import TokenCertainty, Vote

NodeStop: TypeAlias = TokenStop | Literal["completed", "length", "cut"]
ProgramStop: TypeAlias = RuleStop | Literal["budget", "deadline", "completed", "aborted", "failed"]

PROBE_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Start:
    """Generate a node: from the prompt, or from the tokens of a finished `parent`.

    `node` is the program's own name for it, letters and digits. Of the parent's output the first
    `keep` tokens count (None: all), then `suffix`, forced text. At most `max_tokens` new tokens
    (None: what the request allows), and up to `stop`, a text that ends the node and belongs to it.
    `kind` is the class whose lengths are learnt together.

    `value` None: needed now. A number: an offer, which the engine may draw while it has room, and
    what the node would add to P(the answer is right). A running node that is named again is not
    started again: it is needed from now on, or can be spared. Offers stand until the next actions;
    none at all change nothing.
    """

    node: str
    parent: str | None = None
    keep: int | None = None
    suffix: str = ""
    max_tokens: int | None = None
    kind: str = "branch"
    value: float | None = None
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Watch:
    """Probe a running node each `every` of its tokens, from now on.

    A probe is forked off: the node's tokens so far, then `text`, then at most `max_tokens` tokens
    or up to the end of a box that `text` opens. It is thrown away, and the node goes on unchanged.
    `every` 0: no further one. Watching a node again replaces what was said before. `measured` asks
    for the probability of what is generated. The first one comes after `after` tokens at least.
    """

    node: str
    every: int
    text: str = ""
    max_tokens: int = PROBE_TOKENS
    measured: bool = False
    after: int = 0


@dataclass(frozen=True, slots=True)
class Cancel:
    """End these nodes: what waits vanishes, what runs commits at most two more tokens.

    With `keep_kv` a node is cut instead, to be continued: it comes back as `Finished`, stopped as
    `cut`, and what it has generated can be the parent of another node.
    """

    nodes: tuple[str, ...]
    keep_kv: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """May more tokens be spent? `value` is what each of them would add to P(the answer is right).

    The answer is a `Granted`; until then the program may start nothing and still goes on.
    """

    tokens: int
    value: float


@dataclass(frozen=True, slots=True)
class Score:
    """Have the reward model judge the paths of these finished nodes; each comes as `Scored`."""

    nodes: tuple[str, ...]


Action: TypeAlias = Start | Watch | Cancel | Ask | Score | Demand


@dataclass(frozen=True, slots=True)
class Finished:
    """A node that ended by itself. `n_tokens` counts generated tokens.

    `answer` is extracted ("" where there is none), `group` the key of its equals. `certainty` is
    there where the tokens were measured. A node stopped as `pruned` has no vote, one in a `loop` no
    answer. `matched_stop` is the stop string that ended it, "" where none did.
    """

    node: str
    text: str
    n_tokens: int
    stop_reason: NodeStop
    answer: str = ""
    group: str = ""
    certainty: TokenCertainty | None = None
    matched_stop: str = ""


@dataclass(frozen=True, slots=True)
class Probed:
    """What a watched node would have answered after `at` of its tokens.

    `answer` is "" where the probe gave none, `group` the key of its equals. `hedged`: the model
    doubts it in the same breath. `confidence` is the mean probability of the answer's tokens, 0 to
    1, None where it was not measured.
    """

    node: str
    at: int
    answer: str
    group: str = ""
    hedged: bool = False
    confidence: float | None = None

    @property
    def counts(self) -> bool:
        """Whether there is an answer that the model does not doubt."""
        return bool(self.answer) and not self.hedged


@dataclass(frozen=True, slots=True)
class Scored:
    """What the reward model makes of a node's path, 0 to 1; None: it could not say, see `error`."""

    node: str
    reward: float | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Regrouped:
    """A later answer has split a group: `groups` maps every finished node to its group now."""

    groups: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A node that was not needed has made room. It may be started again."""

    node: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A node that was refused or broke; it costs the program this node and nothing else."""

    node: str
    error: str


@dataclass(frozen=True, slots=True)
class Granted:
    """So many more tokens may be spent, at most what was asked for; 0: there will be none."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Expired:
    """The deadline has passed: the last event of its batch, and of the program."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """The client has aborted the program, or is gone."""


Event: TypeAlias = (
    Finished | Probed | Scored | Regrouped | Trimmed | Failed | Granted | Expired | Aborted
)


@dataclass(frozen=True, slots=True)
class ShadowOutcome:
    """Where the rule would have stopped on the same samples; tokens include cancelled nodes."""

    stop_reason: ProgramStop
    answer: str
    tokens: int
    branches: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program decided.

    `node` stands for the answer: the lowest finished one that gave it, the lowest of all where none
    gave one, None where nothing finished. `answers` maps every counted node to its answer; `shadow`
    is what the rule would have done, in shadow mode; `inactive` maps a capability that could not
    work to the reason.
    """

    stop_reason: ProgramStop
    answer: str
    node: str | None
    certaindex: float
    votes: tuple[Vote, ...]
    answers: dict[str, str]
    rounds: int
    shadow: ShadowOutcome | None = None
    inactive: dict[str, str] = field(default_factory=dict)
    closing: str = ""
    probes: Mapping[str, Sequence[Probed]] = field(default_factory=dict)


class ReasoningProgram(Protocol):
    """Decides what is generated; implement these two methods for an algorithm of your own."""

    def start(self) -> Sequence[Action]:
        """Return the first actions."""
        ...

    def on(self, events: Sequence[Event]) -> Sequence[Action] | Outcome:
        """Take what has happened, in finishing order; return further actions, or the outcome.

        After an outcome it is asked nothing more. `Expired` and `Aborted` want an outcome.
        """
        ...
