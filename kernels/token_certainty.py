"""How certain a model is of its next token: six figures from one read of a row of logits.

With p = softmax(x) over the m entries of a row that are not -inf (a masked token can't be sampled,
so it's no part of the distribution; left in, one of them would make the last two figures infinite):

    entropy           -sum p log p                                       nats, 0 to log m
    logsumexp         log sum exp x                                      nats
    top1_probability  p1, the largest p                                  1/m to 1
    top2_margin       p1 - p2, 0 on a tie; m = 1: 1                      0 to 1
    self_certainty    KL(uniform || p) = -mean log p - log m             nats, 0 or more
    confidence        DeepConf: -mean log p of the min(top_k, m) largest nats, 0 or more

A row that is masked throughout has logsumexp -inf and NaN elsewhere; a row with a NaN or +inf has
NaN in every column. Finite entries are taken to lie within +-1e30.
"""

from __future__ import annotations

import torch

COLUMNS = (
    "entropy",
    "logsumexp",
    "top1_probability",
    "top2_margin",
    "self_certainty",
    "confidence",
)
MAX_TOP_K = 32
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
    return _torch(logits, top_k)


def _check(logits: torch.Tensor, top_k: int) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits: expected [batch, vocab >= 1], got {list(logits.shape)}")
    if logits.dtype not in _DTYPES:
        raise ValueError(f"logits: expected float32, bfloat16 or float16, got {logits.dtype}")
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError(f"logits: expected column stride 1, got {logits.stride(1)}")
    if not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(f"top_k: expected 1 to {MAX_TOP_K}, got {top_k}")


def _torch(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """The same with torch operations: for CPUs, and free of syncs like the kernel."""
    x = logits.float()
    top = _largest(x, max(top_k, 2))
    largest = top[:, :1]
    x = x - largest  # so that a common offset costs no digits
    masked = x == -torch.inf
    num_masked = masked.sum(1)
    e = x.exp()
    x.masked_fill_(masked, 0.0)
    total = e.sum(1)
    log_total = total.log()
    size = (x.shape[1] - num_masked).float()
    top = top - largest  # a new tensor: `largest` is a view of the old one
    finite = (top > -torch.inf)[:, :top_k]
    mean_of_top = top[:, :top_k].masked_fill(~finite, 0.0).sum(1) / finite.sum(1)
    p1 = total.reciprocal()
    p2 = top[:, 1].exp() * p1 if top.shape[1] > 1 else 0.0
    columns = (
        (log_total - torch.linalg.vecdot(e, x) * p1).clamp(min=0.0),
        torch.where(largest == -torch.inf, largest, largest + log_total[:, None])[:, 0],
        p1,
        p1 - p2,
        (log_total - x.sum(1) / size - size.log()).clamp(min=0.0),
        (log_total - mean_of_top).clamp(min=0.0),
    )
    return torch.stack(columns, 1)


def _largest(x: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest values of each row, descending; all of them if the row is shorter."""
    return x.topk(min(k, x.shape[1])).values
