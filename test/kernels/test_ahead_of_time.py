"""The kernels compiled for GPUs that need not be here: no spill, 16-byte loads, little memory."""

from __future__ import annotations

import pytest
import torch

from sglang_dynasor.kernels.ahead_of_time import SHARED_LIMIT, Resources, compile_launch
from sglang_dynasor.kernels.token_certainty_triton import Launch, launches

DTYPES = (torch.float32, torch.bfloat16)
# Few rows, many rows, and the largest vocabulary, whose merge holds most in registers.
SHAPES = ((8, 151_936), (64, 128_256), (8, 524_288))


def make_launches(logits: torch.Tensor, top_k: int = 20) -> tuple[Launch, Launch]:
    return launches(logits, top_k, torch.empty(logits.shape[0], 6, device="meta"))


def assert_fits(resources: Resources, capability: int) -> None:
    assert resources.spilled == 0, resources
    assert resources.shared <= SHARED_LIMIT[capability], resources
    assert 0 < resources.registers <= 255, resources


def assert_wide(resources: Resources) -> None:
    assert resources.load_widths, resources
    assert set(resources.load_widths) == {16}, resources


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_both_kernels_compile_without_spills_and_the_scan_loads_16_bytes_at_a_time(
    capability: int, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    scan, merge = make_launches(torch.empty(shape, dtype=dtype, device="meta"))
    resources = compile_launch(scan, capability)
    assert_fits(resources, capability)
    assert_wide(resources)
    resources = compile_launch(merge, capability)
    assert_fits(resources, capability)
    assert 16 in resources.load_widths  # the logits; the rest reads the scan's few results


@pytest.mark.parametrize("vocab", [1, 32_003])
def test_an_odd_vocabulary_compiles_and_keeps_wide_loads_where_rows_are_aligned(vocab: int) -> None:
    padded = torch.empty(8, 32_064, device="meta")[:, :vocab]
    scan, merge = (compile_launch(launch, 90) for launch in make_launches(padded, top_k=1))
    assert_fits(scan, 90)
    assert_fits(merge, 90)
    assert scan.load_widths[:2] == (16, 16)  # whole blocks; the last one is masked


def test_the_check_sees_a_scalar_load() -> None:
    """Rows 32,003 floats apart start anywhere: the compiler may not assume 16-byte addresses."""
    scan, _ = make_launches(torch.empty(8, 32_003, device="meta"))
    with pytest.raises(AssertionError, match="load_widths"):
        assert_wide(compile_launch(scan, 90))


@pytest.mark.parametrize("capability", SHARED_LIMIT)
def test_the_check_sees_a_spill(capability: int) -> None:
    scan, _ = make_launches(torch.empty(64, 151_936, device="meta"))
    with pytest.raises(AssertionError, match="spilled"):
        assert_fits(compile_launch(scan, capability, maxnreg=32), capability)
