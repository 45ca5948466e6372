"""Batched attention against a float64 reference that treats one sequence at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.platforms import attention_plan
from sglang_dynasor.platforms.attention_plan import AttentionPlan, Scratch, cut_blocks

CONTEXT = 600
SIZE = 16


def reference(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    table: torch.Tensor,
    rows: list[int],
    queries: list[int],
    keys: list[int],
) -> torch.Tensor:
    """Attention in float64; query j of a request sees its first keys - queries + j + 1 tokens."""
    group = query.shape[1] // key_cache.shape[1]
    outputs, start = [], 0
    for row, count, length in zip(rows, queries, keys, strict=True):
        slots = table[row, :length].long()
        key = key_cache[slots].double().repeat_interleave(group, dim=1)
        value = value_cache[slots].double().repeat_interleave(group, dim=1)
        for j in range(count):
            seen = length - count + j + 1
            scores = torch.einsum("hd,lhd->hl", query[start + j].double(), key[:seen])
            weights = (scores / math.sqrt(query.shape[2])).softmax(dim=1)
            outputs.append(torch.einsum("hl,lhd->hd", weights, value[:seen]))
        start += count
    return torch.stack(outputs)


def check(queries: list[int], keys: list[int], heads: int, key_heads: int, seed: int) -> int:
    """Compare on random data; return the number of blocks the plan made."""
    generator = torch.Generator().manual_seed(seed)
    batch, pool = len(keys), sum(keys) + 1
    table = torch.randint(0, pool, (batch + 3, CONTEXT), generator=generator, dtype=torch.int32)
    rows = torch.randperm(batch + 3, generator=generator)[:batch]
    key_cache = torch.randn(pool, key_heads, SIZE, generator=generator)
    value_cache = torch.randn(pool, key_heads, SIZE, generator=generator)
    query = torch.randn(sum(queries), heads, SIZE, generator=generator)
    plan = AttentionPlan(queries, keys, table, rows, key_heads * SIZE, torch.float32)
    output = plan.attend(query, key_cache, value_cache, SIZE**-0.5, Scratch())
    expected = reference(query, key_cache, value_cache, table, rows.tolist(), queries, keys)
    torch.testing.assert_close(output.double(), expected, atol=2e-5, rtol=1e-4)
    return len(plan.blocks)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (9, 3), (8, 1)])
@pytest.mark.parametrize("keys", [[1], [37], [5, 5, 5], [1, 300, 2, 17, 299, 64]])
def test_decode_equals_the_reference(heads: int, key_heads: int, keys: list[int]) -> None:
    check([1] * len(keys), keys, heads, key_heads, seed=1)


def test_decode_of_a_large_mixed_batch_equals_the_reference() -> None:
    generator = torch.Generator().manual_seed(2)
    keys = torch.randint(1, 500, (128,), generator=generator).tolist()
    assert check([1] * 128, keys, 4, 2, seed=2) > 1


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ([7], [7]),
        ([7], [40]),
        ([1], [1]),
        ([3, 3], [3, 3]),
        ([5, 1, 9, 1], [5, 80, 30, 1]),
        ([64, 2, 2, 64], [64, 2, 300, 500]),
    ],
    ids=["prompt", "after a prefix", "one token", "equal", "mixed with decode rows", "uneven"],
)
def test_extend_equals_the_reference(queries: list[int], keys: list[int]) -> None:
    check(queries, keys, 4, 2, seed=3)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 60)), min_size=1, max_size=9),
    groups=st.sampled_from([1, 2, 3]),
    key_heads=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**16),
)
def test_any_batch_equals_the_reference(
    requests: list[tuple[int, int]], groups: int, key_heads: int, seed: int
) -> None:
    queries = [count for count, _ in requests]
    keys = [count + prefix for count, prefix in requests]
    check(queries, keys, groups * key_heads, key_heads, seed)


def test_small_blocks_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_plan, "BLOCK_BYTES", 32 * 4 * 50)
    assert check([1] * 8, [40, 41, 3, 120, 60, 7, 7, 50], 4, 2, seed=4) >= 5


def test_stale_slots_of_earlier_requests_are_never_read() -> None:
    """Behind its length a row of the slot table keeps old entries; here they are poisoned."""
    table = torch.full((2, 64), 5, dtype=torch.int32)
    table[0, :3] = torch.tensor([1, 2, 3])
    table[1, :20] = torch.arange(6, 26)
    cache = torch.ones(30, 1, SIZE)
    cache[5] = math.nan
    plan = AttentionPlan([1, 1], [3, 20], table, torch.tensor([0, 1]), SIZE, torch.float32)
    output = plan.attend(torch.ones(2, 1, SIZE), cache, cache, 1.0, Scratch())
    torch.testing.assert_close(output, torch.ones(2, 1, SIZE))


def test_scratch_serves_layers_of_different_width_and_dtype() -> None:
    scratch = Scratch()
    slots = torch.tensor([2, 0, 2])
    for shape, dtype in [
        ((4, 2, 8), torch.float32),
        ((4, 1, 4), torch.float64),
        ((9, 3, 8), torch.float32),
    ]:
        cache = torch.arange(math.prod(shape), dtype=dtype).view(shape)
        assert torch.equal(scratch.gather(0, cache, slots), cache[slots])


@given(
    keys=st.lists(st.integers(1, 5000), min_size=0, max_size=80),
    block_tokens=st.integers(1, 8192),
)
def test_blocks_cover_every_request_once_within_the_limit(
    keys: list[int], block_tokens: int
) -> None:
    keys.sort(reverse=True)
    ranges = cut_blocks([1] * len(keys), keys, block_tokens)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(len(keys)))
    for start, stop in ranges:
        padded = (stop - start) * keys[start]
        assert stop - start == 1 or padded <= block_tokens
        spare = attention_plan.PADDING_TOKENS * (1 + attention_plan.PAIR_COST)
        assert stop - start == 1 or padded - sum(keys[start:stop]) <= spare
