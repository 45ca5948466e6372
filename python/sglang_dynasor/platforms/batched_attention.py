"""The attention backend ``batched_cpu``: upstream's ``torch_native`` without its loop over
requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from .attention_plan import AttentionPlan, Scratch

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class BatchedAttnBackend(TorchNativeAttnBackend):
    """Decode and extend for a whole batch with a few padded attention calls per layer.

    Results equal ``torch_native`` up to float rounding. Layers whose attention is not plain causal
    self-attention over the token pool (sliding window, cross and encoder attention, a KV pool of
    another dtype or head size) go through ``torch_native`` itself.

    Upstream: ``layers/attention/torch_native_backend.py``.

    Raises:
        ValueError: at start, for a model with soft-capped attention scores; ``torch_native`` would
            ignore the cap and answer wrongly.
        NotImplementedError: for speculative decoding and diffusion models, whose masks are not
            causal.
    """

    def __init__(self, model_runner: ModelRunner) -> None:
        super().__init__(model_runner)
        for layer in model_runner.model.modules():
            if isinstance(layer, RadixAttention) and layer.logit_cap:
                raise ValueError(
                    "attention backend batched_cpu cannot serve this model: "
                    f"layer {layer.layer_id} caps its attention scores at {layer.logit_cap}"
                )
        self._scratch = Scratch()
        self._plans: dict[tuple[int, torch.dtype], AttentionPlan] = {}

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Forget the last pass; the new plan waits for the first layer, which knows the width."""
        super().init_forward_metadata(forward_batch)
        mode = forward_batch.forward_mode
        if mode.is_target_verify() or mode.is_draft_extend_v2() or mode.is_dllm_extend():
            raise NotImplementedError(
                f"attention backend batched_cpu does not serve forward mode {mode.name}: "
                "speculative decoding and diffusion models are not supported"
            )
        self._plans.clear()

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """One new token per request. q [batch, heads * size] -> output of the same shape."""
        if not self._is_plain(q, layer, forward_batch):
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """New prompt tokens, packed. q [tokens, heads * size] -> output of the same shape."""
        if not self._is_plain(q, layer, forward_batch):
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache)

    def _is_plain(
        self, q: torch.Tensor, layer: RadixAttention, forward_batch: ForwardBatch
    ) -> bool:
        cache = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        return (
            layer.attn_type == AttentionType.DECODER
            and not layer.is_cross_attention
            and forward_batch.encoder_lens is None
            and layer.sliding_window_size <= -1
            and not self.use_sliding_window_kv_pool
            and layer.qk_head_dim == layer.v_head_dim
            and cache.dim() == 3
            and cache.is_contiguous()
            and cache.dtype == q.dtype
        )

    def _forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool,
    ) -> torch.Tensor:
        pool = self.token_to_kv_pool
        if save_kv_cache and k is not None and v is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc), k, v)
        key_cache = pool.get_key_buffer(layer.layer_id)
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        plan = self._plan(forward_batch, key_cache)
        output = plan.attend(
            query,
            key_cache,
            pool.get_value_buffer(layer.layer_id),
            layer.scaling,
            self._scratch,
        )
        return output.view(-1, layer.tp_q_head_num * layer.v_head_dim)

    def _plan(self, forward_batch: ForwardBatch, key_cache: torch.Tensor) -> AttentionPlan:
        """The plan of this pass; models with layers of different widths get one plan per width."""
        width = key_cache.shape[1] * key_cache.shape[2]
        plan = self._plans.get((width, key_cache.dtype))
        if plan is None:
            keys = forward_batch.seq_lens.tolist()
            decode = forward_batch.forward_mode.is_decode()
            plan = AttentionPlan(
                [1] * len(keys) if decode else forward_batch.extend_seq_lens.tolist(),
                keys,
                self.req_to_token_pool.req_to_token,
                forward_batch.req_pool_indices,
                width,
                key_cache.dtype,
            )
            self._plans[width, key_cache.dtype] = plan
        return plan
