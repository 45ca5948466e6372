"""What a client may say about a program, checked before anything reaches the engine."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sglang_dynasor.allocation import (
    RULES,
    WEIGHT_RULES,
    AdaptiveGrants,
    BranchRule,
    FixedGrants,
    GrantPolicy,
    StopRule,
    make_rule,
    parse_grants,
)
from sglang_dynasor.certaindex import check_pattern
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.errors import describe_validation_error

# Fields that only mean something when the engine itself runs the program.
_RUN_FIELDS = (
    "rule",
    "threshold",
    "min_branches",
    "grants",
    "draw",
    "max_total_tokens",
    "deadline_ms",
    "vote",
    "branch_rule",
    "keep_top",
    "confidence_bar",
    "stop_loops",
    "entropy_floor",
    "profile",
)
_SERVER_DEFAULTS = (
    "max_branches",
    "min_branches",
    "grants",
    "rule",
    "draw",
    "vote",
    "branch_rule",
    "stop_loops",
)
_WEIGHTED = ("weighted", "filtered")


class ProgramSpec(BaseModel):
    """The request object `dynasor`. A field left out takes the server's default.

    Strict: a wrong type, an unknown key, a value out of range and a contradiction are each refused
    with a message naming the field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    program_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="letters, digits, `._-`, at most 64; minted when absent",
    )
    algorithm: Literal["none", "self_consistency"] = Field(
        "none", description="`self_consistency`: the engine runs the program; `none`: your requests"
    )
    mode: Literal["on", "shadow", "off"] = Field(
        "on", description="`shadow`: run every branch, only note the decision; `off`: plain request"
    )
    max_branches: int | None = Field(
        None, ge=1, le=512, description="branches it may use, 1 to 512"
    )
    min_branches: int | None = Field(
        None, ge=1, le=512, description="finished branches below which nothing stops"
    )
    grants: str | None = Field(
        None, max_length=512, description='branches per round, `"4,3,3,6"`; the last repeats'
    )
    draw: Literal["rounds", "offer"] | None = Field(
        None, description="`offer`: further branches start before a round has ended"
    )
    rule: str | None = Field(None, max_length=64, description=f"{', '.join(RULES)}")
    threshold: float | None = Field(
        None, ge=0, le=1, description="certaindex (threshold) or posterior (beta, dynasor), 0 to 1"
    )
    answer_format: Literal["boxed", "number", "choice", "regex", "json", "code", "text"] = Field(
        "boxed", description="how an answer is read from a branch"
    )
    answer_pattern: str | None = Field(
        None, description="regular expression (`regex`) or dotted field (`json`)"
    )
    max_total_tokens: int | None = Field(
        None, ge=1, le=2**31, description="generated tokens the program may use"
    )
    deadline_ms: int | None = Field(
        None, ge=1, le=86_400_000, description="answer with what has finished by then, ms"
    )
    vote: Literal["majority", "weighted", "filtered"] | None = Field(
        None,
        description="`weighted`: by each branch's lowest group confidence; `filtered`: so, among "
        "the `keep_top` most confident",
    )
    branch_rule: Literal["none", "deepconf"] | None = Field(
        None, description="`deepconf`: stop a branch below the confidence bar, without a vote"
    )
    keep_top: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the most confident branches that `deepconf` and `filtered` keep: "
        "0.1 the best tenth, 0.9 all but the worst",
    )
    confidence_bar: float | None = Field(
        None,
        gt=0,
        lt=10_000,
        description="fixed bar of `deepconf`, nats; else it is where `keep_top` of all finished "
        "branches of the `profile` are",
    )
    profile: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="your name for a kind of problem: its programs share one running bar",
    )
    stop_loops: bool | None = Field(
        None, description="stop a branch that repeats itself exactly, as if its length were spent"
    )
    entropy_floor: float | None = Field(
        None,
        gt=0,
        lt=10_000,
        description="stop a branch whose last group of tokens has less mean entropy, nats",
    )
    token_certainty: bool = Field(
        False, description="return the certainty of each token and of each branch"
    )
    detail: Literal["answer", "votes", "branches"] = Field(
        "votes", description="how much the report lists"
    )

    @model_validator(mode="after")
    def _check_combination(self) -> ProgramSpec:
        check_pattern(self.answer_format, self.answer_pattern)
        if self.grants is not None:
            parse_grants(self.grants)
            if self.draw == "offer":
                raise ValueError("grants: are sizes of rounds; draw must be rounds, not offer")
        if self.draw == "offer" and self.max_total_tokens is not None:
            raise ValueError("max_total_tokens: is shared out by rounds; draw must be rounds")
        if self.algorithm == "none":
            given = [name for name in _RUN_FIELDS if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{given[0]}: needs an algorithm, e.g. self_consistency")
            if self.mode == "shadow":
                raise ValueError("mode: shadow needs an algorithm, e.g. self_consistency")
        if self.rule is not None:
            make_rule(self.rule, threshold=self.threshold)
            if self.vote in _WEIGHTED and self.rule not in WEIGHT_RULES:
                raise ValueError(
                    f"rule: {self.rule} judges equal votes; with vote {self.vote} it must be "
                    f"{' or '.join(WEIGHT_RULES)}"
                )
        if self.confidence_bar is not None and self.branch_rule == "none":
            raise ValueError("confidence_bar: needs branch_rule deepconf, not none")
        if self.confidence_bar is not None and self.keep_top is not None and not self._filters:
            raise ValueError("keep_top: contradicts confidence_bar, unless vote is filtered")
        if None not in (self.min_branches, self.max_branches) and (
            self.min_branches > self.max_branches  # type: ignore[operator]
        ):
            raise ValueError(
                f"min_branches: {self.min_branches} exceeds max_branches {self.max_branches}"
            )
        return self

    @property
    def _filters(self) -> bool:
        return self.vote == "filtered"

    @classmethod
    def parse(cls, fields: object) -> ProgramSpec:
        """Check client input of any shape. Raises ValueError naming the field."""
        if not isinstance(fields, dict):
            raise ValueError(f"dynasor: must be an object, got {type(fields).__name__}")
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            known = ", ".join(cls.model_fields)
            unknown = any(item["type"] == "extra_forbidden" for item in error.errors())
            hint = f" (known fields: {known})" if unknown else ""
            raise ValueError(f"dynasor.{describe_validation_error(error)}{hint}") from None

    @property
    def runs_in_engine(self) -> bool:
        """Whether the engine runs the program, rather than a client that sends its requests."""
        return self.algorithm != "none" and self.mode != "off"

    def resolve(self, config: DynasorConfig) -> ProgramSpec:
        """Fill what was left out from the server's settings, and mint an id.

        Raises ValueError when a given field contradicts a setting it is combined with.
        """
        settings: dict[str, Any] = {
            name: getattr(config, name) for name in _SERVER_DEFAULTS if getattr(self, name) is None
        }
        if self.draw == "offer":
            settings["grants"] = ""
        elif self.grants or self.max_total_tokens is not None:
            settings["draw"] = "rounds"
        if self.threshold is None and self.rule is None:
            settings["threshold"] = config.threshold
        self._resolve_certainty(config, settings)
        if self.program_id is None:
            settings["program_id"] = uuid.uuid4().hex
        resolved = self.model_copy(update=settings)
        if self.min_branches is None and self.max_branches is not None:
            # A small program asked for by size alone is not a contradiction.
            lowest = min(config.min_branches, self.max_branches)
            resolved = resolved.model_copy(update={"min_branches": lowest})
        if self.max_branches is None and self.min_branches is not None:
            highest = max(config.max_branches, self.min_branches)
            resolved = resolved.model_copy(update={"max_branches": highest})
        return resolved

    def _resolve_certainty(self, config: DynasorConfig, settings: dict[str, Any]) -> None:
        """Settings that give way to what the client asked for."""
        if self.vote is None and self.rule is not None and self.rule not in WEIGHT_RULES:
            settings["vote"] = "majority"
        vote = settings.get("vote", self.vote)
        if vote in _WEIGHTED and self.rule is None and config.rule not in WEIGHT_RULES:
            # The server's rule judges equal votes, and so does its threshold.
            settings |= {"rule": "deepconf", "threshold": self.threshold}
        prunes = settings.get("branch_rule", self.branch_rule) == "deepconf"
        if self.keep_top is None:
            settings["keep_top"] = config.keep_top
            if prunes and self.confidence_bar is None:
                settings["confidence_bar"] = config.confidence_bar
        elif not prunes and vote != "filtered":
            raise ValueError("keep_top: needs branch_rule deepconf or vote filtered")
        if self.confidence_bar is not None and not prunes:
            raise ValueError("confidence_bar: needs branch_rule deepconf")

    def stop_rule(self) -> StopRule:
        """The rule of a resolved spec."""
        assert self.rule is not None and self.min_branches is not None, "resolve() first"
        return make_rule(self.rule, threshold=self.threshold, min_branches=self.min_branches)

    def rule_of_branch(self, index: int) -> BranchRule | None:
        """What may stop this branch of a resolved spec; None: only its length and its end.

        The first `min_branches` are never pruned: a program must have votes. In shadow mode
        nothing stops a branch. The profile's name is the client's: put the tenant before it.
        """
        prunes = self.branch_rule == "deepconf"
        if not self.runs_in_engine or not (prunes or self.stop_loops or self.entropy_floor):
            return None
        if self.mode == "shadow":
            return BranchRule(self.profile or "") if prunes else None
        assert self.min_branches is not None, "resolve() first"
        held = not prunes or index < self.min_branches
        fixed = self.confidence_bar is not None
        return BranchRule(
            profile=self.profile or "",
            keep_top=None if held or fixed else self.keep_top,
            bar=None if held else self.confidence_bar,
            loop=bool(self.stop_loops),
            entropy_floor=self.entropy_floor,
        )

    @property
    def wants_certainty(self) -> bool:
        """Whether the tokens of a resolved spec's requests have to be measured."""
        if self.runs_in_engine and (self.vote in _WEIGHTED or self.rule_of_branch(0)):
            return True
        return self.token_certainty and self.mode != "off"

    def grant_policy(self, rule: StopRule) -> GrantPolicy:
        """Sizes of the rounds of a resolved spec."""
        return FixedGrants(parse_grants(self.grants)) if self.grants else AdaptiveGrants(rule)
