"""What clients get back: the result of a program the engine ran, the report of a client's own."""

from __future__ import annotations

from typing import Any

from sglang_dynasor.managers.certainty_report import VALUES, take_certainty
from sglang_dynasor.managers.engine_branches import EngineBranches
from sglang_dynasor.managers.program_messages import CARRIER
from sglang_dynasor.programs import ProgramRun, ProgramSpec


def add_member_report(
    output: Any, members: list[ProgramSpec | None], unmeasured: str | None
) -> None:
    """Tell a client-driven program its id, which may have been minted here, and its certainty.

    `unmeasured` is why this engine has none.
    """
    outputs = output if isinstance(output, list) else [output]
    for position, item in enumerate(outputs):
        index = item.get("index", position)
        spec = members[index] if index < len(members) else members[0]
        if spec is not None:
            report = {
                "program_id": spec.program_id,
                "algorithm": spec.algorithm,
                "mode": spec.mode,
                **take_certainty(item["meta_info"]),
            }
            if spec.wants_certainty and unmeasured:
                report["inactive"] = {VALUES: unmeasured}
            item["meta_info"][CARRIER] = report


def add_certainty(
    report: dict[str, Any], spec: ProgramSpec, client: EngineBranches, run: ProgramRun
) -> None:
    """Put what was measured into a program's report: of the branch that answers, and of each."""
    taken = {index: take_certainty(output["meta_info"]) for index, output in client.outputs.items()}
    if not spec.token_certainty:
        return
    if run.outcome.branch is not None:
        report.update(taken[run.outcome.branch])
    for details in report.get("branch_details", ()):
        details.update(taken.get(details["branch"], {}))


def program_output(
    client: EngineBranches, run: ProgramRun, report: dict[str, Any], weight_version: str
) -> dict[str, Any]:
    """One upstream-shaped result: the branch that stands for the answer, the program's counts."""
    tokens = report["tokens"]
    if run.outcome.branch is None:
        output: dict[str, Any] = {
            "text": "",
            "output_ids": [],
            "meta_info": {
                "finish_reason": {"type": "abort", "message": run.outcome.stop_reason},
                "cached_tokens": 0,
                "weight_version": weight_version,
                "output_token_logprobs": [],  # a request for log probabilities reads it
            },
        }
    else:
        output = client.outputs[run.outcome.branch]
    output["meta_info"].update(
        id=report["program_id"],
        prompt_tokens=tokens["prompt"],
        completion_tokens=tokens["total"] - tokens["prompt"],
        e2e_latency=report["seconds"],
        dynasor=report,
    )
    return output
