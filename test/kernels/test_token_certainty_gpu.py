"""The compiled Triton kernels on a GPU against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from sglang_dynasor.kernels import token_certainty
from sglang_dynasor.kernels.reference import token_certainty_reference
from support.certainty_cases import DTYPES, SHAPES, random_logits, special_rows

pytestmark = pytest.mark.gpu
FRESH_SHAPES = (*SHAPES, (2, 9001), (33, 49_152), (256, 32_000))


def assert_agrees(logits: torch.Tensor, top_k: int, atol: float, rtol: float) -> None:
    found = token_certainty(logits.cuda(), top_k).double().cpu()
    expected = token_certainty_reference(logits, top_k)
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol, equal_nan=True)


@pytest.mark.parametrize(("dtype", "atol", "rtol"), DTYPES, ids=str)
@pytest.mark.parametrize("shape", FRESH_SHAPES, ids=str)
def test_the_kernel_agrees_with_the_reference(
    shape: tuple[int, int], dtype: torch.dtype, atol: float, rtol: float
) -> None:
    assert_agrees(random_logits(*shape, dtype, seed=sum(shape)), 20, atol, rtol)


@pytest.mark.parametrize("top_k", [1, 2, 20, 32])
def test_unusual_rows_agree_with_the_reference(top_k: int) -> None:
    assert_agrees(torch.stack(list(special_rows(3000).values())), top_k, 2e-5, 5e-6)


def test_rows_of_any_stride_are_read_in_place() -> None:
    wide = random_logits(8, 1100, torch.float32)
    for view in (wide[:3, :1021], wide[::4], wide[:1].expand(3, -1)):
        found = token_certainty(view.cuda()).double().cpu()
        torch.testing.assert_close(found, token_certainty_reference(view), atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("rows", [1, 32, 33, 256])
def test_a_captured_graph_measures_the_logits_of_its_replay(rows: int) -> None:
    logits = torch.randn(rows, 128_256, device="cuda")
    token_certainty(logits)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = token_certainty(logits)
    logits.normal_().mul_(5.0)
    out.fill_(torch.nan)
    graph.replay()
    expected = token_certainty_reference(logits)
    torch.testing.assert_close(out.double().cpu(), expected, atol=2e-5, rtol=2e-5)


def test_a_call_never_waits_for_the_device() -> None:
    logits = torch.randn(32, 151_936, device="cuda")
    token_certainty(logits)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        token_certainty(logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_same_logits_give_the_same_figures() -> None:
    logits = torch.randn(64, 151_936, device="cuda")
    assert torch.equal(token_certainty(logits), token_certainty(logits))
