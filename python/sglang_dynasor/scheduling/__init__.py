"""Order and bookkeeping of programs: pure, the same in the engine and in the simulator."""

from sglang_dynasor.scheduling.cost import TokenPrior
from sglang_dynasor.scheduling.order import POLICY_KEYS
from sglang_dynasor.scheduling.program_entry import EndedProgram, ProgramKey, Request
from sglang_dynasor.scheduling.program_scheduler import Directives, ProgramScheduler
from sglang_dynasor.scheduling.room import Load

__all__ = [
    "POLICY_KEYS",
    "Directives",
    "EndedProgram",
    "Load",
    "ProgramKey",
    "ProgramScheduler",
    "Request",
    "TokenPrior",
]
