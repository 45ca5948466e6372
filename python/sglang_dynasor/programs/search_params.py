"""What a client may say about a search program, and what the server's settings make of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from sglang_dynasor.allocation import (
    RULES,
    AdaptiveGrants,
    FixedGrants,
    GrantPolicy,
    StopRule,
    make_rule,
    parse_grants,
)
from sglang_dynasor.certaindex.reward import RewardAggregate
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs.answers import AnswerFormat
from sglang_dynasor.programs.params import (
    GREEDY,
    MAX_BRANCHES,
    AnswerParams,
    Envelope,
    RequestTraits,
    Settings,
)

SearchVote: TypeAlias = Literal["weighted", "majority", "best"]
CONSTRAINED = "a grammar's state is lost between steps: each branch is one step"
NO_REWARD_MODEL = "the server has no reward model (reward_model_path, reward_url, reward_verifier)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings(Settings):
    """`max_branches` leaves in all, granted in waves. A step ends after `step_tokens` or at
    `step_stop`; at `depth` steps a path runs to its end. `judged`: there is a reward model.

    `reward_threshold` is what the reward of the program must reach too for a stop, by `aggregate`
    of its leaves (paper B.1).
    """

    rule: StopRule
    grants: GrantPolicy
    vote: SearchVote = "weighted"
    aggregate: RewardAggregate = "max"
    reward_threshold: float | None = None
    step_tokens: int | None = None
    step_stop: str = ""
    depth: int = 1
    expansion: int = 4
    balance: float = 0.2
    exploration: float = 1.0
    judged: bool = True
    max_total_tokens: int | None = None
    shadow: bool = False
    inactive: Mapping[str, str] = field(default_factory=dict)


class SearchParams(AnswerParams):
    """The fields that every search program has."""

    of_the_server: ClassVar[tuple[str, ...]] = ("min_branches", "rule", "threshold")
    aggregate: ClassVar[RewardAggregate] = "max"
    operating_points: ClassVar[Mapping[str, tuple[float | None, float | None, int]]] = {}
    confidence: ClassVar[float | None] = None  # of rule dynasor, where nobody gives a threshold

    min_branches: int | None = Field(
        None, ge=1, le=MAX_BRANCHES, description="finished leaves below which nothing stops"
    )
    grants: str | None = Field(
        None, max_length=512, description='leaves per wave, `"16,112"`; the last repeats'
    )
    rule: str | None = Field(None, max_length=64, description=f"{', '.join(RULES)}")
    threshold: float | None = Field(
        None, ge=0, le=1, description="certaindex (threshold) or posterior (beta, dynasor), 0 to 1"
    )
    reward_threshold: float | None = Field(
        None, ge=0, le=1, description="reward of the program that a stop needs too, 0 to 1"
    )
    vote: SearchVote | None = Field(
        None, description="`weighted` by reward, `majority`, or `best`: the leaf of highest reward"
    )
    operating_point: str | None = Field(
        None,
        max_length=32,
        description="the paper's thresholds for a task: rebase and beam gsm8k, math; mcts gsm8k, "
        "asdiv",
    )

    @model_validator(mode="after")
    def _check_search(self) -> SearchParams:
        if self.grants is not None:
            parse_grants(self.grants)
        point = self.operating_point
        if point is None:
            if self.rule is not None:
                make_rule(self.rule, threshold=self.threshold)
            return self
        if point not in self.operating_points:
            known = ", ".join(self.operating_points) or "none: this algorithm has no such"
            raise ValueError(f"operating_point: must be one of {known}")
        for name in ("rule", "threshold", "reward_threshold", "min_branches"):
            if getattr(self, name) is not None:
                raise ValueError(f"operating_point: contradicts {name}, give one of them")
        return self

    @abstractmethod
    def most(self) -> int:
        """How many leaves there may be."""

    def shape(self, request: RequestTraits) -> dict[str, object]:
        """Fields of the settings that only this algorithm has."""
        return {}

    def resolve(
        self, envelope: Envelope, config: DynasorConfig, request: RequestTraits
    ) -> SearchSettings:
        most = 1 if request.greedy else self.most()
        inactive = {"steps": CONSTRAINED} if request.grammar else {}
        if request.greedy:
            inactive["search"] = GREEDY
        if not config.has_reward:
            inactive["reward"] = NO_REWARD_MODEL
        rule, reward_threshold = self._rule(config, most)
        shape: dict[str, Any] = {} if request.greedy else dict(self.shape(request))
        grants = FixedGrants(parse_grants(self.grants)) if self.grants else AdaptiveGrants(rule)
        return SearchSettings(
            max_branches=most,
            answer_format=AnswerFormat(self.answer_format, self.answer_pattern),
            measured=self.token_certainty,
            token_certainty=self.token_certainty,
            rule=rule,
            grants=grants,
            vote=self.vote or "weighted",
            aggregate=self.aggregate,
            reward_threshold=reward_threshold,
            judged=config.has_reward,
            max_total_tokens=envelope.max_total_tokens,
            shadow=envelope.mode == "shadow",
            inactive=inactive,
            **shape,
        )

    def _rule(self, config: DynasorConfig, most: int) -> tuple[StopRule, float | None]:
        if self.operating_point is not None:
            threshold, reward, leaves = self.operating_points[self.operating_point]
            return make_rule(
                "threshold", threshold=threshold or 0.0, min_branches=min(leaves, most)
            ), reward
        name, threshold = self.rule, self.threshold
        if name is None:
            name = config.rule
            threshold = config.threshold if threshold is None else threshold
        if name == "dynasor" and threshold is None:
            threshold = self.confidence
        lowest = min(self.min_branches or config.min_branches, most)
        return make_rule(name, threshold=threshold, min_branches=lowest), self.reward_threshold


class SteppedParams(SearchParams):
    """Of those that grow step by step."""

    step_tokens: int | None = Field(None, ge=1, le=2**31, description="tokens a step may have; 256")
    step_stop: str | None = Field(
        None, min_length=1, max_length=64, description="text that ends a step; two line breaks"
    )
    depth: int | None = Field(
        None, ge=1, le=512, description="steps of a path, the last of which runs to its end; 24"
    )

    def shape(self, request: RequestTraits) -> dict[str, object]:
        if request.grammar:
            return {"depth": 1}
        return {
            "step_tokens": self.step_tokens or 256,
            "step_stop": self.step_stop or "\n\n",
            "depth": self.depth or 24,
        }


class WidthParams(SteppedParams):
    """Of those that keep a number of paths side by side.

    Leaves that share steps err together, which the rule does not know: it has to be surer.
    """

    confidence: ClassVar[float | None] = 0.998

    width: int | None = Field(
        None, ge=1, le=MAX_BRANCHES, description="leaves of the whole search; 16"
    )

    def most(self) -> int:
        return self.width or 16
