"""Profiles of single chains: what `sglang-dynasor calibrate` found for one model, by risk."""

from __future__ import annotations

from datetime import date
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from sglang_dynasor.allocation.chain_rule import ChainRule
from sglang_dynasor.allocation.profile_file import ProfileFile

Effort = Literal["mild", "low", "mid", "high", "crazy"]
# The share of problems that may lose their right answer at each effort, at the most.
RISK_OF_EFFORT: dict[Effort, float] = {
    "mild": 0.01,
    "low": 0.02,
    "mid": 0.05,
    "high": 0.1,
    "crazy": 0.2,
}


class ChainLevel(BaseModel):
    """A rule with what it promises: at most the share `max_harm` of all problems of the kind.

    `harm` of the profile's problems were answered wrongly where the whole chain was right, by the
    mean over their chains; `tokens_saved` counts the probes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    probe_interval: int = Field(ge=1)
    window: int = Field(ge=1)
    tau: float = Field(gt=0, le=1)
    warmup_tokens: int = Field(ge=0)
    max_harm: float = Field(gt=0, lt=1)
    harm: float = Field(ge=0, le=1)
    harm_bound: float = Field(ge=0, le=1)
    tokens_saved: float = Field(le=1)

    @property
    def rule(self) -> ChainRule:
        return ChainRule(self.window, self.tau, self.warmup_tokens)


class ChainProfile(ProfileFile):
    """What holds for one model and kind of problem, with `confidence`, on `problems` problems.

    `levels` has an entry for each effort at which something can be promised.
    """

    what: ClassVar[str] = "chain_profile"
    version: Literal[1] = 1
    kind: Literal["chain"] = "chain"
    confidence: float = Field(gt=0, lt=1)
    problems: int = Field(ge=1)
    created: date
    levels: dict[Effort, ChainLevel]
