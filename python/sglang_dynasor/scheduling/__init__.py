"""Order and bookkeeping of programs: pure, the same in the engine and in the simulator."""

from sglang_dynasor.scheduling.cost import TokenPrior
from sglang_dynasor.scheduling.offers import draw, surplus_running
from sglang_dynasor.scheduling.order import POLICY_KEYS, ProgramOrder
from sglang_dynasor.scheduling.program_entry import (
    EndedProgram,
    ProgramEntry,
    ProgramKey,
    WaitingRequest,
)
from sglang_dynasor.scheduling.program_table import ProgramTable

__all__ = [
    "POLICY_KEYS",
    "EndedProgram",
    "ProgramEntry",
    "ProgramKey",
    "ProgramOrder",
    "ProgramTable",
    "TokenPrior",
    "WaitingRequest",
    "draw",
    "surplus_running",
]
