"""Token certainty in float64, row by row from the formulas: what every other branch is held to."""

from __future__ import annotations

import math

import torch


def token_certainty_reference(logits: torch.Tensor, top_k: int = 20) -> torch.Tensor:
    """Return the columns of `token_certainty` as float64 [batch, 6] on the CPU."""
    rows = [_row(row, top_k) for row in logits.double().cpu()]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)


def _row(row: torch.Tensor, top_k: int) -> tuple[float, ...]:
    nan = math.nan
    if bool((torch.isnan(row) | (row == math.inf)).any()):
        return (nan,) * 6
    support = row[row > -math.inf]
    if support.numel() == 0:
        return (nan, -math.inf, nan, nan, nan, nan)
    logsumexp = torch.logsumexp(support, 0)
    # log p = x - logsumexp would round away what a common offset leaves of the differences.
    log_p = torch.log_softmax(support, 0).sort(descending=True).values
    p = log_p.exp()
    entropy = -(p * log_p).sum()
    second = p[1] if p.numel() > 1 else torch.tensor(0.0)
    uniform = 1.0 / p.numel()
    self_certainty = (uniform * (math.log(uniform) - log_p)).sum()
    confidence = -log_p[:top_k].mean()
    columns = (entropy, logsumexp, p[0], p[0] - second, self_certainty, confidence)
    return tuple(float(column) for column in columns)
