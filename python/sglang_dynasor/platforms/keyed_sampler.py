"""The opt-in sampler ``keyed``: a request's draws depend on its seed and the token position alone.

Upstream's default draws from one process-wide generator, so any change of the batch changes the
tokens of every request in it; its seeded path needs ``--enable-deterministic-inference``, which no
CPU backend can start with. Here the noise of a row is a hash of (sampling_seed, position, token
id): no state, no loop over requests, no wait for the device. What remains of the batch is the
rounding of the logits.

Seeds: a request that gives ``sampling_seed`` (OpenAI: ``seed``) gets exactly that stream. One that
gives none gets a seed made from the server's ``random_seed`` and its request id: branches sent
under ids of the caller's choice repeat from run to run and still differ from each other, and
anonymous requests differ as they do upstream. OpenAI ``n > 1`` hands one seed to all n choices, so
a fixed ``seed`` makes them identical.

Upstream: ``layers/sampler.py``, ``sampling/sampling_batch_info.py``.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.sampler import (
    Sampler,
    _SamplingMaskCapture,
    top_k_top_p_min_p_sampling_from_probs_torch,
)
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from .keyed_noise import exponential_noise

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

SEED_HOOK = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.adjusted_from_schedule_batch"


class KeyedSampler(Sampler):
    """Upstream's sampler, its greedy path, filters and logprobs, with another randomness."""

    def _sample_from_probs(
        self,
        probs: torch.Tensor,
        sampling_info: SamplingBatchInfo,
        positions: torch.Tensor,
        simple_sampling_case: bool,
    ) -> tuple[torch.Tensor, _SamplingMaskCapture | None]:
        """Draw one token per row of ``probs`` [batch, vocabulary].

        Returns:
            int32 token ids [batch], and the filtered weights of the rows that asked for them.

        Raises:
            RuntimeError: when the batch carries no seeds (the hook of `install_seed_hook` is
                missing).
        """
        seeds = sampling_info.sampling_seed
        if seeds is None:
            raise RuntimeError(
                "the keyed sampler got a batch without seeds: its hook is not installed"
            )
        weights, token_ids = probs, None
        if not simple_sampling_case:
            # The filters are upstream's; the token it draws beside them is dropped.
            _, weights, token_ids, _ = top_k_top_p_min_p_sampling_from_probs_torch(
                probs,
                sampling_info.top_ks,
                sampling_info.top_ps,
                sampling_info.min_ps,
                sampling_info.need_min_p_sampling,
                None,
                positions,
                return_filtered_probs=True,
            )
        chosen = draw(weights, token_ids, seeds, positions).unsqueeze(1)
        tokens = chosen if token_ids is None else token_ids.gather(1, chosen)
        capture = None
        rows = sampling_info.sampling_mask_batch_indices
        if rows is not None:
            capture = _SamplingMaskCapture(
                weights=weights[rows],
                token_ids=None if token_ids is None else token_ids[rows],
                selected_weight=weights.gather(1, chosen).view(-1)[rows],
                batch_rows=rows,
            )
        return tokens.view(-1).to(torch.int32), capture


def draw(
    weights: torch.Tensor,
    token_ids: torch.Tensor | None,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Column drawn from each row of ``weights``, with probability proportional to it.

    The first arrival of a race of exponential clocks. The noise belongs to the token, not to the
    column: a near tie that sorts the other way round does not change the draw.

    Args:
        weights: [batch, columns], not negative, need not sum to 1.
        token_ids: [batch, columns], token of each column, or None when column and token are the
            same.
        seeds, positions: [batch] integers.

    Returns:
        int64 [batch]
    """
    noise = exponential_noise(seeds, positions, weights.shape[1])
    if token_ids is not None:
        noise = noise.gather(1, token_ids.to(torch.int64))
    return (weights.to(torch.float32) / noise).argmax(dim=1)


def request_seed(sampling_seed: int | None, rid: str, server_seed: int) -> int:
    """The 64-bit seed of one request: its own, or one made from the server's seed and its id."""
    if sampling_seed is not None:
        return sampling_seed
    digest = hashlib.blake2b(f"{server_seed}:{rid}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def install_seed_hook() -> None:
    """Fill ``sampling_seed`` in every batch, on upstream's own extension point for it. Idempotent.

    Filtering and merging batches carry the field along already.
    """
    registered = {hook for _, hook, _ in HookRegistry._hooks.get(SEED_HOOK, ())}
    if _fill_seeds not in registered:
        HookRegistry.register(SEED_HOOK, _fill_seeds, HookType.AFTER)
    HookRegistry.apply_hooks()


def _fill_seeds(_: Any, info: SamplingBatchInfo, batch: ScheduleBatch, vocab_size: int) -> None:
    from sglang.srt.runtime_context import get_device

    server_seed = get_device().random_seed
    requests: list[Req] = batch.reqs
    seeds = [
        request_seed(request.sampling_params.sampling_seed, request.rid, server_seed)
        for request in requests
    ]
    info.sampling_seed = torch.tensor(seeds, dtype=torch.int64).to(info.device, non_blocking=True)
