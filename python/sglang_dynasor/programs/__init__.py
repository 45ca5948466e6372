"""Reasoning programs: pure generators, what clients may ask of them, and what drives them."""

from sglang_dynasor.programs.base import (
    BranchStop,
    FinishedBranch,
    Grant,
    Offer,
    Outcome,
    ReasoningProgram,
    ShadowOutcome,
    Step,
)
from sglang_dynasor.programs.grouping import Grouping, grouping_of
from sglang_dynasor.programs.result import Program, ProgramResult, build_report
from sglang_dynasor.programs.runner import BranchClient, ProgramRun, run_program
from sglang_dynasor.programs.self_consistency import self_consistency, with_answer
from sglang_dynasor.programs.spec import ProgramSpec

__all__ = [
    "BranchClient",
    "BranchStop",
    "FinishedBranch",
    "Grant",
    "Grouping",
    "Offer",
    "Outcome",
    "Program",
    "ProgramResult",
    "ProgramRun",
    "ProgramSpec",
    "ReasoningProgram",
    "ShadowOutcome",
    "Step",
    "build_report",
    "grouping_of",
    "run_program",
    "self_consistency",
    "with_answer",
]
