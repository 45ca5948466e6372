"""Script: start the launcher with each hook missing in turn, then an engine whose scheduler
process runs unpatched. Prints one JSON object. In a process of its own, because refusing ends every
child of the process.
"""

from __future__ import annotations

import json
import os
import pkgutil
import sys
from typing import Any

import psutil


def run_unpatched_scheduler(*args: Any, **kwargs: Any) -> Any:
    """What a scheduler process is in which the plugin failed to load."""
    os.environ["SGLANG_DYNASOR"] = "0"
    from sglang.srt.managers.scheduler import run_scheduler_process

    return run_scheduler_process(*args, **kwargs)


def refused_launches() -> dict[str, str]:
    """For each hook, what the launcher exits with when that hook is missing."""
    from sglang.srt.plugins import load_plugins

    from sglang_dynasor import launch_server, plugin

    load_plugins()
    messages = {}
    for hook in plugin.HOOKS:
        owner_path, _, name = hook.target.rpartition(".")
        owner = pkgutil.resolve_name(owner_path)
        patched = vars(owner)[name]
        original: Any
        if hook.kind == "replace":
            original = pkgutil.resolve_name(hook.ours).__bases__[0]
        elif isinstance(patched, classmethod):
            original = classmethod(patched.__func__.__wrapped__)
        else:
            original = patched.__wrapped__
        setattr(owner, name, original)
        try:
            launch_server.main(["--model-path", sys.argv[1]])
        except SystemExit as refusal:
            messages[hook.target] = str(refusal.code)
        finally:
            setattr(owner, name, patched)
    return messages


def refused_unsupported() -> str:
    """What the launcher exits with in a setup that is not supported."""
    from sglang_dynasor import launch_server

    try:
        launch_server.main(["--model-path", sys.argv[1], "--tokenizer-worker-num", "2"])
    except SystemExit as refusal:
        return str(refusal.code)
    return ""


def refused_engine() -> tuple[str, str]:
    """Type and message of the error of an engine whose scheduler process is not patched."""
    from sglang_dynasor import DynasorEngine

    class HalfPatchedEngine(DynasorEngine):
        run_scheduler_process_func = staticmethod(run_unpatched_scheduler)

    try:
        HalfPatchedEngine(model_path=sys.argv[1], max_total_tokens=1024)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def running_children() -> list[str]:
    """Command lines of the processes below this one, but for those that have ended."""
    return [
        " ".join(child.cmdline())
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
    ]


if __name__ == "__main__":
    result = {
        "launches": refused_launches(),
        "unsupported": refused_unsupported(),
        "engine": refused_engine(),
        "children": running_children(),
    }
    print(json.dumps(result))
