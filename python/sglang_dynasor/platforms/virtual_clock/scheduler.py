"""The real scheduler, whatever class it is, on a clock: only the forward pass is predicted.

Upstream: `sglang/srt/managers/scheduler.py`. Its overlap loop runs as it is: a batch is launched
before the results of the last one are looked at, and the device works off one after the other.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper
from sglang.srt.managers.utils import GenerationBatchResult

from sglang_dynasor.platforms.virtual_clock.channels import Inbox, Outlet
from sglang_dynasor.platforms.virtual_clock.clock import LogicalLoop
from sglang_dynasor.platforms.virtual_clock.script import ScriptedTokens
from sglang_dynasor.platforms.virtual_clock.step_times import StepTimes


@dataclass
class VirtualWorld:
    """What the parts of one virtual engine share.

    `host_s` is what the scheduler itself takes per pass, before the device gets it.
    """

    loop: LogicalLoop
    step_times: StepTimes
    host_s: float
    to_scheduler: Inbox = field(default_factory=Inbox)
    to_detokenizer: Outlet | None = None
    to_manager: Outlet | None = None
    tokens: ScriptedTokens | None = None
    awaited: asyncio.Future[Any] | None = None
    steps: list[tuple[float, str, int]] = field(default_factory=list)  # begin, kind, size


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
        self.tp_worker.forward_batch_generation = self._predicted_forward
        self._device_free_at = 0.0

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
        clock = self.world.loop.clock
        clock.advance_to(clock.now + self.world.host_s)
        return super().run_batch(*args, **kwargs)  # type: ignore[misc]

    def process_batch_result(self: Any, batch: Any, result: Any) -> None:
        self.world.loop.clock.advance_to(result.logical_end)
        super().process_batch_result(batch, result)  # type: ignore[misc]
        for req in batch.reqs:
            if req.finished():
                self.world.tokens.forget(req.rid)

    def _predicted_forward(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        world = self.world
        clock = world.loop.clock
        size = len(batch.reqs)
        if batch.forward_mode.is_decode():
            kind = "decode"
            lengths = [int(length) for length in batch.seq_lens_cpu]
            took_ms = world.step_times.decode_ms(size, sum(lengths) / size)
        else:
            kind = "prefill"
            lengths = [
                past + new for past, new in zip(batch.prefix_lens, batch.extend_lens, strict=True)
            ]
            new, past = sum(batch.extend_lens) / size, sum(batch.prefix_lens) / size
            took_ms = world.step_times.prefill_ms(size, new, past)
        begins = max(clock.now, self._device_free_at)
        self._device_free_at = begins + took_ms / 1000
        world.steps.append((begins, kind, size))
        tokens = [
            world.tokens.token(req.rid, length - len(req.origin_input_ids))
            for req, length in zip(batch.reqs, lengths, strict=True)
        ]
        result = GenerationBatchResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=torch.tensor(tokens, dtype=torch.int64),
        )
        result.logical_end = self._device_free_at
        return result
