"""The report of a finished program, as clients see it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from sglang_dynasor.certaindex import TokenCertainty
from sglang_dynasor.programs.client import Generated
from sglang_dynasor.programs.program_run import ProgramRun
from sglang_dynasor.programs.protocol import Finished, Probed
from sglang_dynasor.programs.spec import ResolvedProgram


@dataclass(frozen=True, slots=True)
class Program:
    """A program for the offline engine: one of `prompt`, `input_ids` and `messages`.

    `dynasor` holds the fields of the request object (ProgramSpec.parse); `sampling_params` are
    SGLang's, `chat_template_kwargs` go to the chat template together with `messages`.
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
        for name in ("sampling_params", "dynasor", "chat_template_kwargs"):
            kind = type(getattr(self, name))
            if not issubclass(kind, dict):
                raise TypeError(f"{name} must be a dict, not {kind.__name__}")


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
    program: ResolvedProgram, run: ProgramRun, prompt_tokens: int, seconds: float
) -> dict[str, Any]:
    """The response object `sglext.dynasor` of a program the engine ran."""
    outcome = run.outcome
    cut = [*run.cancelled.items(), *run.trimmed]
    branch_tokens = sum(node.n_tokens for node in run.finished.values())
    idle_tokens = sum(part.n_tokens for node, part in cut if node in run.drawn)
    cancelled_tokens = sum(part.n_tokens for _, part in cut) - idle_tokens
    inactive = dict(outcome.inactive)
    if run.inactive:
        inactive["equality"] = run.inactive
    report: dict[str, Any] = {
        "program_id": program.program_id,
        "algorithm": program.algorithm,
        "mode": program.mode,
        "stop_reason": outcome.stop_reason,
        "certaindex": outcome.certaindex,
        "answer": outcome.answer,
        "branches": {
            "max": program.settings.max_branches,
            "started": len(run.finished.keys() - run.continued) + len(cut) + len(run.failed),
            "finished": len(run.finished.keys() - run.continued),
            "cancelled": len(cut),
            "failed": len(run.failed),
        },
        "tokens": {
            "prompt": prompt_tokens,
            "branch": branch_tokens,
            "cancelled": cancelled_tokens,
            "probe": run.probe_tokens,
            "reward": run.reward_tokens,
            "idle": idle_tokens,
            "total": prompt_tokens
            + branch_tokens
            + cancelled_tokens
            + run.probe_tokens
            + idle_tokens,
            "sequential": run.sequential_tokens,
        },
        "rounds": outcome.rounds,
        "seconds": round(seconds, 6),
        "inactive": inactive,
    }
    if program.settings.stops_branches:
        reasons = Counter(node.stop_reason for node in run.finished.values())
        report["branches"]["stop_reasons"] = dict(sorted(reasons.items()))
    if program.detail != "answer":
        report["votes"] = [
            {"answer": vote.answer, "count": vote.count, "weight": vote.weight}
            for vote in outcome.votes
        ]
    if program.detail == "branches":
        report["branch_details"] = _describe_branches(run)
    if outcome.shadow is not None:
        report["shadow"] = asdict(outcome.shadow)
    return report


def _describe_branches(run: ProgramRun) -> list[dict[str, Any]]:
    """Every node in the order of its first start; a failed one with its error."""
    parts: list[tuple[str, Finished | Generated]] = [
        *run.finished.items(),
        *run.cancelled.items(),
        *run.trimmed,
    ]
    details = [(node, _describe_node(part)) for node, part in parts]
    details += [
        (node, {"stop_reason": "failed", "tokens": 0, "text": "", "error": error})
        for node, error in run.failed.items()
    ]
    probes = run.outcome.probes
    place = {node: index for index, node in enumerate(run.started)}
    details.sort(key=lambda item: place[item[0]])
    return [
        # Numbered nodes are numbers to the client.
        {
            "branch": int(node) if node.isdecimal() else node,
            "answer": run.outcome.answers.get(node),
            **described,
            **({"parent": run.parents[node]} if node in run.parents else {}),
            **({"reward": round(run.rewards[node], 6)} if node in run.rewards else {}),
            **({"probes": list(map(_describe_probe, probes[node]))} if node in probes else {}),
        }
        for node, described in details
    ]


def _describe_node(part: Finished | Generated) -> dict[str, Any]:
    described: dict[str, Any] = {
        "stop_reason": part.stop_reason,
        "tokens": part.n_tokens,
        "text": part.text,
    }
    if part.certainty is not None:
        described["certainty"] = _describe_certainty(part.certainty)
    return described


def _describe_probe(probe: Probed) -> dict[str, Any]:
    """As a trace of `sglang-dynasor run --record` has it."""
    return {
        "at": probe.at,
        "answer": probe.answer,
        "hedged": probe.hedged,
        "certainty": None if probe.confidence is None else round(probe.confidence, 6),
    }


def _describe_certainty(certainty: TokenCertainty) -> dict[str, float]:
    """Its fields; those that were not measured are left out."""
    return {name: value for name, value in asdict(certainty).items() if value is not None}
