"""Messages between tokenizer manager and scheduler, and the fields a request carries.

Upstream: `sglang/srt/managers/io_struct.py` (`BaseReq`, `hook_custom_types`). The decoder of the
scheduler process accepts scalars only inside `custom_params["dynasor"]`.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from sglang.srt.managers.io_struct import BaseReq, hook_custom_types

from sglang_dynasor.allocation import BranchRule, TokenStop
from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.programs.protocol import NodeStop
from sglang_dynasor.scheduling import ProgramKey

CARRIER = "dynasor"
CERTAINTY = "dynasor_certainty"  # of upstream's customized output
CANCELLED_MESSAGE = "cancelled by its program"  # or to make room for what is needed
CUT_MESSAGE = "cut by its program"  # to be continued
STOP_MESSAGES: dict[str, str] = {reason: f"branch {reason}" for reason in get_args(TokenStop)}

RequestStop: TypeAlias = NodeStop | Literal["cancelled", "aborted"]
_STOP_REASONS: dict[str, RequestStop] = {
    "stop": "completed",
    "length": "length",
    "abort": "aborted",
}
_REASON_OF_MESSAGE: dict[str | None, Any] = {
    CANCELLED_MESSAGE: "cancelled",
    CUT_MESSAGE: "cut",
    **{message: reason for reason, message in STOP_MESSAGES.items()},
}


class DemandReqInput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """What a program the engine runs needs now; the first one announces it.

    The fields are those of `Demand`. `routed_dp_rank`, as of every message to the scheduler, is the
    replica the program lives on. `kind` is the class whose lengths are learnt together,
    `draws_seen` counts the draws that had reached the program when it said so.
    """

    tenant: str
    program_id: str
    routed_dp_rank: int = 0
    kind: str
    prompt_tokens: int
    certaindex: float
    worth: float
    work: float
    needed: int | None
    values: list[float]
    draws_seen: int

    @property
    def demand(self) -> Demand:
        return Demand(self.certaindex, self.worth, self.work, self.needed, tuple(self.values))


class CancelNodesReqInput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """End these requests of a program; those that have gone already are passed over.

    With `keep_kv` they are cut: what they have generated stays in the tree, to be continued.
    """

    tenant: str
    program_id: str
    routed_dp_rank: int = 0
    rids: list[str]
    keep_kv: bool = False


class WatchReqInput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Probe a request of a program each `every` of its tokens, first after `after`; 0: no more.

    `input_ids` are the forced text, behind which at most `max_tokens` are generated, or up to the
    end of the box it opens. `measured` asks for the probability of these tokens.
    """

    tenant: str
    program_id: str
    routed_dp_rank: int = 0
    rid: str
    every: int
    input_ids: list[int]
    max_tokens: int
    measured: bool = False
    after: int = 0


class ProbedReqOutput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """What a probe of a request has generated, `n_tokens` in all, after `at` of its tokens.

    `is_whole`: it has closed its box, or ended by itself. `text` is None for one that was ended
    with its request: it only counts. `confidence` is the mean probability of its tokens, where it
    was measured. `is_own`: no probe was needed, the request has written the box by itself.
    """

    tenant: str
    program_id: str
    rid: str
    at: int
    text: str | None
    n_tokens: int
    is_whole: bool
    confidence: float | None = None
    is_own: bool = False


class EndProgramReqInput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """End a program: every request it has in the scheduler."""

    tenant: str
    program_id: str
    routed_dp_rank: int = 0
    message_id: str


class EndProgramReqOutput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """The last request of an ended program has drained, or the engine is paused.

    `tokens` maps rid to all generated tokens, `tokens_at_end` to those at the message's receipt. A
    paused engine drains nothing: it counts at once what each request has generated so far.
    """

    message_id: str
    tokens: dict[str, int]
    tokens_at_end: dict[str, int]


class DrawReqOutput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """The scheduler has room for `count` of the nodes a program offered."""

    tenant: str
    program_id: str
    count: int


class StopBranchesReqInput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Requests that the measuring rank stops: rid to reason."""

    stops: dict[str, str]


class BranchParams(NamedTuple):
    """What the scheduler is told about one request of a program.

    `expected` is how many requests a client expects to send, 0 where it did not say. `measured`
    asks for token certainty, `token_values` also returns it for every token. What follows are the
    fields of its `BranchRule`; without one `profile` is None.
    """

    tenant: str
    program_id: str
    expected: int = 0
    measured: bool = False
    token_values: bool = False
    profile: str | None = None
    keep_top: float | None = None
    bar: float | None = None
    loop: bool = False
    entropy_floor: float | None = None

    @property
    def key(self) -> ProgramKey:
        return ProgramKey(self.tenant, self.program_id)

    @property
    def rule(self) -> BranchRule | None:
        if self.profile is None:
            return None
        return BranchRule(*(getattr(self, item.name) for item in fields(BranchRule)))

    def with_rule(self, rule: BranchRule | None) -> BranchParams:
        """A copy with this rule; its profile becomes the tenant's own."""
        if rule is None:
            return self
        own = replace(rule, profile=f"{self.tenant}/{rule.profile}")
        return self._replace(**asdict(own))

    def to_custom_params(self) -> dict[str, Any]:
        """The fields that say something."""
        defaults = self._field_defaults
        return {
            name: value
            for name, value in self._asdict().items()
            if name not in defaults or value != defaults[name]
        }

    @classmethod
    def of(cls, custom_params: dict[str, Any] | None) -> BranchParams | None:
        """Read back what `to_custom_params` stamped; None for a request without a program, and for
        anything else that stands in its place."""
        stamped = (custom_params or {}).get(CARRIER)
        if not isinstance(stamped, dict):
            return None
        ours = {"tenant", "program_id"} <= stamped.keys() <= set(cls._fields)
        return cls(**stamped) if ours else None


def register() -> None:
    """Make this process able to encode and decode the messages."""
    hook_custom_types(
        DemandReqInput,
        CancelNodesReqInput,
        WatchReqInput,
        ProbedReqOutput,
        EndProgramReqInput,
        EndProgramReqOutput,
        DrawReqOutput,
        StopBranchesReqInput,
    )


def stop_reason_of(finish_reason: dict[str, Any]) -> RequestStop:
    """Why a request ended, in a node's words."""
    known: RequestStop | None = _REASON_OF_MESSAGE.get(finish_reason.get("message"))
    return known or _STOP_REASONS[finish_reason["type"]]
