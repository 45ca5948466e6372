"""SGLang that knows reasoning programs. Importing this package loads neither torch nor sglang."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang_dynasor.programs import Program, ProgramResult, ProgramSpec

if TYPE_CHECKING:
    from sglang_dynasor.engine import DynasorEngine

__version__ = "0.1.0"
__all__ = ["DynasorEngine", "Program", "ProgramResult", "ProgramSpec", "__version__"]


def __getattr__(name: str) -> object:
    """Load the engine, and with it SGLang, only when it is asked for."""
    if name == "DynasorEngine":
        from sglang_dynasor.engine import DynasorEngine

        return DynasorEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
