"""The Triton branch of `token_certainty`: one read of the logits, by as much of the chip as helps.

1. `_scan_kernel`, grid (rows, splits): a program reads its share of a row block by block. For each
   group of 64 columns in a block it keeps a running maximum m and, over the unmasked entries, the
   sums of e, e x, x and 1, where x is the distance to m and e = exp x. To rebase such sums on a
   larger m takes nothing but themselves. It stores their total, and the maximum of each group read.
2. `_merge_kernel`, grid (rows,): adds up the splits and finds the top k. These lie in the k groups
   with the largest maxima, so it reads just these logits again, which the L2 cache still has. Both
   searches bisect for a threshold: a count per step, where k rounds of maximum and removal would
   each wait for a slower reduction.

With few rows (decode) every block is a program of its own; with many, a program folds several.
Which one depends on the shape alone, as do both launches: safe in a CUDA graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

FEW_ROWS = 32
MAX_VOCAB = 1 << 19
_GROUP = 64  # columns per maximum: about sqrt(vocabulary / top_k), so both searches are short
_MAX_GROUPS = 4096  # held in registers by one program of `_merge_kernel`; beyond: wider groups
_NUM_SUMS = 5  # m and the four sums
_MAX_SPLITS = 256
_MERGE_WARPS = 4
_MANY_PROGRAMS = 1024  # several waves on any chip, and still several blocks per program
_NUM_SLOTS = tl.constexpr(32)  # MAX_TOP_K
_MASKED = tl.constexpr(-1e30)
_INF = tl.constexpr(float("inf"))
_MASKED_KEY = tl.constexpr(-0x7F800001)  # _ordered(-inf)


class Plan(NamedTuple):
    """How a shape is launched."""

    block: int  # columns read at a time
    num_warps: int
    blocks: int  # per program
    splits: int  # programs per row
    group: int  # columns per maximum


def plan_scan(rows: int, vocab: int) -> Plan:
    """Return the launch of `_scan_kernel` for a shape."""
    if rows <= FEW_ROWS:
        block, num_warps, wanted = 1024, 4, _MAX_SPLITS
    else:
        block, num_warps, wanted = 4096, 8, triton.cdiv(_MANY_PROGRAMS, rows)
    blocks = triton.cdiv(triton.cdiv(vocab, block), wanted)
    group = _GROUP if vocab <= _GROUP * _MAX_GROUPS else 2 * _GROUP
    return Plan(block, num_warps, blocks, triton.cdiv(vocab, blocks * block), group)


@triton.jit
def _rebase(m, s, t, d, n, new_m):
    """The sums under the maximum new_m >= m. An empty sum (m = -inf) stays zero."""
    shift = tl.where(m == -_INF, 0.0, m - new_m)
    scale = tl.exp(shift)
    return s * scale, (t + s * shift) * scale, d + n * shift


@triton.jit
def _fold_block(
    x_ptr,
    maxima_ptr,
    start,
    n_cols,
    m,
    s,
    t,
    d,
    n,
    TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    VEC: tl.constexpr,
):
    """Add one block to the sums: m [groups], the others [groups, lanes], a lane per 16 bytes."""
    cols = start + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + cols, mask=cols < n_cols, other=-_INF) if TAIL else tl.load(x_ptr + cols)
    x = tl.reshape(x.to(tl.float32), [BLOCK // GROUP, GROUP // VEC, VEC])
    masked = x <= _MASKED
    x = tl.where(masked, -_INF, x)
    group_max = tl.max(tl.max(x, 2), 1)
    group_max = tl.where(group_max > -_INF, group_max, -_INF)  # all NaN: the sums will tell
    groups = start // GROUP + tl.arange(0, BLOCK // GROUP)
    tl.store(maxima_ptr + groups, group_max, mask=groups * GROUP < n_cols)

    new_m = tl.maximum(m, group_max)
    s, t, d = _rebase(m[:, None], s, t, d, n, new_m[:, None])
    # A group that is masked so far has no maximum to measure from: exp(-inf - 0) = 0 is right.
    x -= tl.where(new_m == -_INF, 0.0, new_m)[:, None, None]
    e = tl.exp(x)
    x = tl.where(masked, 0.0, x)
    s += tl.sum(e, 2)
    t += tl.sum(e * x, 2)
    d += tl.sum(x, 2)
    n += tl.sum(tl.where(masked, 0.0, 1.0), 2)
    return new_m, s, t, d, n


@triton.jit(do_not_specialize=["n_groups", "blocks"])
def _scan_kernel(
    x_ptr,  # [rows, n_cols]
    sums_ptr,  # float32 [rows, 5, splits]
    maxima_ptr,  # float32 [rows, n_groups]
    x_stride,
    n_cols,
    n_groups,
    blocks,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    VEC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    x_ptr += row * x_stride
    maxima_ptr += row * n_groups
    m = tl.full([BLOCK // GROUP], -_INF, tl.float32)
    s = tl.zeros([BLOCK // GROUP, GROUP // VEC], tl.float32)
    t, d, n = s, s, s

    start = split * blocks * BLOCK
    end = tl.minimum(start + blocks * BLOCK, n_cols)
    whole = start + (end - start) // BLOCK * BLOCK  # without a mask: the load is 16 bytes wide
    for at in range(start, whole, BLOCK):
        m, s, t, d, n = _fold_block(
            x_ptr, maxima_ptr, at, n_cols, m, s, t, d, n, False, BLOCK, GROUP, VEC
        )
    if whole < end:
        m, s, t, d, n = _fold_block(
            x_ptr, maxima_ptr, whole, n_cols, m, s, t, d, n, True, BLOCK, GROUP, VEC
        )

    row_m = tl.max(m, 0)
    s, t, d = _rebase(m[:, None], s, t, d, n, row_m)
    splits = tl.num_programs(1)
    sums_ptr += row * 5 * splits + split
    tl.store(sums_ptr, row_m)
    tl.store(sums_ptr + splits, tl.sum(s))
    tl.store(sums_ptr + 2 * splits, tl.sum(t))
    tl.store(sums_ptr + 3 * splits, tl.sum(d))
    tl.store(sums_ptr + 4 * splits, tl.sum(n))


@triton.jit
def _ordered(x):
    """Integers in the order of the floats, -inf the least of them."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _bisect(key, least, most):
    """The largest threshold found with at least ``least`` keys at or above it, and their number.

    Stops at a number of at most ``most``, or where no threshold is between too many and too few:
    then the keys equal to it are the ones too many.
    """
    low = tl.full([], _MASKED_KEY, tl.int32)
    n_low = tl.full([], key.numel, tl.int32)
    high = tl.max(key, 0) + 1
    middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
    while (n_low > most) & (middle > low):
        n_middle = tl.sum((key >= middle).to(tl.int32))
        enough = n_middle >= least
        low = tl.where(enough, middle, low)
        n_low = tl.where(enough, n_middle, n_low)
        high = tl.where(enough, high, middle)
        middle = (low & high) + ((low ^ high) >> 1)
    return low, n_low


