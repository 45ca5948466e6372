"""The ordinary engine of several processes, whose scheduler class a benchmark changes in place.

In place, for another class would not pass the handshake.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sglang_dynasor.engine import DynasorEngine


def run_scheduler(alter: Callable[[Any], None], *args: Any, **kwargs: Any) -> None:
    """Upstream's scheduler process, its class changed."""
    from sglang.srt.managers import scheduler as upstream
    from sglang.srt.plugins import load_plugins

    load_plugins()  # it replaces the scheduler's class; a second call does nothing
    alter(upstream.Scheduler)
    upstream.run_scheduler_process(*args, **kwargs)


class AlteredEngine(DynasorEngine):
    """`alter` is called with the scheduler class in the scheduler's process; it must pickle."""

    def __init__(self, *, alter: Callable[[Any], None], **kwargs: Any) -> None:
        self.run_scheduler_process_func = partial(run_scheduler, alter)
        super().__init__(**kwargs)
