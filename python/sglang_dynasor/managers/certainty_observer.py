"""Token certainty measured at sampling, on the logits where they are.

Upstream: `sglang/srt/sampling/sampling_observer.py` and `managers/auxiliary_output.py`. The model
runner calls the observer around the grammar mask and the sampler; the scheduler copies its output
to the host together with the sampled tokens and hands it over when they are committed. Nothing here
waits for the device.

What is measured is the model's own distribution: at temperature 1, with penalties, before grammar
mask and logit bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from sglang_dynasor.certaindex import CERTAINTY_TOP_K
from sglang_dynasor.kernels.token_certainty import COLUMNS, token_certainty

if TYPE_CHECKING:
    from sglang.srt.managers.auxiliary_output import CommittedTokens
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
_LOGSUMEXP = COLUMNS.index("logsumexp")


class Consume(Protocol):
    """Takes the values of one batch: [batch, len(COLUMNS)], and log p of each chosen token."""

    def __call__(
        self,
        reqs: Sequence[Any],
        commits: Sequence[CommittedTokens | None],
        values: np.ndarray,
        chosen_logprob: np.ndarray | None,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Measured:
    """What one sampling step leaves for `after_sample`.

    `logits` is set where the sampler will leave them as they are.
    """

    values: torch.Tensor
    logits: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class DeviceCertainty:
    """Values of one batch on the device: [batch, len(COLUMNS)], and [batch, 1] or None."""

    values: torch.Tensor
    chosen_logprob: torch.Tensor | None
    consume_values: Consume

    def copy_to_host(self, copy_tensor: Callable[[torch.Tensor], torch.Tensor]) -> HostCertainty:
        chosen = None if self.chosen_logprob is None else copy_tensor(self.chosen_logprob)
        return HostCertainty(copy_tensor(self.values), chosen, self.consume_values)


@dataclass(frozen=True, slots=True)
class HostCertainty:
    """The same on the host; readable once upstream has waited for its copies."""

    values: torch.Tensor
    chosen_logprob: torch.Tensor | None
    consume_values: Consume

    def consume(self, batch: ScheduleBatch, commits: Sequence[CommittedTokens | None]) -> None:
        chosen = None if self.chosen_logprob is None else self.chosen_logprob.numpy()[:, 0]
        self.consume_values(batch.reqs, commits, self.values.numpy(), chosen)


class CertaintyObserver:
    """Measures every row of a batch in which some request wants it.

    The scheduler sets `active` before each batch. A sampled token's log-probability comes with it
    where it is free: in greedy batches, whose logits the sampler does not overwrite.
    """

    def __init__(self, consume: Consume) -> None:
        self.active = False
        self._consume = consume

    def is_active(self, sampling_info: SamplingBatchInfo) -> bool:
        return self.active

    def before_grammar(self, logits: torch.Tensor, sampling_info: SamplingBatchInfo) -> _Measured:
        untouched = sampling_info.is_all_greedy and not (
            sampling_info.logit_bias is not None
            or sampling_info.has_custom_logit_processor
            or sampling_info.has_watermark_candidates
        )
        return _Measured(token_certainty(logits, CERTAINTY_TOP_K), logits if untouched else None)

    def after_sample(self, state: _Measured, token_ids: torch.Tensor) -> DeviceCertainty:
        chosen = None
        if state.logits is not None:
            logit = state.logits.gather(1, token_ids.to(torch.int64).unsqueeze(1))
            chosen = logit.to(torch.float32) - state.values[:, _LOGSUMEXP, None]
        return DeviceCertainty(state.values, chosen, self._consume)
