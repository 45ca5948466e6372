"""The report of a finished program, as clients see it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from sglang_dynasor.certaindex import TokenCertainty
from sglang_dynasor.programs.base import FinishedBranch
from sglang_dynasor.programs.runner import ProgramRun
from sglang_dynasor.programs.spec import ProgramSpec


@dataclass(frozen=True, slots=True)
class Program:
    """A program for the offline engine: one of `prompt`, `input_ids` and `messages`.

    `dynasor` holds the fields of the request object (ProgramSpec); `sampling_params` are SGLang's,
    `chat_template_kwargs` go to the chat template together with `messages`.
    """

    prompt: str | None = None
    input_ids: list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    sampling_params: dict[str, Any] = field(default_factory=dict)
    dynasor: dict[str, Any] = field(default_factory=lambda: {"algorithm": "self_consistency"})
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [n for n in ("prompt", "input_ids", "messages") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of prompt, input_ids and messages is needed, got {given or 'none'}"
            )


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """What a program answered: `text` of the branch that stands for it, and the full report.

    `report` is the response object `sglext.dynasor`; `error` is set, and all else empty, when the
    program was refused or failed inside a batch.
    """

    text: str
    report: dict[str, Any]
    finish_reason: dict[str, Any] | None = None
    error: str | None = None

    @property
    def answer(self) -> str:
        return self.report.get("answer", "")

    @property
    def certaindex(self) -> float:
        return self.report.get("certaindex", 0.0)

    @property
    def stop_reason(self) -> str:
        return self.report.get("stop_reason", "aborted")

    @property
    def completion_tokens(self) -> int:
        """All generated tokens, those of cancelled branches included."""
        tokens = self.report.get("tokens", {})
        return tokens.get("total", 0) - tokens.get("prompt", 0)


def build_report(
    spec: ProgramSpec, run: ProgramRun, prompt_tokens: int, seconds: float
) -> dict[str, Any]:
    """The response object `sglext.dynasor` of a program the engine ran."""
    outcome = run.outcome
    cut = [*run.cancelled.values(), *run.trimmed]
    branch_tokens = sum(branch.n_tokens for branch in run.finished.values())
    idle_tokens = sum(branch.n_tokens for branch in cut if branch.index in run.drawn)
    cancelled_tokens = sum(branch.n_tokens for branch in cut) - idle_tokens
    report: dict[str, Any] = {
        "program_id": spec.program_id,
        "algorithm": spec.algorithm,
        "mode": spec.mode,
        "stop_reason": outcome.stop_reason,
        "certaindex": outcome.certaindex,
        "answer": outcome.answer,
        "branches": {
            "max": spec.max_branches,
            "started": len(run.finished) + len(cut),
            "finished": len(run.finished),
            "cancelled": len(cut),
        },
        "tokens": {
            "prompt": prompt_tokens,
            "branch": branch_tokens,
            "cancelled": cancelled_tokens,
            "probe": 0,
            "idle": idle_tokens,
            "total": prompt_tokens + branch_tokens + cancelled_tokens + idle_tokens,
        },
        "rounds": outcome.rounds,
        "seconds": round(seconds, 6),
        "inactive": outcome.inactive,
    }
    if spec.branch_rule == "deepconf" or spec.stop_loops or spec.entropy_floor:
        reasons = Counter(branch.stop_reason for branch in run.finished.values())
        report["branches"]["stop_reasons"] = dict(sorted(reasons.items()))
    if spec.detail != "answer":
        report["votes"] = [
            {"answer": vote.answer, "count": vote.count, "weight": vote.weight}
            for vote in outcome.votes
        ]
    if spec.detail == "branches":
        report["branch_details"] = [
            _describe_branch(branch, outcome.answers.get(branch.index))
            for branch in sorted([*run.finished.values(), *cut], key=lambda branch: branch.index)
        ]
    if outcome.shadow is not None:
        report["shadow"] = {
            "stop_reason": outcome.shadow.stop_reason,
            "answer": outcome.shadow.answer,
            "tokens": outcome.shadow.tokens,
            "branches": outcome.shadow.branches,
            "rounds": outcome.shadow.rounds,
        }
    return report


def _describe_branch(branch: FinishedBranch, answer: str | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "branch": branch.index,
        "stop_reason": branch.stop_reason,
        "answer": answer,
        "tokens": branch.n_tokens,
        "text": branch.text,
    }
    if branch.certainty is not None:
        described["certainty"] = _describe_certainty(branch.certainty)
    return described


def _describe_certainty(certainty: TokenCertainty) -> dict[str, float]:
    """Its fields; those that were not measured are left out."""
    return {name: value for name, value in asdict(certainty).items() if value is not None}
