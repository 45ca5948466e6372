"""Upstream's schedule policy with programs ranked by ours while there are any.

Upstream: `sglang/srt/managers/schedule_policy.py`, `SchedulePolicy.calc_priority`, called by the
admission loop whenever requests wait and the batch has room.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.schedule_policy import SchedulePolicy

from sglang_dynasor.managers.probes import EngineProbes
from sglang_dynasor.scheduling import ProgramScheduler


class DynasorSchedulePolicy(SchedulePolicy):
    """Orders by program while one is there, else as upstream does."""

    def __init__(self, programs: ProgramScheduler, probes: EngineProbes, *args: Any) -> None:
        super().__init__(*args)
        self._programs = programs
        self._probes = probes

    def calc_priority(
        self,
        waiting_queue: list[Req],
        running_batch: ScheduleBatch | None = None,
        processed_tokens: int = 0,
    ) -> None:
        if not self._programs.order(waiting_queue):
            super().calc_priority(waiting_queue, running_batch, processed_tokens)
        if len(self._probes):  # they wait for this pass only
            waiting_queue.sort(key=lambda req: req not in self._probes)
        # Held siblings leave the queue for the length of this pass only: aborts see them.
        self._programs.hold(waiting_queue)

    def waiting_queue_prefix_matched(self, waiting_queue: list[Req]) -> bool:
        # Ours matches none: upstream's load report must not read what an earlier pass left.
        return not self._programs.orders and super().waiting_queue_prefix_matched(waiting_queue)
