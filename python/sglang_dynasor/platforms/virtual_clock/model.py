"""The forward pass that is not run: scripted tokens, and when a device would be done with them.

Upstream: `TpModelWorker.forward_batch_generation` of `sglang/srt/managers/tp_worker.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.utils import GenerationBatchResult

from sglang_dynasor.platforms.virtual_clock.script import ScriptedTokens
from sglang_dynasor.platforms.virtual_clock.step_times import StepTimes


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass: seconds at which the device begins it, and how many requests it has."""

    begins: float
    kind: str
    size: int


class PredictedModel:
    """A device that works off one pass after the other. `now` is the time, in seconds."""

    def __init__(
        self, tokens: ScriptedTokens, step_times: StepTimes, now: Callable[[], float]
    ) -> None:
        self.steps: list[Step] = []
        self._tokens = tokens
        self._step_times = step_times
        self._now = now
        self._free_at = 0.0

    def forward(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a batch; `logical_end` is when the device has it."""
        size = len(batch.reqs)
        if batch.forward_mode.is_decode():
            kind = "decode"
            lengths = [int(length) for length in batch.seq_lens_cpu]
            took_ms = self._step_times.decode_ms(size, sum(lengths) / size)
        else:
            kind = "prefill"
            lengths = [
                past + new for past, new in zip(batch.prefix_lens, batch.extend_lens, strict=True)
            ]
            new, past = sum(batch.extend_lens) / size, sum(batch.prefix_lens) / size
            took_ms = self._step_times.prefill_ms(size, new, past)
        begins = max(self._now(), self._free_at)
        self._free_at = begins + took_ms / 1000
        self.steps.append(Step(begins, kind, size))
        tokens = [
            self._tokens.token(req, length - len(req.origin_input_ids))
            for req, length in zip(batch.reqs, lengths, strict=True)
        ]
        result = GenerationBatchResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=torch.tensor(tokens, dtype=torch.int64),
        )
        result.logical_end = self._free_at
        return result

    def forget(self, batch: Any) -> None:
        """Forget the scripts of requests that have ended."""
        for req in batch.reqs:
            if req.finished():
                self._tokens.forget(req.rid)
