"""The ordinary engine of several processes whose model is a stub that sleeps.

What the virtual clock predicts is held against this: the same scripts and step times, in real time,
with real sockets and processes between the parts.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

from sglang_dynasor.engine import DynasorEngine
from sglang_dynasor.platforms.virtual_clock.engine import CONTEXT_LENGTH
from sglang_dynasor.platforms.virtual_clock.model import PredictedModel
from sglang_dynasor.platforms.virtual_clock.script import Script, ScriptedTokens
from sglang_dynasor.platforms.virtual_clock.step_times import StepTimes


def run_scheduler(script: Script, step_times: StepTimes, *args: Any, **kwargs: Any) -> None:
    """Upstream's scheduler process, with the stub in it."""
    from sglang.srt.managers import scheduler as upstream
    from sglang.srt.plugins import load_plugins

    load_plugins()  # it replaces the scheduler's class; a second call does nothing
    give_stub(upstream.Scheduler, script, step_times)
    upstream.run_scheduler_process(*args, **kwargs)


def give_stub(scheduler: Any, script: Script, step_times: StepTimes) -> None:
    """Replace the model of a scheduler class: the device takes as long as predicted.

    In place, for another class would not pass the handshake.
    """
    init, process = scheduler.init_tp_model_worker, scheduler.process_batch_result

    def init_tp_model_worker(self: Any) -> None:
        init(self)
        tokens = ScriptedTokens(script, self.tokenizer)
        self.stub = PredictedModel(tokens, step_times, time.perf_counter)
        self.tp_worker.forward_batch_generation = self.stub.forward

    def process_batch_result(self: Any, batch: Any, result: Any) -> None:
        time.sleep(max(0.0, result.logical_end - time.perf_counter()))
        process(self, batch, result)
        self.stub.forget(batch)

    scheduler.init_tp_model_worker = init_tp_model_worker
    scheduler.process_batch_result = process_batch_result


class StubEngine(DynasorEngine):
    """`DynasorEngine` in real time, with the model of `VirtualEngine`."""

    def __init__(self, *, script: Script, step_times: StepTimes, **kwargs: Any) -> None:
        self.run_scheduler_process_func = partial(run_scheduler, script, step_times)
        os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"  # of the stand-in model
        super().__init__(context_length=CONTEXT_LENGTH, **kwargs)
