"""Order and bookkeeping of programs: pure, the same in the engine and in the simulator."""

from sglang_dynasor.scheduling.program_table import (
    EndedProgram,
    ProgramEntry,
    ProgramKey,
    ProgramTable,
)

__all__ = ["EndedProgram", "ProgramEntry", "ProgramKey", "ProgramTable"]
