"""What a request says about a program: the envelope of all, and what each algorithm adds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sglang_dynasor.allocation import BranchRule
from sglang_dynasor.certaindex import check_pattern
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs.answers import BOXED, AnswerFormat

MAX_BRANCHES = 512
GREEDY = "at temperature 0 every branch is the same: one was run"
Mode = Literal["on", "shadow", "off"]
Detail = Literal["answer", "votes", "branches"]


class Fields(BaseModel):
    """Strict: a wrong type, an unknown key, a value out of range and a contradiction are refused.

    A field left out is filled by `Params.resolve`; every field has a description, for README.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Envelope(Fields):
    """The fields that every algorithm has."""

    program_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="letters, digits, `._-`, at most 64; minted when absent",
    )
    algorithm: str = Field(
        "none",
        max_length=64,
        description="`self_consistency`, `cot`, `best_of_n`, `rebase`, `mcts`, `beam`, `dvts`: the "
        "engine runs the program; `none`: your requests",
    )
    mode: Mode = Field(
        "on", description="`shadow`: run every branch, only note the decision; `off`: plain request"
    )
    deadline_ms: int | None = Field(
        None, ge=1, le=86_400_000, description="answer with what has finished by then, ms"
    )
    max_total_tokens: int | None = Field(
        None, ge=1, le=2**31, description="generated tokens the program may use"
    )
    detail: Detail = Field("votes", description="how much the report lists")


@dataclass(frozen=True, slots=True)
class RequestTraits:
    """What of a request itself matters to its program.

    `greedy`: every sample of the prompt is the same; `grammar`: its output is constrained;
    `opens_thought`: the prompt ends inside a thought.
    """

    greedy: bool = False
    grammar: bool = False
    opens_thought: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A program's own settings once nothing is open: what whoever runs its nodes must know.

    `max_branches` is how many paths may count, 0 where nobody said. `measured` asks for the token
    certainty of every node, `token_certainty` also returns it. `stops_branches`: some may be
    stopped by what they generate, so that the report counts the reasons. `streams`: there is one
    path, whose text can be sent as it comes.
    """

    max_branches: int
    answer_format: AnswerFormat = BOXED
    measured: bool = False
    token_certainty: bool = False
    stops_branches: bool = False
    streams: bool = False

    def rule_of_node(self, node: str) -> BranchRule | None:
        """What may stop this node; None: only its length and its end.

        Its profile is the client's name for it: put the tenant before it.
        """
        return None


class Params(Fields, ABC):
    """The fields of one algorithm. For one of your own: the fields, and `resolve`.

    `of_the_server` are those whose default is a setting of the same name.
    """

    of_the_server: ClassVar[tuple[str, ...]] = ()
    token_certainty: bool = Field(
        False, description="return the certainty of each token and of each branch"
    )

    def check(self, envelope: Envelope) -> None:
        """Raise ValueError, starting with the field, for what contradicts the envelope."""

    @abstractmethod
    def resolve(
        self, envelope: Envelope, config: DynasorConfig, request: RequestTraits
    ) -> Settings:
        """Fill what was left out from the server's settings.

        Raises ValueError, starting with the field, where a given one contradicts a setting it is
        combined with.
        """


class AnswerParams(Params):
    """How answers are read, spelled alike for every algorithm whose branches answer."""

    answer_format: Literal["boxed", "number", "choice", "regex", "json", "code", "text"] = Field(
        "boxed", description="how an answer is read from a branch"
    )
    answer_pattern: str | None = Field(
        None, description="regular expression (`regex`) or dotted field (`json`)"
    )

    @model_validator(mode="after")
    def _check_pattern(self) -> AnswerParams:
        check_pattern(self.answer_format, self.answer_pattern)
        return self
