"""`sglang-dynasor doctor`: is everything in place for programs to run here?"""

from __future__ import annotations

import logging
import platform
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

from sglang_dynasor import plugin
from sglang_dynasor.config import DynasorConfig, is_enabled

_PACKAGES = ("sglang-dynasor", "sglang", "torch", "triton", "flashinfer-python", "transformers")


def examine(console: Console | None = None) -> int:
    """Print versions, device, hooks and a one-line verdict; returns 0 when all is well, else 1."""
    console = console or Console()
    table = Table(box=None, show_header=False)
    table.add_row("python", platform.python_version())
    for package in _PACKAGES:
        table.add_row(package, _version_of(package))
    table.add_row("device", _device())
    console.print(table)
    problems = _setup_problems()
    hooks = Table("hook", "kind", "state", box=None)
    if not problems and is_enabled():
        missing = _missing_hooks()
        for hook in plugin.HOOKS:
            state = "[red]NOT PATCHED" if hook.target in missing else "[green]ok"
            hooks.add_row(hook.target, hook.kind, state)
        problems += [f"not patched: {target}" for target in missing]
        console.print(hooks)
    if problems:
        console.print("[red]NOT READY[/]: " + "; ".join(problems), soft_wrap=True)
        return 1
    if not is_enabled():
        console.print("[yellow]OFF[/]: SGLANG_DYNASOR=0, SGLang runs unpatched")
        return 0
    console.print("[green]READY[/]: programs run on this machine")
    return 0


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "[red]missing"


def _device() -> str:
    from sglang.srt.platforms import current_platform

    name = type(current_platform).__name__
    return f"{current_platform.device_name} ({name})"


def _setup_problems() -> list[str]:
    """What is wrong before any hook is looked at."""
    problems = []
    try:
        is_enabled()
        plugin.check_version()
        DynasorConfig.from_environment()
    except (RuntimeError, ValueError) as error:
        problems.append(str(error))
    return problems


def _missing_hooks() -> list[str]:
    logging.getLogger("sglang").setLevel(logging.WARNING)
    from sglang.srt.plugins import load_plugins

    from sglang_dynasor.handshake import unpatched_hooks

    load_plugins()
    return unpatched_hooks()
