"""Logits for the tests of token certainty: shapes, dtypes with tolerances, unusual rows."""

from __future__ import annotations

import torch

INF, NAN = torch.inf, torch.nan
LOWEST = torch.finfo(torch.float32).min

# Rows and columns: ones, primes, powers of two and their neighbours, one real vocabulary, one so
# large that its groups double, and more rows than FEW_ROWS.
SHAPES = (
    (1, 1),
    (2, 2),
    (3, 7),
    (2, 63),
    (2, 64),
    (2, 65),
    (1, 1021),
    (2, 1023),
    (2, 1024),
    (1, 1025),
    (1, 4099),
    (1, 151_936),
    (1, 262_208),
    (37, 4099),
)
# The input is exact in each dtype, and sums are float32 in all: the tolerance is that of float32.
DTYPES = (
    (torch.float32, 5e-6, 5e-6),
    (torch.bfloat16, 5e-6, 5e-6),
    (torch.float16, 5e-6, 5e-6),
)


def random_logits(rows: int, vocab: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows from nearly uniform to nearly certain."""
    source = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=source)
    return (logits * torch.linspace(0.1, 8.0, rows)[:, None]).to(dtype)


def special_rows(vocab: int) -> dict[str, torch.Tensor]:
    """Float32 rows by name; ``vocab`` is at least 200."""
    columns = torch.arange(vocab)
    plain = random_logits(1, vocab, torch.float32, seed=1)[0] * 20
    rows = {
        "all equal": torch.full((vocab,), 1.5),
        "masked throughout": torch.full((vocab,), -INF),
        "lowest float throughout": torch.full((vocab,), LOWEST),
        "a single finite entry": torch.full((vocab,), -INF).index_fill(0, torch.tensor(70), 3.0),
        "three finite entries": torch.full((vocab,), -INF).index_copy(
            0, torch.tensor([5, 6, vocab - 1]), torch.tensor([1.0, 2.0, 2.0])
        ),
        "a large offset": plain + 8192,
        "a large negative offset": plain - 8192,
        "nearly certain": torch.zeros(vocab).index_fill(0, torch.tensor(7), 80.0),
        "a far outlier": torch.zeros(vocab).index_fill(0, torch.tensor(7), -1e6),
        "forty equal at the top": torch.zeros(vocab).index_fill(0, torch.arange(40) * 5, 4.0),
        "ties inside one group": torch.zeros(vocab).index_fill(0, torch.arange(30), 4.0),
        "every group of 64 alike": torch.where(columns % 64 == 3, 4.0, 0.0),
        "ten groups of 64 above, the others alike": torch.where(columns % 64 == 3, 4.0, 0.0)
        + torch.where((columns % 64 == 3) & (columns < 640), 1.0, 0.0),
        "the top within the last columns": columns * 0.01,
        "the top within the first columns": columns.flip(0) * 0.01,
        "every other masked": torch.where(columns % 2 == 0, plain, -INF),
        "the first half masked": torch.where(columns < vocab // 2, -INF, plain),
        "masked by the lowest float": torch.where(columns % 3 == 0, LOWEST, plain),
        "plus infinity": plain.index_fill(0, torch.tensor(9), INF),
        "two plus infinities": plain.index_fill(0, torch.tensor([9, 100]), INF),
        "a NaN": plain.index_fill(0, torch.tensor(150), NAN),
        "NaN throughout": torch.full((vocab,), NAN),
        "NaN and plus infinity": plain.index_fill(0, torch.tensor(9), INF).index_fill(
            0, torch.tensor(10), NAN
        ),
        "NaN beside masked": torch.full((vocab,), -INF).index_fill(0, torch.tensor(3), NAN),
    }
    return {name: row.float() for name, row in rows.items()}
