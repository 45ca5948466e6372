"""How certain a model is of its next token: six figures from one read of a row of logits.

An entry of -1e30 or less is masked: masks are written as -inf or as the lowest float. A masked
token can't be sampled, so it's no part of the distribution (left in, a single one would make
the last two figures infinite). With p = softmax(x) over the m other entries of a row:

    entropy           -sum p log p                                       nats, 0 to log m
    logsumexp         log sum exp x                                      nats
    top1_probability  p1, the largest p                                  1/m to 1
    top2_margin       p1 - p2, 0 on a tie; m = 1: 1                      0 to 1
    self_certainty    KL(uniform || p) = -mean log p - log m             nats, 0 or more
    confidence        DeepConf: -mean log p of the min(top_k, m) largest nats, 0 or more

A row that is masked throughout has logsumexp -inf and NaN elsewhere; a row with a NaN or +inf has
NaN in every column. Entries that are not masked are taken to lie within +-1e20.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch.nn.functional import threshold

COLUMNS = (
    "entropy",
    "logsumexp",
    "top1_probability",
    "top2_margin",
    "self_certainty",
    "confidence",
)
MAX_TOP_K = 32
_MASKED = -1e30
_CPU_CHUNK = 1 << 16  # entries worked on at a time: the tensors of a chunk stay in the cache
_SMALL = 1 << 16  # entries up to which numpy's shorter calls win, in rows that are quickly sorted
_SMALL_VOCAB = 1024
_CPU_GROUP = 64  # columns per maximum in the first step of the CPU's top-k
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def token_certainty(logits: torch.Tensor, top_k: int = 20) -> torch.Tensor:
    """Measure each row of ``logits`` [batch, vocab]; return a fresh float32 [batch, 6] beside it.

    Columns as in `COLUMNS`, computed in float32. No host sync and nothing that depends on values
    but the result, so the call may be captured in a CUDA graph. Rows may have any stride.

    Raises ValueError for another shape, dtype or column stride, and for top_k outside 1 to 32;
    a top_k above the vocabulary takes all of it.
    """
    _check(logits, top_k)
    if logits.shape[0] == 0:
        return torch.empty((0, len(COLUMNS)), dtype=torch.float32, device=logits.device)
    if logits.is_cuda:
        from .token_certainty_triton import token_certainty_triton

        return token_certainty_triton(logits, top_k)
    if is_small(logits):
        values = _small(logits.detach().float().numpy(), top_k)
        if values is not None:
            return torch.from_numpy(values)
    return _torch(logits, top_k)


def is_small(logits: torch.Tensor) -> bool:
    """Say whether calls take longer than what they compute: few logits, on the CPU."""
    few = logits.numel() <= _SMALL and logits.shape[1] <= _SMALL_VOCAB
    return few and logits.device.type == "cpu"


def _check(logits: torch.Tensor, top_k: int) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits: expected [batch, vocab >= 1], got {list(logits.shape)}")
    if logits.dtype not in _DTYPES:
        raise ValueError(f"logits: expected float32, bfloat16 or float16, got {logits.dtype}")
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError(f"logits: expected column stride 1, got {logits.stride(1)}")
    if not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(f"top_k: expected 1 to {MAX_TOP_K}, got {top_k}")


def _small(logits: np.ndarray, top_k: int) -> np.ndarray | None:
    """The same for few values on the CPU, where a call costs more than what it computes.

    None where an entry is masked or is no finite number.
    """
    x = np.sort(logits, axis=1)
    largest = x[:, -1:]
    if not (x[:, 0].min() > _MASKED and largest.max() < np.inf):  # a NaN is sorted last
        return None
    size = x.shape[1]
    x = x - largest
    e = np.exp(x)
    total = e.sum(1)
    log_total = np.log(total)
    p1 = 1.0 / total
    out = np.empty((len(x), len(COLUMNS)), np.float32)
    out[:, 0] = log_total - np.einsum("ij,ij->i", e, x) * p1
    out[:, 2] = p1
    out[:, 3] = p1 - e[:, -2] * p1 if size > 1 else p1
    out[:, 4:] = log_total[:, None] - x @ _averages(size, top_k)
    out[:, 4] -= math.log(size)
    np.maximum(out, 0.0, out=out)  # rounding may leave -1e-7
    out[:, 1] = largest[:, 0] + log_total
    return out


@cache
def _averages(size: int, top_k: int) -> np.ndarray:
    """Weights [size, 2] of an ascending row in its mean and in the mean of its top k."""
    weights = np.zeros((size, 2), np.float32)
    weights[:, 0] = 1.0 / size
    weights[-top_k:, 1] = 1.0 / min(top_k, size)
    return weights


def _torch(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """The same with torch operations, few of them and none that waits for a value."""
    chunk = max(1, _CPU_CHUNK // logits.shape[1])
    parts = [_row_sums(rows, max(top_k, 2)) for rows in logits.split(chunk)]
    columns = parts[0] if len(parts) == 1 else [torch.cat(c) for c in zip(*parts, strict=True)]
    top, row_max, p1, p_dot_x, x_sum, masks = columns
    log_p1 = p1.log()
    size = masks.div(-_MASKED).round_().add_(logits.shape[1])
    top_sum = threshold(top[:, :top_k] - row_max, _MASKED / 2, 0.0).sum(1)
    second = (top[:, 1:2] - row_max).exp_()[:, 0] if top.shape[1] > 1 else 0.0
    figures = (
        -(log_p1 + p_dot_x),
        torch.where(top[:, 0] <= _MASKED, -torch.inf, top[:, 0] - log_p1),
        p1,
        p1 * (1.0 - second),
        -(log_p1 + x_sum / size + size.log()),
        -(log_p1 + top_sum / size.clamp(max=top_k)),
    )
    out = torch.stack(figures, 1)
    out[:, 0].clamp_(min=0.0)  # rounding may leave -1e-7
    out[:, 4:].clamp_(min=0.0)
    return out


def _row_sums(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, ...]:
    """The k largest of each row, its maximum, and of x: largest p, sum of p x, of x, and of masks.

    Here x is the distance to the row's maximum, so that a common offset costs no digits.
    """
    logits = logits.float()
    top = _largest(logits, k)
    row_max = threshold(top[:, :1], _MASKED, torch.nan)
    x = logits - row_max
    p = x.softmax(1)
    unmasked = threshold(x, _MASKED / 2, 0.0)
    p1 = p.amax(1)
    # A masked entry counts as 1e30, beside which the others vanish: cheaper than a comparison.
    masks = x.clamp_(min=_MASKED).sum(1)
    return top, row_max, p1, p.mul_(unmasked).sum(1), unmasked.sum(1), masks


def _largest(x: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest values of each row, descending; all of them if the row is shorter.

    They lie in the k groups of columns with the largest maxima, so a long row is sorted no further.
    """
    width = x.shape[1] // _CPU_GROUP
    if width < 4 * k:
        return x.topk(min(k, x.shape[1])).values
    whole = width * _CPU_GROUP
    groups = x[:, :whole].unflatten(1, (_CPU_GROUP, width))
    chosen = groups.amax(1, keepdim=True).topk(k, sorted=False).indices
    candidates = groups.gather(2, chosen.expand(-1, _CPU_GROUP, -1)).flatten(1)
    if whole < x.shape[1]:
        candidates = torch.cat((candidates, x[:, whole:]), 1)
    return candidates.topk(k).values
