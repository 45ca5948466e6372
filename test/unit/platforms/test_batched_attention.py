"""The backend ``batched_cpu`` beside ``torch_native`` on the same KV pool."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang_dynasor.platforms.batched_attention import BatchedAttnBackend

POOL, HEADS, KEY_HEADS, SIZE = 4096, 4, 2, 32


class PlainPool:
    """One layer's keys and values, written the way the real pool writes them on a CPU."""

    def __init__(self, generator: torch.Generator) -> None:
        self.key = torch.randn(POOL, KEY_HEADS, SIZE, generator=generator)
        self.value = torch.randn(POOL, KEY_HEADS, SIZE, generator=generator)

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.key

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.value

    def set_kv_buffer(self, layer: Any, where: Any, k: torch.Tensor, v: torch.Tensor) -> None:
        self.key[where.loc], self.value[where.loc] = k, v


def attention_layer(**changes: Any) -> RadixAttention:
    return RadixAttention(HEADS, SIZE, SIZE**-0.5, KEY_HEADS, layer_id=0, **changes)


def run_both(
    layer: RadixAttention, queries: list[int] | None, keys: list[int], seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of batched_cpu and torch_native; ``queries`` None means decode."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randperm(POOL, generator=generator)[: sum(keys)].to(torch.int32).split(keys)
    req_to_token = torch.zeros(len(keys) + 2, max(keys) + 5, dtype=torch.int32)
    rows = torch.randperm(len(keys) + 2, generator=generator)[: len(keys)]
    for row, slots in zip(rows, table, strict=True):
        req_to_token[row, : len(slots)] = slots
    counts = queries or [1] * len(keys)
    new = [slots[len(slots) - count :] for slots, count in zip(table, counts, strict=True)]
    batch = SimpleNamespace(
        forward_mode=ForwardMode.EXTEND if queries else ForwardMode.DECODE,
        seq_lens=torch.tensor(keys),
        extend_seq_lens=torch.tensor(counts),
        extend_prefix_lens=torch.tensor(keys) - torch.tensor(counts),
        req_pool_indices=rows,
        out_cache_loc=torch.cat(new).long(),
        encoder_lens=None,
    )
    q = torch.randn(sum(counts), HEADS * SIZE, generator=generator)
    k = torch.randn(sum(counts), KEY_HEADS, SIZE, generator=generator)
    v = torch.randn(sum(counts), KEY_HEADS, SIZE, generator=generator)
    outputs = []
    for kind in (BatchedAttnBackend, TorchNativeAttnBackend):
        runner = SimpleNamespace(
            device="cpu",
            model=torch.nn.ModuleList([layer]),
            req_to_token_pool=SimpleNamespace(req_to_token=req_to_token),
            token_to_kv_pool=PlainPool(torch.Generator().manual_seed(seed)),
        )
        backend = kind(runner)
        backend.init_forward_metadata(batch)
        forward = backend.forward_extend if queries else backend.forward_decode
        outputs.append(forward(q, k, v, layer, batch))
    return outputs[0], outputs[1]


@pytest.mark.parametrize("keys", [[1], [90], [1, 2, 3], [300, 5, 41, 41, 260, 17, 128, 3]])
def test_decode_equals_torch_native(keys: list[int]) -> None:
    ours, native = run_both(attention_layer(), None, keys)
    assert ours.shape == native.shape
    torch.testing.assert_close(ours, native, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("queries", "keys"), [([9], [9]), ([9], [50]), ([4, 1, 30], [4, 80, 100]), ([1, 1], [7, 9])]
)
def test_extend_equals_torch_native(queries: list[int], keys: list[int]) -> None:
    ours, native = run_both(attention_layer(), queries, keys)
    torch.testing.assert_close(ours, native, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("queries", [None, [3, 20]])
def test_a_sliding_window_is_left_to_torch_native(queries: list[int] | None) -> None:
    ours, native = run_both(attention_layer(sliding_window_size=8), queries, [40, 20])
    assert torch.equal(ours, native)
    unlimited, _ = run_both(attention_layer(), queries, [40, 20])
    assert not torch.allclose(ours, unlimited, atol=1e-3), "the window must matter in this test"


def test_attention_without_causality_is_left_to_torch_native() -> None:
    layer = attention_layer(attn_type=AttentionType.ENCODER_ONLY)
    ours, native = run_both(layer, [6, 4], [6, 4])
    assert torch.equal(ours, native)


def test_soft_capped_scores_are_refused_at_start() -> None:
    with pytest.raises(ValueError, match="caps its attention scores at 30"):
        run_both(attention_layer(logit_cap=30.0), None, [4])


@pytest.mark.parametrize(
    "mode", [ForwardMode.TARGET_VERIFY, ForwardMode.DRAFT_EXTEND_V2, ForwardMode.DLLM_EXTEND]
)
def test_other_forward_modes_are_refused(mode: ForwardMode) -> None:
    pool = PlainPool(torch.Generator())
    runner = SimpleNamespace(
        device="cpu",
        model=torch.nn.ModuleList(),
        req_to_token_pool=SimpleNamespace(req_to_token=None),
        token_to_kv_pool=pool,
    )
    with pytest.raises(NotImplementedError, match=mode.name):
        BatchedAttnBackend(runner).init_forward_metadata(SimpleNamespace(forward_mode=mode))
