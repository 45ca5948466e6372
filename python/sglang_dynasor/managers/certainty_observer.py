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
from sglang_dynasor.kernels.token_certainty import COLUMNS, is_small, token_certainty

if TYPE_CHECKING:
    from sglang.srt.managers.auxiliary_output import CommittedTokens
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
_LOGSUMEXP = COLUMNS.index("logsumexp")


class Consume(Protocol):
    """Takes what a batch has committed, and its certainty: to be read at once or later."""

    def __call__(
        self,
        reqs: Sequence[Any],
        commits: Sequence[CommittedTokens | None],
        certainty: HostCertainty,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Rows:
    """What one sampling step leaves for `after_sample`: values, or logits still to be measured.

    `logits` is set where the sampler will leave them as they are.
    """

    rows: torch.Tensor
    measured: bool
    logits: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class DeviceCertainty:
    """One batch on the device: [batch, len(COLUMNS) or vocab], and [batch, 1] or None."""

    rows: torch.Tensor
    measured: bool
    chosen_logit: torch.Tensor | None
    consume_batch: Consume

    def copy_to_host(self, copy_tensor: Callable[[torch.Tensor], torch.Tensor]) -> HostCertainty:
        chosen = None if self.chosen_logit is None else copy_tensor(self.chosen_logit)
        return HostCertainty(copy_tensor(self.rows), self.measured, chosen, self.consume_batch)


@dataclass(frozen=True, slots=True)
class HostCertainty:
    """The same on the host; readable once upstream has waited for its copies."""

    rows: torch.Tensor
    measured: bool
    chosen_logit: torch.Tensor | None
    consume_batch: Consume

    def consume(self, batch: ScheduleBatch, commits: Sequence[CommittedTokens | None]) -> None:
        self.consume_batch(batch.reqs, commits, self)


def read(batches: Sequence[HostCertainty]) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return each batch's values [batch, len(COLUMNS)] and log p of its chosen tokens or None.

    What has not been measured yet is, in one call for all batches.
    """
    waiting = [batch.rows for batch in batches if not batch.measured]
    if waiting:
        measured = token_certainty(torch.cat(waiting), CERTAINTY_TOP_K)
        late = iter(measured.split([len(rows) for rows in waiting]))
    result = []
    for batch in batches:
        values = (batch.rows if batch.measured else next(late)).numpy()
        chosen = batch.chosen_logit
        logprob = None if chosen is None else chosen.numpy()[:, 0] - values[:, _LOGSUMEXP]
        result.append((values, logprob))
    return result


class CertaintyObserver:
    """Measures every row of a batch in which some request wants it.

    The scheduler sets `active` before each batch. A sampled token's log-probability comes with it
    where it is free: in greedy batches, whose logits the sampler does not overwrite. Few logits on
    the CPU are kept and measured when they are read, for many batches at once: a call for each
    would take several times as long as what it computes.
    """

    def __init__(self, consume: Consume) -> None:
        self.active = False
        self._consume = consume

    def is_active(self, sampling_info: SamplingBatchInfo) -> bool:
        return self.active

    def before_grammar(self, logits: torch.Tensor, sampling_info: SamplingBatchInfo) -> _Rows:
        untouched = sampling_info.is_all_greedy and not (
            sampling_info.logit_bias is not None
            or sampling_info.has_custom_logit_processor
            or sampling_info.has_watermark_candidates
        )
        measured = not is_small(logits)
        rows = token_certainty(logits, CERTAINTY_TOP_K) if measured else logits.clone()
        return _Rows(rows, measured, logits if untouched else None)

    def after_sample(self, state: _Rows, token_ids: torch.Tensor) -> DeviceCertainty:
        chosen = None
        if state.logits is not None:
            chosen = state.logits.gather(1, token_ids.to(torch.int64).unsqueeze(1))
            chosen = chosen.to(torch.float32)
        return DeviceCertainty(state.rows, state.measured, chosen, self._consume)
