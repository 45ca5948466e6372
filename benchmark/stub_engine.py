"""The ordinary engine of several processes whose model is a stub that sleeps.

What the virtual clock predicts is held against this: the same scripts and step times, in real time,
with real sockets and processes between the parts.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

from altered_engine import AlteredEngine
from sglang_dynasor.platforms.virtual_clock.engine import CONTEXT_LENGTH
from sglang_dynasor.platforms.virtual_clock.model import PredictedModel
from sglang_dynasor.platforms.virtual_clock.script import Script, ScriptedTokens
from sglang_dynasor.platforms.virtual_clock.step_times import StepTimes


def give_stub(script: Script, step_times: StepTimes, scheduler: Any) -> None:
    """Replace the model of a scheduler class: the device takes as long as predicted."""
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


class StubEngine(AlteredEngine):
    """`DynasorEngine` in real time, with the model of `VirtualEngine`."""

    def __init__(self, *, script: Script, step_times: StepTimes, **kwargs: Any) -> None:
        os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"  # of the stand-in model
        alter = partial(give_stub, script, step_times)
        super().__init__(alter=alter, context_length=CONTEXT_LENGTH, **kwargs)
