"""Attention of many requests of different lengths as a few padded, cache-sized blocks.

A plan is made once per forward pass and serves every layer: it says which requests form a block,
where in the KV pool their tokens lie, and which keys each query may see. Padding is bounded by
sorting requests by length; a block is bounded so that its gathered keys and values are still in the
processor's cache when the attention kernel reads them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

# Bytes of gathered keys (and as many of values) in one block. Measured best between 1 and 4 MiB.
BLOCK_BYTES = 2 << 20
# Elements of one block's mask; only long prompts come near it.
MASK_ELEMENTS = 4 << 20
# Padding, in key tokens, that costs about as much as launching one more block.
PADDING_TOKENS = 512.0
# One (query, key) pair costs about this fraction of gathering one key token.
PAIR_COST = 0.2


@dataclass(frozen=True, slots=True)
class Block:
    """Some requests, padded to their longest.

    ``tokens`` selects the ``count * queries`` query tokens (a slice where they are contiguous); a
    padded query repeats its request's last one, so writing its output twice changes nothing.
    ``slots`` holds the ``count * keys`` KV pool slots. ``mask`` is additive, [count, 1, queries,
    keys], or None.
    """

    count: int
    queries: int
    keys: int
    tokens: slice | torch.Tensor
    slots: torch.Tensor
    mask: torch.Tensor | None
    causal: bool


class Scratch:
    """Two buffers for gathered keys and values, kept between calls.

    Fresh buffers of this size come as unmapped pages, and faulting those in costs several times the
    copy.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor | None] = [None, None]

    def gather(self, which: int, cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Rows ``slots`` of ``cache`` [pool, heads, size] as [len(slots), heads, size]."""
        width = cache.shape[1] * cache.shape[2]
        needed = slots.numel() * width
        buffer = self._buffers[which]
        if buffer is None or buffer.numel() < needed or buffer.dtype != cache.dtype:
            buffer = cache.new_empty(needed)
            self._buffers[which] = buffer
        rows = buffer[:needed].view(-1, width)
        torch.index_select(cache.view(-1, width), 0, slots, out=rows)
        return rows.view(-1, *cache.shape[1:])


def cut_blocks(
    queries: Sequence[int], keys: Sequence[int], block_tokens: int
) -> list[tuple[int, int]]:
    """Cut requests, sorted by falling length, into half-open ranges of at most ``block_tokens``
    keys.

    A range ends early where padding the next request would waste more than one more block costs.
    A single request longer than ``block_tokens`` gets a block of its own.
    """
    ranges: list[tuple[int, int]] = []
    start, longest, most, useful = 0, 0, 0, 0.0
    for row, (query, key) in enumerate(zip(queries, keys, strict=True)):
        count = row - start + 1
        top_key, top_query = max(longest, key), max(most, query)
        cost = key * (1 + PAIR_COST * query)
        padding = count * top_key * (1 + PAIR_COST * top_query) - useful - cost
        full = (
            count * top_key > block_tokens
            or count * top_key * top_query > MASK_ELEMENTS
            or padding > PADDING_TOKENS
        )
        if full and count > 1:
            ranges.append((start, row))
            start, longest, most, useful = row, key, query, cost
        else:
            longest, most, useful = top_key, top_query, useful + cost
    if queries:
        ranges.append((start, len(queries)))
    return ranges


class AttentionPlan:
    """The blocks of one forward pass.

    Args:
        queries: new tokens per request (1 each in decode), in the order of the packed query tensor.
        keys: tokens per request that may be seen, the new ones included.
        slot_table: [requests of the pool, context] int, KV slot of every token (``req_to_token``).
        rows: [batch] int, row of each request in ``slot_table``.
        width: elements per cached token (heads * head size).
        dtype: dtype of queries, keys and values.
    """

    def __init__(
        self,
        queries: Sequence[int],
        keys: Sequence[int],
        slot_table: torch.Tensor,
        rows: torch.Tensor,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        batch = len(queries)
        block_tokens = max(1, BLOCK_BYTES // (width * dtype.itemsize))
        order = list(range(batch))
        if batch * max(keys, default=0) - sum(keys) > PADDING_TOKENS or len(set(queries)) > 1:
            order.sort(key=lambda row: (queries[row], keys[row]), reverse=True)
        starts = [0]
        for count in queries:
            starts.append(starts[-1] + count)
        ranges = cut_blocks(
            [queries[row] for row in order], [keys[row] for row in order], block_tokens
        )
        if max(queries, default=1) == 1:
            self.blocks = _decode_blocks(order, ranges, keys, slot_table, rows, dtype)
        else:
            self.blocks = [
                _extend_block(order[start:stop], starts, keys, slot_table, rows, dtype)
                for start, stop in ranges
            ]

    def attend(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        scale: float,
        scratch: Scratch,
    ) -> torch.Tensor:
        """Attention of every query over its own request's keys.

        Args:
            query: [tokens, query heads, size], packed in request order.
            key_cache, value_cache: [pool, key heads, size], contiguous; query heads are a multiple.
            scale: factor on the scores.

        Returns:
            [tokens, query heads, size]
        """
        output = torch.empty_like(query)
        for block in self.blocks:
            result = _attend_block(block, query, key_cache, value_cache, scale, scratch)
            if isinstance(block.tokens, slice):
                output[block.tokens].view(result.shape).copy_(result)
            else:
                output.index_copy_(0, block.tokens, result.reshape(-1, *query.shape[1:]))
        return output


def _decode_blocks(
    order: list[int],
    ranges: list[tuple[int, int]],
    keys: Sequence[int],
    slot_table: torch.Tensor,
    rows: torch.Tensor,
    dtype: torch.dtype,
) -> list[Block]:
    """Blocks of one query each. Made at every step, so slots and mask are cut from one table."""
    in_order = order == list(range(len(order)))
    sorted_rows = torch.tensor(order)
    lengths = torch.tensor([keys[row] for row in order], dtype=torch.int32)
    longest = max(keys, default=0)
    slots = slot_table[:, :longest].index_select(0, rows if in_order else rows[sorted_rows])
    beyond = torch.arange(longest, dtype=torch.int32) >= lengths.unsqueeze_(1)
    # Beyond its length a row of the table holds the slots of earlier requests; slot 0 always is.
    slots.masked_fill_(beyond, 0)
    mask = torch.zeros(beyond.shape, dtype=dtype).masked_fill_(beyond, -math.inf)
    blocks = []
    for start, stop in ranges:
        lengths_here = [keys[row] for row in order[start:stop]]
        top = max(lengths_here)
        blocks.append(
            Block(
                count=stop - start,
                queries=1,
                keys=top,
                tokens=slice(start, stop) if in_order else sorted_rows[start:stop],
                slots=slots[start:stop, :top].reshape(-1),
                mask=mask[start:stop, None, None, :top] if min(lengths_here) < top else None,
                causal=False,
            )
        )
    return blocks


def _extend_block(
    members: list[int],
    starts: list[int],
    keys: Sequence[int],
    slot_table: torch.Tensor,
    rows: torch.Tensor,
    dtype: torch.dtype,
) -> Block:
    count = len(members)
    lengths = [starts[row + 1] - starts[row] for row in members]
    most, longest = max(lengths), max(keys[row] for row in members)
    member_keys = torch.tensor([keys[row] for row in members], dtype=torch.int32)
    first = members[0]
    in_order = members == list(range(first, first + count))
    if in_order and min(lengths) == most:
        tokens: slice | torch.Tensor = slice(starts[first], starts[first + count])
        member_rows = rows[first : first + count]
    else:
        offsets = torch.arange(most)
        last = torch.tensor(lengths).sub_(1).unsqueeze_(1)
        member_starts = torch.tensor([starts[row] for row in members]).unsqueeze_(1)
        tokens = (member_starts + torch.minimum(offsets, last)).view(-1)
        member_rows = rows[torch.tensor(members)]
    slots = slot_table[:, :longest].index_select(0, member_rows)
    positions = torch.arange(longest, dtype=torch.int32)
    slots.masked_fill_(positions >= member_keys.unsqueeze(1), 0)
    # A lone whole prompt is the square causal case the kernel knows without a mask.
    causal = count == 1 and most == longest and most > 1
    mask = None
    if not causal:
        query_lengths = torch.tensor(lengths, dtype=torch.int32).unsqueeze_(1)
        reach = torch.minimum(torch.arange(most, dtype=torch.int32), query_lengths - 1)
        visible = (member_keys.unsqueeze(1) - query_lengths + reach).view(count, 1, most, 1)
        mask = torch.zeros(count, 1, most, longest, dtype=dtype)
        mask.masked_fill_(positions > visible, -math.inf)
    return Block(count, most, longest, tokens, slots.view(-1), mask, causal)


def _attend_block(
    block: Block,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    scale: float,
    scratch: Scratch,
) -> torch.Tensor:
    """Output of one block, [count, queries, query heads, size] in memory order of its tokens."""
    heads, size = query.shape[1:]
    key_heads = key_cache.shape[1]
    shape = (block.count, block.keys, key_heads, size)
    key = scratch.gather(0, key_cache, block.slots).view(shape).transpose(1, 2)
    value = scratch.gather(1, value_cache, block.slots).view(shape).transpose(1, 2)
    chosen = (
        query[block.tokens]
        if isinstance(block.tokens, slice)
        else query.index_select(0, block.tokens)
    )
    if block.queries == 1:
        # Query heads that share a key head become further queries of it: no key is read twice.
        folded = chosen.view(block.count, key_heads, heads // key_heads, size)
        result = scaled_dot_product_attention(folded, key, value, attn_mask=block.mask, scale=scale)
        return result.reshape(block.count, 1, heads, size)
    result = scaled_dot_product_attention(
        chosen.view(block.count, block.queries, heads, size).transpose(1, 2),
        key,
        value,
        attn_mask=block.mask,
        is_causal=block.causal,
        scale=scale,
        enable_gqa=heads != key_heads,
    )
    return result.transpose(1, 2)