@triton.jit(do_not_specialize=["n_groups", "splits", "top_k"])
def _merge_kernel(
    x_ptr,  # [rows, n_cols]
    sums_ptr,  # float32 [rows, 5, splits]
    maxima_ptr,  # float32 [rows, n_groups]
    chosen_ptr,  # int32 [rows, 32]
    out_ptr,  # float32 [rows, 6]
    x_stride,
    n_cols,
    n_groups,
    splits,
    top_k,
    SPLITS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride

    # Step 1: the sums of the whole row.
    part = tl.arange(0, SPLITS)
    sums_ptr += row * 5 * splits + part
    here = part < splits
    m = tl.load(sums_ptr, mask=here, other=-_INF)
    s = tl.load(sums_ptr + splits, mask=here, other=0.0)
    t = tl.load(sums_ptr + 2 * splits, mask=here, other=0.0)
    d = tl.load(sums_ptr + 3 * splits, mask=here, other=0.0)
    n = tl.load(sums_ptr + 4 * splits, mask=here, other=0.0)
    row_m = tl.max(m, 0)
    s, t, d = _rebase(m, s, t, d, n, row_m)
    s, t, d, n = tl.sum(s), tl.sum(t), tl.sum(d), tl.sum(n)
    s = tl.where(n == 0.0, float("nan"), s)  # masked throughout

    # Step 2: at most 32 groups, those with the k largest maxima among them (top-2 needs two).
    group = tl.arange(0, GROUPS)
    maxima = tl.load(maxima_ptr + row * n_groups + group, mask=group < n_groups, other=-_INF)
    key = _ordered(maxima)
    low, _ = _bisect(key, tl.maximum(top_k, 2), _NUM_SLOTS)
    above = (key > low).to(tl.int32)
    equal = ((key == low) & (key > _MASKED_KEY)).to(tl.int32)
    n_above = tl.sum(above)
    n_chosen = tl.minimum(n_above + tl.sum(equal), _NUM_SLOTS)
    count = tl.cumsum(above + equal * 65536)  # both at once: there are fewer than 32,768 groups
    place = tl.where(above > 0, count % 65536, n_above + count // 65536) - 1
    chosen_ptr += row * _NUM_SLOTS
    tl.store(chosen_ptr + place, group, mask=(above + equal > 0) & (place < n_chosen))
    tl.debug_barrier()  # what some threads stored, others load
    slot = tl.arange(0, _NUM_SLOTS)
    chosen = tl.load(chosen_ptr + slot, mask=slot < n_chosen, other=0)

    # Step 3: among their entries the k-th largest, the sum down to it, and the second largest.
    cols = chosen[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    wanted = (slot < n_chosen)[:, None] & (cols < n_cols)
    x = tl.load(x_ptr + cols, mask=wanted, other=-_INF).to(tl.float32)
    x = tl.reshape(tl.where(x > _MASKED, x, -_INF), [_NUM_SLOTS * GROUP])
    key = _ordered(x)
    low, _ = _bisect(key, top_k, top_k)
    n_above = tl.sum((key > low).to(tl.int32))
    top_sum = tl.sum(tl.where(key > low, x - row_m, 0.0))
    kth = tl.max(tl.where(key == low, x, -_INF), 0)
    top_sum += tl.where(kth > -_INF, (top_k - n_above) * (kth - row_m), 0.0)
    entry = tl.arange(0, _NUM_SLOTS * GROUP)
    first = tl.argmax(x, 0, tie_break_left=False)
    second = tl.max(tl.where(entry == first, -_INF, x), 0)

    # Step 4: the columns. Rounding may leave -1e-7 where the least is 0; NaN stays.
    log_s = tl.log(s)
    entropy = log_s - t / s
    self_certainty = log_s - d / n - tl.log(n)
    confidence = log_s - top_sum / tl.minimum(top_k.to(tl.float32), n)
    out_ptr += row * 6
    tl.store(out_ptr, tl.where(entropy < 0.0, 0.0, entropy))
    tl.store(out_ptr + 1, tl.where(n == 0.0, -_INF, row_m + log_s))
    tl.store(out_ptr + 2, 1.0 / s)
    tl.store(out_ptr + 3, (1.0 - tl.exp(second - row_m)) / s)
    tl.store(out_ptr + 4, tl.where(self_certainty < 0.0, 0.0, self_certainty))
    tl.store(out_ptr + 5, tl.where(confidence < 0.0, 0.0, confidence))


class Launch(NamedTuple):
    """One kernel launch, not yet made."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, int]


def token_certainty_triton(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Launch both kernels; `token_certainty` has checked the arguments, and says what is returned.

    CPU tensors: Triton's interpreter only. Raises ValueError for a vocabulary above 524,288.
    """
    out = torch.empty((logits.shape[0], 6), dtype=torch.float32, device=logits.device)
    for launch in launches(logits, top_k, out):
        launch.kernel[launch.grid](*launch.arguments, **launch.options)
    return out


def launches(logits: torch.Tensor, top_k: int, out: torch.Tensor) -> tuple[Launch, Launch]:
    """Return the launches that fill ``out``; meta tensors will do for a look at them."""
    rows, vocab = logits.shape
    if vocab > MAX_VOCAB:
        raise ValueError(f"logits: expected a vocabulary of at most {MAX_VOCAB}, got {vocab}")
    plan = plan_scan(rows, vocab)
    n_groups = triton.cdiv(vocab, plan.group)
    sums = logits.new_empty((rows, _NUM_SUMS, plan.splits), dtype=torch.float32)
    maxima = logits.new_empty((rows, n_groups), dtype=torch.float32)
    chosen = logits.new_empty((rows, _NUM_SLOTS.value), dtype=torch.int32)
    stride = logits.stride(0)
    vec = 16 // logits.element_size()
    scan = Launch(
        _scan_kernel,
        (rows, plan.splits),
        (logits, sums, maxima, stride, vocab, n_groups, plan.blocks),
        {"BLOCK": plan.block, "GROUP": plan.group, "VEC": vec, "num_warps": plan.num_warps},
    )
    pad = triton.next_power_of_2
    counts = {"SPLITS": pad(plan.splits), "GROUPS": pad(n_groups)}
    merge = Launch(
        _merge_kernel,
        (rows,),
        (logits, sums, maxima, chosen, out, stride, vocab, n_groups, plan.splits, top_k),
        counts | {"GROUP": plan.group, "num_warps": _MERGE_WARPS},
    )
    return scan, merge
