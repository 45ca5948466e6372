"""What a client may say about a single chain of thought, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from sglang_dynasor.allocation.chain_profile import Effort
from sglang_dynasor.allocation.chain_rule import ChainRule
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs.answers import AnswerFormat
from sglang_dynasor.programs.params import AnswerParams, Envelope, RequestTraits, Settings
from sglang_dynasor.programs.protocol import PROBE_TOKENS
from sglang_dynasor.programs.thought import probe_text_for

# What a client that names no effort gets, where a profile promises it.
DEFAULT_EFFORT: Effort = "mild"
NO_PROMISE = "no calibrated profile of this model promises anything here: nothing is stopped"
OPERATORS = "the server's own figures: nothing is promised for this model"
UNCALIBRATED = "the client's own figures: nothing is promised for this model"
CONSTRAINED = "a grammar's state is lost when a request is continued: nothing is stopped"

OnExit = Literal["answer", "insert"]
_OWN_RULE = ("probe_interval", "window", "tau", "warmup_tokens", "min_confidence")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSettings(Settings):
    """`rule` None: nothing is stopped, and nothing probed.

    A probe comes each `probe_interval` tokens, or each share `interval_growth` of the chain where
    that is more. `opens_thought`: the prompt ends inside a thought.
    """

    rule: ChainRule | None = None
    probe_interval: int = 64
    interval_growth: float = 0.0
    probe_text: str = ""
    probe_text_end: str = "}"
    probe_tokens: int = PROBE_TOKENS
    think_end: str = "</think>"
    opens_thought: bool = False
    on_exit: OnExit = "answer"
    max_thinking_tokens: int | None = None
    max_total_tokens: int | None = None
    shadow: bool = False
    inactive: Mapping[str, str] = field(default_factory=dict)


class ChainOfThoughtParams(AnswerParams):
    """Fields of `algorithm: cot`."""

    of_the_server: ClassVar[tuple[str, ...]] = ("probe_interval", "window", "probe_text")
    saving_effort: Literal["none", "mild", "low", "mid", "high", "crazy"] | None = Field(
        None,
        description="how much accuracy may be risked, as the server's chain profile promises it: "
        "1, 2, 5, 10, 20% of the answers; without a profile nothing is stopped",
    )
    probe_interval: int | None = Field(
        None, ge=1, le=2**31, description="tokens from one probe to the next"
    )
    interval_growth: float | None = Field(
        None, ge=0, le=1, description="or this share of the chain's tokens, where that is more"
    )
    window: int | None = Field(
        None, ge=1, le=1000, description="latest probes that must agree (`certainty_window`)"
    )
    tau: float | None = Field(
        None, gt=0, le=1, description="share of them that must give the newest one's answer; 1"
    )
    warmup_tokens: int | None = Field(
        None, ge=0, le=2**31, description="probes before it count for nothing; 0"
    )
    min_confidence: float | None = Field(
        None, ge=0, le=1, description="mean probability the newest answer must have (DEER)"
    )
    probe_text: str | None = Field(
        None, min_length=1, max_length=2000, description="what is forced to have an answer"
    )
    probe_text_end: str | None = Field(
        None, max_length=200, description="what closes it where the answer is inserted; `}`"
    )
    on_exit: OnExit | None = Field(
        None,
        description="`answer`: the model writes its answer; `insert`: the probes' is put in, or "
        "`probe_text` asks for one",
    )
    max_thinking_tokens: int | None = Field(
        None, ge=1, le=2**31, description="then the model has to answer"
    )

    @model_validator(mode="after")
    def _check_combination(self) -> ChainOfThoughtParams:
        given = [name for name in _OWN_RULE if getattr(self, name) is not None]
        if self.saving_effort is not None and given:
            raise ValueError(f"saving_effort: contradicts {given[0]}, give one of them")
        if self.interval_growth is not None and not given:
            raise ValueError("interval_growth: needs probe_interval or window")
        return self

    def resolve(
        self, envelope: Envelope, config: DynasorConfig, request: RequestTraits
    ) -> ChainSettings:
        rule, interval, inactive = self._rule(config)
        if request.grammar:
            rule, inactive = None, {"probes": CONSTRAINED}
        end = "}" if self.probe_text_end is None else self.probe_text_end
        return ChainSettings(
            max_branches=1,
            answer_format=AnswerFormat(self.answer_format, self.answer_pattern),
            measured=self.token_certainty,
            token_certainty=self.token_certainty,
            rule=rule,
            probe_interval=interval,
            interval_growth=self.interval_growth or 0.0,
            probe_text=self.probe_text or probe_text_for(config, request),
            probe_text_end=end,
            think_end=config.think_end,
            opens_thought=request.opens_thought,
            on_exit=self.on_exit or "answer",
            max_thinking_tokens=None if request.grammar else self.max_thinking_tokens,
            max_total_tokens=envelope.max_total_tokens,
            shadow=envelope.mode == "shadow",
            streams=True,
            inactive=inactive,
        )

    def _rule(self, config: DynasorConfig) -> tuple[ChainRule | None, int, dict[str, str]]:
        """The rule, the interval of its probes, and what it can't promise."""
        interval = self.probe_interval or config.probe_interval
        if any(getattr(self, name) is not None for name in _OWN_RULE):
            rule = ChainRule(
                self.window or config.window,
                self.tau or 1.0,
                self.warmup_tokens or 0,
                self.min_confidence,
            )
            return rule, interval, {"promise": UNCALIBRATED}
        if self.saving_effort == "none":
            return None, interval, {}
        own = {"probe_interval", "window"} & config.model_fields_set
        if self.saving_effort is None and own and not config.chain_profile:
            return ChainRule(config.window), interval, {"promise": OPERATORS}
        effort = self.saving_effort or DEFAULT_EFFORT
        level = config.chain_levels.get(effort)
        if level is None:
            return None, interval, {"saving_effort": f"{effort}: {NO_PROMISE}"}
        return level.rule, level.probe_interval, {}
