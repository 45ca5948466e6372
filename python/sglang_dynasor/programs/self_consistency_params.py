"""What a client may say about self-consistency, and what the server's settings make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, cast

from pydantic import Field, model_validator

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
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs.answers import AnswerFormat
from sglang_dynasor.programs.branch_probes import ProbePlan
from sglang_dynasor.programs.params import (
    GREEDY,
    MAX_BRANCHES,
    AnswerParams,
    Envelope,
    RequestTraits,
    Settings,
)
from sglang_dynasor.programs.thought import probe_text_for

Vote = Literal["majority", "weighted", "filtered"]
WEIGHTED: tuple[Vote, ...] = ("weighted", "filtered")
# How many times the fewest branches that could settle the vote an idle engine may run: easy
# problems waste few idle tokens, and hard ones, which need many more, get many more.
IDLE_PACE = 3.0
CONSTRAINED = "the output is bound to a grammar, which no forced answer obeys"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfConsistencySettings(Settings):
    """`offers`: branches start one by one instead of in rounds.

    `pace` keeps so many times the fewest that could settle the vote running; None: the fewest.
    Beyond them up to `idle_pace` times the fewest are offered, 0: none. `probes`: how running
    branches are probed, None: not at all.
    """

    rule: StopRule
    grants: GrantPolicy
    min_branches: int = 1
    offers: bool = False
    idle_pace: float = 0.0
    pace: float | None = None
    probes: ProbePlan | None = None
    max_total_tokens: int | None = None
    vote: Vote = "majority"
    keep_top: float = 0.9  # of a filtered vote
    shadow: bool = False
    first_branch_rule: BranchRule | None = None  # of the first `min_branches`
    branch_rule: BranchRule | None = None  # of the others
    inactive: Mapping[str, str] = field(default_factory=dict)

    def rule_of_node(self, node: str) -> BranchRule | None:
        return self.first_branch_rule if int(node) < self.min_branches else self.branch_rule


class SelfConsistencyParams(AnswerParams):
    """Fields of `algorithm: self_consistency`."""

    of_the_server: ClassVar[tuple[str, ...]] = (
        *("max_branches", "min_branches", "grants", "draw", "pace", "rule", "threshold", "vote"),
        *("branch_rule", "keep_top", "confidence_bar", "stop_loops"),
    )
    max_branches: int | None = Field(
        None, ge=1, le=MAX_BRANCHES, description="branches it may use, 1 to 512"
    )
    min_branches: int | None = Field(
        None, ge=1, le=MAX_BRANCHES, description="finished branches below which nothing stops"
    )
    grants: str | None = Field(
        None, max_length=512, description='branches per round, `"4,3,3,6"`; the last repeats'
    )
    draw: Literal["rounds", "offer"] | None = Field(
        None, description="`offer`: further branches start before a round has ended"
    )
    pace: float | None = Field(
        None,
        ge=1,
        le=MAX_BRANCHES,
        description="keep so many times the fewest branches that could settle the vote running",
    )
    probe_interval: int | None = Field(
        None,
        ge=1,
        le=2**31,
        description="once 4 branches agree, probe running ones each so many tokens, and count "
        "those that confirm them",
    )
    probe_text: str | None = Field(
        None, min_length=1, max_length=2000, description="what is forced to have an answer"
    )
    rule: str | None = Field(None, max_length=64, description=f"{', '.join(RULES)}")
    threshold: float | None = Field(
        None, ge=0, le=1, description="certaindex (threshold) or posterior (beta, dynasor), 0 to 1"
    )
    vote: Vote | None = Field(
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

    @model_validator(mode="after")
    def _check_combination(self) -> SelfConsistencyParams:
        if self.grants is not None:
            parse_grants(self.grants)
            if self.draw == "offer":
                raise ValueError("grants: are sizes of rounds; draw must be rounds, not offer")
        if self.rule is not None:
            make_rule(self.rule, threshold=self.threshold)
            if self.vote in WEIGHTED and self.rule not in WEIGHT_RULES:
                raise ValueError(
                    f"rule: {self.rule} judges equal votes; with vote {self.vote} it must be "
                    f"{' or '.join(WEIGHT_RULES)}"
                )
        if self.confidence_bar is not None and self.branch_rule == "none":
            raise ValueError("confidence_bar: needs branch_rule deepconf, not none")
        if None not in (self.confidence_bar, self.keep_top) and self.vote != "filtered":
            raise ValueError("keep_top: contradicts confidence_bar, unless vote is filtered")
        if self.min_branches and self.max_branches and self.min_branches > self.max_branches:
            raise ValueError(
                f"min_branches: {self.min_branches} exceeds max_branches {self.max_branches}"
            )
        return self

    def check(self, envelope: Envelope) -> None:
        if self.draw == "offer" and envelope.max_total_tokens is not None:
            raise ValueError("max_total_tokens: is shared out by rounds; draw must be rounds")
        for name in ("pace", "probe_interval"):
            if getattr(self, name) is None:
                continue
            if self.draw == "rounds" or self.grants or envelope.max_total_tokens is not None:
                raise ValueError(f"{name}: needs draw offer, not rounds")
        if self.probe_interval is not None and self.vote in WEIGHTED:
            raise ValueError(f"probe_interval: needs vote majority, not {self.vote}")
        if self.probe_text is not None and self.probe_interval is None:
            raise ValueError("probe_text: needs probe_interval")

    def resolve(
        self, envelope: Envelope, config: DynasorConfig, request: RequestTraits
    ) -> SelfConsistencySettings:
        lowest, highest = (1, 1) if request.greedy else self._branches(config)
        vote, rule = self._vote(config, lowest)
        offers, grants = self._rounds(envelope, config)
        first, rest = self._branch_rules(envelope, config, vote)
        return SelfConsistencySettings(
            max_branches=highest,
            min_branches=lowest,
            answer_format=AnswerFormat(self.answer_format, self.answer_pattern),
            measured=self.token_certainty or vote != "majority" or first is not None,
            token_certainty=self.token_certainty,
            rule=rule,
            grants=FixedGrants(parse_grants(grants)) if grants else AdaptiveGrants(rule),
            offers=offers,
            idle_pace=IDLE_PACE if offers and config.speculative_share > 0 else 0.0,
            pace=(self.pace or config.pace) if offers else None,
            probes=self._probes(config, request, offers and vote == "majority"),
            max_total_tokens=envelope.max_total_tokens,
            vote=vote,
            keep_top=self.keep_top or config.keep_top,
            shadow=envelope.mode == "shadow",
            stops_branches=self._stops_branches(config),
            first_branch_rule=first,
            branch_rule=rest,
            inactive=self._inactive(request),
        )

    def _probes(
        self, config: DynasorConfig, request: RequestTraits, possible: bool
    ) -> ProbePlan | None:
        if self.probe_interval is None or not possible or request.grammar or request.greedy:
            return None
        text = self.probe_text or probe_text_for(config, request)
        return ProbePlan(self.probe_interval, text)

    def _inactive(self, request: RequestTraits) -> dict[str, str]:
        inactive = {"max_branches": GREEDY} if request.greedy else {}
        if request.grammar and self.probe_interval is not None:
            inactive["probe_interval"] = CONSTRAINED
        return inactive

    def _branches(self, config: DynasorConfig) -> tuple[int, int]:
        """The fewest and the most: a given one moves the other's default."""
        highest = self.max_branches or max(config.max_branches, self.min_branches or 1)
        return self.min_branches or min(config.min_branches, highest), highest

    def _vote(self, config: DynasorConfig, min_branches: int) -> tuple[Vote, StopRule]:
        """The vote and a rule that can judge it. The server's threshold is that of its rule."""
        vote = self.vote
        if vote is None and self.rule is not None and self.rule not in WEIGHT_RULES:
            vote = "majority"
        vote = vote or cast(Vote, config.vote)
        name, threshold = self.rule, self.threshold
        if name is None and (vote == "majority" or config.rule in WEIGHT_RULES):
            name = config.rule
            threshold = config.threshold if threshold is None else threshold
        name = name or "deepconf"
        return vote, make_rule(name, threshold=threshold, min_branches=min_branches)

    def _rounds(self, envelope: Envelope, config: DynasorConfig) -> tuple[bool, str]:
        """Whether branches are offered, else the sizes of rounds, if they are fixed."""
        if self.draw == "offer":
            return True, ""
        needs_rounds = self.grants or self.draw or envelope.max_total_tokens is not None
        if needs_rounds or config.draw == "rounds":
            return False, self.grants or config.grants
        return True, ""

    def _branch_rules(
        self, envelope: Envelope, config: DynasorConfig, vote: Vote
    ) -> tuple[BranchRule | None, BranchRule | None]:
        """What may stop the first branches, which are never pruned, and the others.

        A calibrated bar gives way to a share that the client names. In shadow mode nothing stops a
        branch, but it counts into the bar of its profile.
        """
        prunes = self._prunes(config)
        if self.keep_top is not None and not prunes and vote != "filtered":
            raise ValueError("keep_top: needs branch_rule deepconf or vote filtered")
        if self.confidence_bar is not None and not prunes:
            raise ValueError("confidence_bar: needs branch_rule deepconf")
        if not self._stops_branches(config) or (envelope.mode == "shadow" and not prunes):
            return None, None
        first = BranchRule(profile=self.profile or "")
        if envelope.mode == "shadow":
            return first, first
        loops = self._stop_loops(config)
        first = replace(first, loop=loops, entropy_floor=self.entropy_floor)
        bar = self.confidence_bar
        if bar is None and self.keep_top is None:
            bar = config.confidence_bar
        if not prunes:
            return first, first
        if bar is not None:
            return first, replace(first, bar=bar)
        return first, replace(first, keep_top=self.keep_top or config.keep_top)

    def _prunes(self, config: DynasorConfig) -> bool:
        return (self.branch_rule or config.branch_rule) == "deepconf"

    def _stop_loops(self, config: DynasorConfig) -> bool:
        return config.stop_loops if self.stop_loops is None else self.stop_loops

    def _stops_branches(self, config: DynasorConfig) -> bool:
        return self._prunes(config) or self._stop_loops(config) or self.entropy_floor is not None
