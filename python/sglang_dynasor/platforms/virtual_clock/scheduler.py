"""The real scheduler, whatever class it is, on a clock: only the forward pass is predicted.

Upstream: `sglang/srt/managers/scheduler.py`. Its overlap loop runs as it is: a batch is launched
before the results of the last one are looked at, and the device works off one after the other.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper

from sglang_dynasor.platforms.virtual_clock.channels import Inbox, Outlet
from sglang_dynasor.platforms.virtual_clock.clock import LogicalLoop
from sglang_dynasor.platforms.virtual_clock.model import PredictedModel
from sglang_dynasor.platforms.virtual_clock.script import Script, ScriptedTokens
from sglang_dynasor.platforms.virtual_clock.step_times import StepTimes


@dataclass
class VirtualWorld:
    """What the parts of one virtual engine share.

    `host_s` is what the scheduler itself takes per pass, before the device gets it. Where the
    device `blocks`, a pass is over before the scheduler does anything else.
    """

    loop: LogicalLoop
    step_times: StepTimes
    script: Script
    host_s: float
    blocks: bool = False
    to_scheduler: Inbox = field(default_factory=Inbox)
    to_detokenizer: Outlet | None = None
    to_manager: Outlet | None = None
    model: PredictedModel | None = None
    awaited: asyncio.Future[Any] | None = None


class OnVirtualClock:
    """Goes before a scheduler class. `world` is set on the class that is made of both."""

    world: VirtualWorld

    def init_ipc_channels(self: Any, port_args: Any) -> None:
        world = self.world
        self.ipc_channels = SchedulerIpcChannels(
            recv_from_tokenizer=world.to_scheduler,
            recv_from_rpc=Inbox(),
            send_to_tokenizer=SenderWrapper(world.to_manager),
            send_to_detokenizer=SenderWrapper(world.to_detokenizer),
            send_metrics_from_scheduler=None,
        )
        self.load_snapshot_writer = None
        self.recv_from_tokenizer = self.ipc_channels.recv_from_tokenizer

    def init_tp_model_worker(self: Any) -> None:
        super().init_tp_model_worker()  # type: ignore[misc]
        world = self.world
        tokens = ScriptedTokens(world.script, self.tokenizer)
        world.model = PredictedModel(tokens, world.step_times, world.loop.time)
        self.tp_worker.forward_batch_generation = world.model.forward

    def ingest_requests(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Let the clients live up to now; where nothing runs, up to what comes next."""
        world, loop = self.world, self.world.loop
        loop.run_due(loop.clock.now)
        while self._is_idle() and not world.to_scheduler and not self._is_done():
            when = loop.next_timer()
            if when is None:
                raise RuntimeError("the simulation waits, and nothing is due any more")
            loop.run_due(when)
        if self._is_done() and self._is_idle():
            self.gracefully_exit = True
        return super().ingest_requests(*args, **kwargs)  # type: ignore[misc]

    def _is_idle(self: Any) -> bool:
        return (
            self.last_batch is None
            and not self.result_queue
            and not self.waiting_queue
            and self.running_batch.is_empty()
        )

    def _is_done(self) -> bool:
        awaited = self.world.awaited
        return awaited is None or awaited.done()

    def run_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        world, clock = self.world, self.world.loop.clock
        clock.advance_to(clock.now + world.host_s)
        result = super().run_batch(*args, **kwargs)  # type: ignore[misc]
        if world.blocks:
            clock.advance_to(result.logical_end)
        return result

    def process_batch_result(self: Any, batch: Any, result: Any) -> None:
        self.world.loop.clock.advance_to(result.logical_end)
        super().process_batch_result(batch, result)  # type: ignore[misc]
        self.world.model.forget(batch)
