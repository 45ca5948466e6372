"""Reasoning programs: events in, actions out; what clients may ask of them, what drives them."""

from sglang_dynasor.programs.answers import AnswerFormat, Answers, Reading
from sglang_dynasor.programs.batch_budget import BatchBudget, Budget
from sglang_dynasor.programs.client import (
    ClientGone,
    Generated,
    NodeClient,
    NodeError,
    ProgramAborted,
)
from sglang_dynasor.programs.grouping import Grouping, grouping_of
from sglang_dynasor.programs.params import Envelope, Params, Settings
from sglang_dynasor.programs.program_run import ProgramRun
from sglang_dynasor.programs.protocol import (
    Aborted,
    Action,
    Ask,
    Cancel,
    Demand,
    Event,
    Expired,
    Failed,
    Finished,
    Granted,
    NodeStop,
    Outcome,
    Probed,
    ProgramStop,
    ReasoningProgram,
    Regrouped,
    Score,
    Scored,
    ShadowOutcome,
    Start,
    Trimmed,
    Watch,
)
from sglang_dynasor.programs.recorded import Replayed, replay_nodes
from sglang_dynasor.programs.registry import ALGORITHMS, Algorithm
from sglang_dynasor.programs.result import Program, ProgramResult, build_report
from sglang_dynasor.programs.runner import run_program
from sglang_dynasor.programs.self_consistency import SelfConsistency
from sglang_dynasor.programs.self_consistency_params import (
    SelfConsistencyParams,
    SelfConsistencySettings,
)
from sglang_dynasor.programs.spec import ProgramSpec, ResolvedProgram

__all__ = [
    "ALGORITHMS",
    "Aborted",
    "Action",
    "Algorithm",
    "AnswerFormat",
    "Answers",
    "Ask",
    "BatchBudget",
    "Budget",
    "Cancel",
    "ClientGone",
    "Demand",
    "Envelope",
    "Event",
    "Expired",
    "Failed",
    "Finished",
    "Generated",
    "Granted",
    "Grouping",
    "NodeClient",
    "NodeError",
    "NodeStop",
    "Outcome",
    "Params",
    "Probed",
    "Program",
    "ProgramAborted",
    "ProgramResult",
    "ProgramRun",
    "ProgramSpec",
    "ProgramStop",
    "Reading",
    "ReasoningProgram",
    "Regrouped",
    "Replayed",
    "ResolvedProgram",
    "Score",
    "Scored",
    "SelfConsistency",
    "SelfConsistencyParams",
    "SelfConsistencySettings",
    "Settings",
    "ShadowOutcome",
    "Start",
    "Trimmed",
    "Watch",
    "build_report",
    "grouping_of",
    "replay_nodes",
    "run_program",
]
