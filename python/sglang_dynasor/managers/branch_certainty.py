"""What the scheduler keeps of each measured branch, and the stops that need no text.

One rank measures: the one that streams to the client. Ranks may round logits differently, so it
alone decides, and its decisions reach every rank with the next requests (`StopBranchesReqInput`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer

from sglang_dynasor.allocation import BranchRule, BranchRules
from sglang_dynasor.certaindex import CERTAINTY_GROUP_TOKENS, CertaintyTable
from sglang_dynasor.certaindex.certainty_table import MEASURES
from sglang_dynasor.kernels.token_certainty import COLUMNS
from sglang_dynasor.managers.certainty_observer import HostCertainty, read
from sglang_dynasor.managers.program_messages import CERTAINTY, stop_reason_of

if TYPE_CHECKING:
    from sglang.srt.managers.auxiliary_output import CommittedTokens

_MAX_UNFOLDED = 16  # steps
_MEASURES = np.array([COLUMNS.index(name) for name in MEASURES])


@dataclass(slots=True, eq=False)
class _Branch:
    """One measured request. `unsent` holds its values per token where the client asked for them."""

    slot: int
    keeps_values: bool
    unsent: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Step:
    """What one batch has committed of measured requests; `rows` are theirs in the batch."""

    rows: list[int]
    branches: list[_Branch]
    tokens: list[int]
    certainty: HostCertainty


_Measured: TypeAlias = tuple[_Step, tuple[np.ndarray, np.ndarray | None]]


def _kind(measured: _Measured) -> Any:
    """Equal for steps that are folded together."""
    step, (values, logprob) = measured
    return step.rows, step.branches, len(values), logprob is None


class BranchCertainty:
    """Folds the certainty of running branches; O(1) per token, vectorised over the batch."""

    def __init__(self, group_tokens: int = CERTAINTY_GROUP_TOKENS) -> None:
        """`group_tokens` is the window of the group confidence, tokens."""
        self._table = CertaintyTable(group_tokens)
        self._rules = BranchRules(self._table)
        self._branches: dict[str, _Branch] = {}
        self._rid_of: dict[int, str] = {}
        self._keeping_values = 0
        self._unfolded: list[_Step] = []
        self.stops: dict[str, str] = {}  # rid to reason, until the branch has ended

    def __len__(self) -> int:
        return len(self._branches)

    def open(self, rid: str, rule: BranchRule | None, keeps_values: bool) -> None:
        """Measure a request from its first token on."""
        self.close(rid, "aborted")
        self._fold_steps()  # a rule must not see steps from before it
        slot = self._rules.open(rule)
        self._branches[rid] = _Branch(slot, keeps_values)
        self._rid_of[slot] = rid
        self._keeping_values += keeps_values

    def close(self, rid: str, stop_reason: str) -> None:
        """Forget a request; one that is not measured is none of ours."""
        if rid not in self._branches:
            return
        self._fold_steps()
        branch = self._branches.pop(rid)
        self._rules.close(branch.slot, stop_reason)
        del self._rid_of[branch.slot]
        self._keeping_values -= branch.keeps_values
        self.stops.pop(rid, None)

    def any_of(self, reqs: Iterable[Req]) -> bool:
        return bool(self._branches) and any(req.rid in self._branches for req in reqs)

    def consume(
        self,
        reqs: Sequence[Req],
        commits: Sequence[CommittedTokens | None],
        certainty: HostCertainty,
    ) -> None:
        """Count the tokens that were committed; the rows of `certainty` are those of `reqs`.

        A row without a commit (chunked prefill, retraction, one step after its end) is dropped.
        Steps are folded when somebody asks, several at once: between two forward passes, which
        leave nothing in the processor's cache, a call costs far more than what it computes.
        """
        find = self._branches.get
        rows: list[int] = []
        branches: list[_Branch] = []
        tokens: list[int] = []
        for row, (req, commit) in enumerate(zip(reqs, commits, strict=True)):
            if commit is not None and (branch := find(req.rid)) is not None:
                rows.append(row)
                branches.append(branch)
                tokens.append(commit.token_ids[0])
        if not rows:
            return
        self._unfolded.append(_Step(rows, branches, tokens, certainty))
        if self._rules.armed or len(self._unfolded) == _MAX_UNFOLDED:
            self._fold_steps()

    def _fold_steps(self) -> None:
        if not self._unfolded:  # as after the first of a batch's requests that ask
            return
        steps, self._unfolded = self._unfolded, []
        measured = zip(steps, read([step.certainty for step in steps]), strict=True)
        for _, alike in groupby(measured, key=_kind):
            self._fold(list(alike))

    def _fold(self, steps: list[_Measured]) -> None:
        """Steps of the same branches in the same rows; a single one where a rule is armed."""
        first = steps[0][0]
        values = np.array([values for _, (values, _) in steps])
        logprobs = [logprob for _, (_, logprob) in steps if logprob is not None]
        logprob = np.array(logprobs) if logprobs else None
        if len(first.rows) < values.shape[1]:
            values = values[:, first.rows]
            logprob = None if logprob is None else logprob[:, first.rows]
        tokens = np.array([step.tokens for step, _ in steps])
        slots = np.array([branch.slot for branch in first.branches])
        self._table.add(slots, values.take(_MEASURES, axis=2), tokens, logprob)
        for slot, reason in self._rules.stopped(slots):
            self.stops[self._rid_of[slot]] = reason
        if self._keeping_values:
            for column, branch in enumerate(first.branches):
                if branch.keeps_values:
                    branch.unsent.append(values[:, column])

    def payloads(self, reqs: Sequence[Req]) -> list[dict[str, Any] | None]:
        """What each emitted request has to tell its client; a finished one is forgotten."""
        return [self._payload(req) for req in reqs]

    def _payload(self, req: Req) -> dict[str, Any] | None:
        branch = self._branches.get(req.rid)
        if branch is None:
            return None
        payload: dict[str, Any] = {}
        if branch.keeps_values or req.finished():
            self._fold_steps()
        if branch.unsent:
            payload["values"] = np.concatenate(branch.unsent).tolist()
            branch.unsent.clear()
        if req.finished():
            summary = self._table.summary(branch.slot)
            if summary is not None:
                payload["summary"] = asdict(summary)
            self.close(req.rid, stop_reason_of(req.finished_reason.to_json()))
        return payload or None


class DynasorOutputStreamer(SchedulerOutputStreamer):
    """Sends certainty along with the tokens of the requests that asked for it."""

    has_additional_customized_info = True
    certainty: BranchCertainty
    probes: Container[Req] = frozenset()

    def stream_output(
        self, reqs: list[Req], return_logprob: bool, skip_req: Req | None = None
    ) -> None:
        # No client waits for a probe.
        if self.probes:
            reqs = [req for req in reqs if req not in self.probes]
        super().stream_output(reqs, return_logprob, skip_req)

    def should_build_additional_customized_info(self) -> bool:
        return len(self.certainty) > 0

    def build_additional_customized_info(self, reqs: list[Req]) -> dict[str, list[Any]]:
        payloads = self.certainty.payloads(reqs)
        return {CERTAINTY: payloads} if any(payloads) else {}
