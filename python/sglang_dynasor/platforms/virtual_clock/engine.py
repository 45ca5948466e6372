"""An engine in one process and one thread on a logical clock: any hardware, on this machine.

Scheduler, tokenizer manager, detokenizer, radix cache and programs are the real ones; only the
model's forward pass is replaced, by a predicted duration and scripted tokens. Two runs are alike to
the last step, whatever the machine does meanwhile.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, ClassVar

from sglang.srt.managers.detokenizer_manager import DetokenizerManager
from sglang.srt.managers.io_struct import sock_recv, sock_send
from sglang.srt.runtime_context import SpawnRanks, publish

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.engine import DynasorEngine
from sglang_dynasor.managers.rewards import Rewards
from sglang_dynasor.platforms.virtual_clock.channels import AwaitedInbox, Inbox, Outlet
from sglang_dynasor.platforms.virtual_clock.clock import Clock, LogicalLoop
from sglang_dynasor.platforms.virtual_clock.rewards import PredictedHome
from sglang_dynasor.platforms.virtual_clock.scheduler import OnVirtualClock, VirtualWorld
from sglang_dynasor.platforms.virtual_clock.script import Script
from sglang_dynasor.platforms.virtual_clock.step_times import StepTimes

# Of the stand-in model, whose positions nothing is computed from.
CONTEXT_LENGTH = 8192


class _Detokenizer(DetokenizerManager):
    """Upstream's, given its messages by a call."""

    def init_ipc_channels(self, *args: Any) -> None: ...


class VirtualEngine(DynasorEngine):
    """`DynasorEngine` whose device is predicted. `loop.clock.now` is its time, in seconds.

    `step_times` says how long a pass takes, `script` what every node generates; `host_s` is the
    scheduler's own time per pass, `input_s` what each message takes to it, one after the other, and
    `output_s` what an output takes to its client. A device that `blocks` is the scheduler's own
    processor: while a pass runs, nothing else does. Where there is a `reward_verifier`, it judges
    on a second device, whose passes take `reward_times`. All other arguments are those of
    `DynasorEngine`; `max_total_tokens` and `max_running_requests` are those of the modelled device.
    """

    _world: ClassVar[VirtualWorld]  # of the engine that is being started
    _scheduler: ClassVar[Any]

    def __init__(
        self,
        *,
        step_times: StepTimes,
        script: Script,
        host_s: float = 0.0,
        input_s: float = 0.0,
        output_s: float = 0.0,
        blocks: bool = False,
        reward_times: StepTimes | None = None,
        **kwargs: Any,
    ) -> None:
        config = DynasorConfig.parse(kwargs.get("dynasor") or {})
        if config.reward_model_path or config.reward_url:
            raise ValueError("rewards on a virtual clock: only reward_verifier judges there")
        loop = LogicalLoop(Clock())
        asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())  # upstream sets uvloop's
        asyncio.set_event_loop(loop)
        world = VirtualEngine._world = VirtualWorld(loop, step_times, script, host_s, blocks)
        outputs = AwaitedInbox()
        sent_until = 0.0

        def send(data: bytes) -> None:
            nonlocal sent_until
            sent_until = max(sent_until, loop.clock.now) + input_s
            loop.call_at(sent_until, world.to_scheduler.send, data)

        def deliver(data: bytes) -> None:
            loop.call_at(loop.clock.now + output_s, outputs.put, data)

        world.to_manager = Outlet(deliver)
        world.to_detokenizer = Outlet(lambda data: self._detokenize(data, deliver))
        os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"
        super().__init__(disable_cuda_graph=True, **{"context_length": CONTEXT_LENGTH, **kwargs})
        self.loop = loop
        self.world = world
        manager = self.tokenizer_manager
        manager.send_to_scheduler = Outlet(send) if input_s else world.to_scheduler
        manager.recv_from_detokenizer = outputs
        self._detokenizer = _Detokenizer(self.server_args, self.port_args)
        self._judge(manager, reward_times or step_times)
        self._own_scheduler = VirtualEngine._scheduler
        loop.drive = self._drive

    def _judge(self, manager: Any, step_times: StepTimes) -> None:
        config = manager.dynasor_config
        if config.reward_verifier:
            home = PredictedHome(config.reward_verifier, step_times)
            manager.judge_with(Rewards(home, config.reward_time_limit_ms / 1000, sigmoid=False))

    def _drive(self, task: asyncio.Future[Any]) -> None:
        """Let the scheduler run until the task is done and nothing is left of it."""
        self.world.awaited = task
        scheduler = self._own_scheduler
        scheduler.gracefully_exit = False
        scheduler.run_event_loop()

    def shutdown(self) -> None:
        """End what was started for programs; there are no processes to end."""
        self.tokenizer_manager.close_programs()
        self.loop.drive = None

    def _detokenize(self, data: bytes, deliver: Callable[[bytes], None]) -> None:
        inbox = Inbox()
        inbox.send(data)
        output = self._detokenizer._request_dispatcher(sock_recv(inbox))
        if output is not None:
            sock_send(Outlet(deliver), output)

    @classmethod
    def _launch_scheduler_processes(
        cls, server_args: Any, port_args: Any, run_scheduler_process_func: Any, **kwargs: Any
    ) -> Any:
        from sglang.srt.entrypoints.engine import SchedulerInitResult
        from sglang.srt.managers import scheduler as upstream

        infos: list[dict[str, Any]] = []

        def start() -> None:
            publish(server_args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
            kind = type(
                "VirtualScheduler", (OnVirtualClock, upstream.Scheduler), {"world": cls._world}
            )
            VirtualEngine._scheduler = kind(server_args, port_args)
            infos.append(VirtualEngine._scheduler.get_init_info())

        result = SchedulerInitResult(
            scheduler_infos=infos,
            all_child_pids=[],
            wait_for_ready=start,
            block_until_scheduler_exits=lambda: None,
        )
        return result, []

    @classmethod
    def _launch_detokenizer_subprocesses(cls, *args: Any, **kwargs: Any) -> Any:
        return [], []
