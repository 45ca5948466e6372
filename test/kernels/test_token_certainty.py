"""The call itself and its CPU branch against the float64 reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_dynasor.kernels import COLUMNS, token_certainty
from sglang_dynasor.kernels.reference import token_certainty_reference
from support.certainty_cases import DTYPES, SHAPES, random_logits, special_rows

SPECIAL = special_rows(1500)
WAITS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select")


def column(name: str, logits: list[list[float]], top_k: int = 20) -> list[float]:
    return token_certainty(torch.tensor(logits), top_k)[:, COLUMNS.index(name)].tolist()


@pytest.mark.parametrize(("dtype", "atol", "rtol"), DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 9001), (3, 49_152)], ids=str)
def test_the_cpu_branch_agrees_with_the_reference(
    shape: tuple[int, int], dtype: torch.dtype, atol: float, rtol: float
) -> None:
    logits = random_logits(*shape, dtype)
    expected = token_certainty_reference(logits)
    torch.testing.assert_close(token_certainty(logits).double(), expected, atol=atol, rtol=rtol)


@pytest.mark.parametrize("vocab", [200, 1500, 9001])
def test_special_rows_are_as_defined(vocab: int) -> None:
    rows = special_rows(vocab)
    logits = torch.stack(list(rows.values()))
    found, expected = token_certainty(logits).double(), token_certainty_reference(logits)
    for name, ours, reference in zip(rows, found, expected, strict=True):
        torch.testing.assert_close(
            ours, reference, atol=2e-5, rtol=5e-6, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("top_k", [1, 2, 20, 32])
@pytest.mark.parametrize("vocab", [1, 19, 300, 9001])
def test_the_confidence_is_that_of_the_top_k(top_k: int, vocab: int) -> None:
    logits = random_logits(3, vocab, torch.float32)
    expected = token_certainty_reference(logits, top_k)
    found = token_certainty(logits, top_k).double()
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=5e-6)


def test_a_small_row_has_the_figures_of_a_pocket_calculator() -> None:
    row = [[math.log(0.5), math.log(0.25), math.log(0.125), math.log(0.125)]]
    assert column("entropy", row) == pytest.approx([1.75 * math.log(2)], rel=1e-6)
    assert column("logsumexp", row) == pytest.approx([0.0], abs=1e-6)
    assert column("top1_probability", row) == pytest.approx([0.5])
    assert column("top2_margin", row) == pytest.approx([0.25])
    # Mean of -log2 p is (1 + 2 + 3 + 3) / 4, uniform has 2: a quarter of a bit.
    assert column("self_certainty", row) == pytest.approx([0.25 * math.log(2)], rel=1e-5)
    assert column("confidence", row, 2) == pytest.approx([1.5 * math.log(2)], rel=1e-6)


def test_masked_entries_change_no_column() -> None:
    logits = random_logits(4, 300, torch.float32)
    masked = torch.full((4, 700), -torch.inf)
    masked[:, ::2][:, :300] = logits
    torch.testing.assert_close(token_certainty(masked), token_certainty(logits))


def test_an_offset_changes_the_logsumexp_alone() -> None:
    logits = random_logits(4, 300, torch.float32).half().float()  # so that + 1024 is nearly exact
    before, after = token_certainty(logits), token_certainty(logits + 1024)
    after[:, COLUMNS.index("logsumexp")] -= 1024
    torch.testing.assert_close(before, after, atol=1e-3, rtol=0.0)


def test_bounds_hold_in_spite_of_rounding() -> None:
    out = token_certainty(torch.cat([random_logits(50, 64, torch.float32), torch.zeros(50, 64)]))
    assert bool((out[:, [0, 2, 3, 4, 5]] >= 0).all())
    assert bool((out[:, [2, 3]] <= 1).all())


def test_the_result_is_fresh_and_the_logits_stay() -> None:
    logits = random_logits(4, 300, torch.float32)
    before = logits.clone()
    first = token_certainty(logits)
    assert torch.equal(logits, before)
    assert token_certainty(logits).data_ptr() != first.data_ptr()


@pytest.mark.parametrize("vocab", [64, 9001])
def test_rows_may_have_any_stride(vocab: int) -> None:
    wide = random_logits(8, vocab + 13, torch.float32)
    for rows in (wide[:, :vocab], wide[::3], wide[:1].expand(4, -1)):
        torch.testing.assert_close(token_certainty(rows), token_certainty(rows.contiguous()))


@pytest.mark.parametrize("vocab", [64, 49_152])
def test_nothing_waits_for_a_value(vocab: int) -> None:
    """A GPU's queue must not be drained for it, and the observer's own test demands it of us."""

    class NoWait(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            assert not any(name in str(func) for name in WAITS), func
            return func(*args, **(kwargs or {}))

    logits = random_logits(32, vocab, torch.float32)
    with NoWait():
        token_certainty(logits)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            logits[0, 0].item()


def test_an_empty_batch_gives_an_empty_result() -> None:
    assert token_certainty(torch.empty(0, 64)).shape == (0, len(COLUMNS))


@pytest.mark.parametrize(
    ("logits", "top_k", "message"),
    [
        (torch.zeros(5), 20, r"logits: expected \[batch, vocab >= 1\], got \[5\]"),
        (torch.zeros(5, 0), 20, r"logits: expected \[batch, vocab >= 1\]"),
        (torch.zeros(2, 5, dtype=torch.float64), 20, "float32, bfloat16 or float16, got .*float64"),
        (torch.zeros(5, 2).T, 20, "logits: expected column stride 1, got 2"),
        (torch.zeros(2, 5), 0, "top_k: expected 1 to 32, got 0"),
        (torch.zeros(2, 5), 33, "top_k: expected 1 to 32, got 33"),
    ],
)
def test_bad_arguments_are_refused_by_name(logits: torch.Tensor, top_k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_certainty(logits, top_k)
