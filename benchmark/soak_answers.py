"""What the clients of the soak test may expect: each answer judged by the request it belongs to.

The sums tell the tenant: each has digits of its own, and the model's texts begin with two operands
of the question. Only four wrong digits in a row could make the text of one look like the other's.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

TENANTS = ("A", "B")
DIGITS = {"A": "1234", "B": "56789"}
ABORT_LIMIT_S = 10.0  # an abort that took hold is answered by then
OVERTAKES_S = 1.0
DEADLINE_SLACK_S = 10.0
ABORTED = ("abort", "aborted")
TOKENS = ("prompt", "branch", "cancelled", "probe", "idle")
_OPENING = re.compile(r"(\d\d)\+(\d\d)=")


@dataclass(slots=True, eq=False)
class Call:
    """One request of a tenant; `may_abort` once its tenant, or the operator, asked for its end."""

    what: str
    tenant: str
    path: str
    body: dict[str, Any]
    program_id: str | None = None
    may_abort: bool = False
    twin_aborted: bool = False  # the other tenant ended its own program of the same id
    sent_at: float = 0.0
    aborted_at: float | None = None

    def note_abort(self, tenant: str, now: float) -> None:
        """`tenant` asks for the end of what this request's id names, at `now` seconds."""
        if tenant == self.tenant:
            self.may_abort, self.aborted_at = True, self.aborted_at or now
        else:
            self.twin_aborted = True


@dataclass(frozen=True, slots=True)
class Output:
    """One completion of an answer, whatever the route."""

    text: str
    finish: str
    report: dict[str, Any]

    @property
    def stop_reason(self) -> str:
        """Of the program, or of a request without one."""
        return str(self.report.get("stop_reason", self.finish))


@dataclass(slots=True)
class Verdicts:
    """All that was found so far."""

    counts: Counter[str] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)
    wrong_tenant: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    refused: int = 0  # with a full queue's 503
    deadline_overrun_s: float = 0.0

    def judge(self, call: Call, status: int, payload: Any, now: float) -> None:
        """Note what is wrong with an answer to `call` that came at `now` seconds."""
        self.counts[f"{call.what} {status}"] += 1
        if status == 200:
            outputs = outputs_of(payload)
            for output in outputs:
                self._judge_output(call, output)
            self._judge_times(call, outputs, now)
        elif status == 503 and "queue" in json.dumps(payload):
            self.refused += 1
        elif status >= 500:
            self.unanswered.append(f"{call.what}: {status} {str(payload)[:200]}")
        elif not call.may_abort:
            self.faults.append(f"{call.what}: {status} {str(payload)[:200]}")

    def _judge_output(self, call: Call, output: Output) -> None:
        if is_of_other_tenant(call.tenant, output.text):
            self.wrong_tenant.append(f"{call.what}: {call.tenant} was sent {output.text[:60]!r}")
        self.counts[f"stopped: {output.stop_reason}"] += 1
        if output.stop_reason in ABORTED and not call.may_abort:
            found = self.wrong_tenant if call.twin_aborted else self.faults
            found.append(f"{call.what}: {call.program_id} was aborted, its tenant did not ask")
        if call.program_id and output.report.get("program_id") != call.program_id:
            self.faults.append(f"{call.what}: {call.program_id} has no report: {output.report}")
        self._judge_branches(call, output.report)

    def _judge_branches(self, call: Call, report: dict[str, Any]) -> None:
        for branch in report.get("branch_details", []):
            if is_of_other_tenant(call.tenant, branch["text"]):
                self.wrong_tenant.append(f"{call.what}: {call.tenant} has {branch['text'][:60]!r}")
        branches, tokens = report.get("branches"), report.get("tokens")
        if branches is None or tokens is None:
            return
        ends = branches["finished"] + branches["cancelled"] + branches.get("failed", 0)
        if branches["started"] != ends:
            self.faults.append(f"{call.what}: branches do not add up: {branches}")
        if tokens["total"] != sum(tokens[kind] for kind in TOKENS):
            self.faults.append(f"{call.what}: tokens do not add up: {tokens}")

    def _judge_times(self, call: Call, outputs: list[Output], now: float) -> None:
        # An abort right behind its request, on a connection of its own, may overtake it.
        heard = call.aborted_at is not None and call.aborted_at - call.sent_at > OVERTAKES_S
        late = heard and now - (call.aborted_at or now) > ABORT_LIMIT_S
        if late and not any(output.stop_reason in ABORTED for output in outputs):
            self.faults.append(f"{call.what}: went on for {ABORT_LIMIT_S:.0f} s after its abort")
        deadline_ms = call.body.get("dynasor", {}).get("deadline_ms")
        if deadline_ms is None:
            return
        overrun = now - call.sent_at - deadline_ms / 1000
        self.deadline_overrun_s = max(self.deadline_overrun_s, overrun)
        if overrun > DEADLINE_SLACK_S:
            self.faults.append(f"{call.what}: {overrun:.0f} s past its deadline")


def outputs_of(payload: Any) -> list[Output]:
    """The completions of an answer of /generate (one or a list) or of a chat completion."""
    if isinstance(payload, list):
        return [output for item in payload for output in outputs_of(item)]
    if "choices" in payload:
        report = (payload.get("sglext") or {}).get("dynasor") or {}
        return [
            Output(choice["message"]["content"] or "", choice["finish_reason"], report)
            for choice in payload["choices"]
        ]
    meta = payload["meta_info"]
    finish = (meta.get("finish_reason") or {}).get("type", "none")
    return [Output(payload.get("text") or "", finish, meta.get("dynasor") or {})]


def status_of(status: int, last: dict[str, Any]) -> int:
    """The status of a stream, which is 200 whatever happens, by its last event."""
    refusal = last.get("error") or (last.get("meta_info") or {}).get("finish_reason") or {}
    return int(refusal.get("code") or refusal.get("status_code") or status)


def is_of_other_tenant(tenant: str, text: str) -> bool:
    """Whether a text begins with operands that only the other tenant asks about."""
    (other,) = set(TENANTS) - {tenant}
    opening = _OPENING.match(text)
    return opening is not None and set("".join(opening.groups())) <= set(DIGITS[other])


def sum_of(tenant: str, operands: int, rng: random.Random) -> str:
    """A sum of two-digit numbers, in the tenant's digits."""
    return "+".join("".join(rng.choices(DIGITS[tenant], k=2)) for _ in range(operands))
