"""What clients get back: the result of a program the engine ran, the report of a client's own."""

from __future__ import annotations

from typing import Any

from sglang_dynasor.managers.certainty_report import VALUES, take_certainty
from sglang_dynasor.managers.engine_nodes import EngineNodes
from sglang_dynasor.managers.program_messages import CARRIER
from sglang_dynasor.programs.program_run import ProgramRun
from sglang_dynasor.programs.spec import ResolvedProgram


def add_member_report(
    output: Any, members: list[ResolvedProgram | None], samples: int, unmeasured: str | None
) -> None:
    """Tell a client-driven program its id, which may have been minted here, and its certainty.

    Outputs come prompt by prompt, `samples` of each. `unmeasured` is why this engine has none.
    """
    outputs = output if isinstance(output, list) else [output]
    for position, item in enumerate(outputs):
        index = item.get("index", position) // samples
        program = members[index] if len(members) > 1 else members[0]
        if program is not None:
            report = {
                "program_id": program.program_id,
                "algorithm": program.algorithm,
                "mode": program.mode,
                **take_certainty(item["meta_info"]),
            }
            if program.settings.measured and unmeasured:
                report["inactive"] = {VALUES: unmeasured}
            item["meta_info"][CARRIER] = report


def add_certainty(
    report: dict[str, Any], program: ResolvedProgram, nodes: EngineNodes, run: ProgramRun
) -> None:
    """Put what was measured into a program's report: of the branch that answers, and of each."""
    taken = {
        node: take_certainty(output["meta_info"]) for node, output in nodes.paths.outputs.items()
    }
    if not program.settings.token_certainty:
        return
    if run.outcome.node is not None:
        report.update(taken[run.outcome.node])
    for details in report.get("branch_details", ()):
        details.update(taken.get(str(details["branch"]), {}))


def add_reuse(report: dict[str, Any], nodes: EngineNodes) -> None:
    """Say how much of what nodes continue was in the cache, where any continues another."""
    continued, reused = nodes.paths.reuse()
    if continued:
        report["tokens"] |= {"continued": continued, "reused": reused}


def program_output(
    nodes: EngineNodes, run: ProgramRun, report: dict[str, Any], rid: str, weight_version: str
) -> dict[str, Any]:
    """One upstream-shaped result: the branch that stands for the answer, the program's counts."""
    tokens = report["tokens"]
    generated = tokens["total"] - tokens["prompt"]
    if run.outcome.node is None:
        output = _stand_in(run.outcome.stop_reason, generated, weight_version)
    else:
        output = nodes.paths.closed(run.outcome.node, run.outcome.closing)
        if output["meta_info"]["finish_reason"]["type"] == "abort":  # a rule ended it
            output["meta_info"]["finish_reason"] = {"type": "stop", "matched": None}
    output["meta_info"].update(
        id=rid,
        prompt_tokens=tokens["prompt"],
        completion_tokens=generated,
        e2e_latency=report["seconds"],
        dynasor=report,
    )
    return output


def _stand_in(stop_reason: str, generated: int, weight_version: str) -> dict[str, Any]:
    """The result of a program without a finished branch: cut off, by whatever."""
    finish_reason: dict[str, Any] = {"type": "length", "length": generated}
    if stop_reason == "aborted":
        finish_reason = {"type": "abort", "message": "the program was aborted"}
    return {
        "text": "",
        "output_ids": [],
        "meta_info": {
            "finish_reason": finish_reason,
            "cached_tokens": 0,
            "weight_version": weight_version,
            # A request for log probabilities reads them.
            "input_token_logprobs": [],
            "output_token_logprobs": [],
        },
    }
