"""The Triton kernels in Triton's interpreter against the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from sglang_dynasor.kernels.reference import token_certainty_reference
from support import interpreted
from support.certainty_cases import DTYPES, SHAPES, random_logits, special_rows

SPECIAL = special_rows(3000)  # 47 groups: more than the 32 that the search may keep
TOP_KS = (1, 2, 20, 32)
FEW_ROW_SHAPES = [shape for shape in SHAPES if shape[0] <= 3]
# A row takes the interpreter a tenth of a second: many rows in one dtype.
MATRIX = [
    *((shape, *dtype) for shape in FEW_ROW_SHAPES for dtype in DTYPES),
    ((37, 4099), *DTYPES[0]),
]


class Case(NamedTuple):
    logits: torch.Tensor
    top_k: int = 20
    programs: int | None = None


class Result(NamedTuple):
    out: torch.Tensor
    launches: list[tuple[str, tuple[int, ...], int]]


def make_cases() -> dict[str, Case]:
    cases = {
        f"{shape} {dtype}": Case(random_logits(*shape, dtype)) for shape, dtype, _, _ in MATRIX
    }
    cases["special"] = Case(torch.stack(list(SPECIAL.values())))
    for top_k in TOP_KS:
        cases[f"top {top_k}"] = Case(random_logits(2, 300, torch.float32), top_k)
    wide = random_logits(8, 1100, torch.float32)
    cases["rows that end early"] = Case(wide[:3, :1021])
    cases["every other row"] = Case(wide[::4])
    cases["one row again and again"] = Case(wide[:1].expand(3, -1))
    cases["one program a row"] = Case(random_logits(33, 9001, torch.bfloat16), programs=33)
    return cases


CASES = make_cases()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Every case, run by one interpreter."""
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save([tuple(case) for case in CASES.values()], folder / "cases.pt")
    command = [sys.executable, str(Path(interpreted.__file__)), "cases.pt", "results.pt"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=600)
    found = torch.load(folder / "results.pt")
    return {name: Result(*result) for name, result in zip(CASES, found, strict=True)}


def assert_as_reference(result: Result, case: Case, atol: float = 5e-6, rtol: float = 5e-6) -> None:
    assert result.out.dtype == torch.float32
    expected = token_certainty_reference(case.logits, case.top_k)
    torch.testing.assert_close(result.out.double(), expected, atol=atol, rtol=rtol, equal_nan=True)


@pytest.mark.parametrize(("shape", "dtype", "atol", "rtol"), MATRIX, ids=str)
def test_the_kernel_agrees_with_the_reference(
    results: dict[str, Result],
    shape: tuple[int, int],
    dtype: torch.dtype,
    atol: float,
    rtol: float,
) -> None:
    name = f"{shape} {dtype}"
    assert_as_reference(results[name], CASES[name], atol, rtol)


@pytest.mark.parametrize("row", SPECIAL)
def test_a_special_row_is_as_defined(results: dict[str, Result], row: str) -> None:
    place = list(SPECIAL).index(row)
    result, case = results["special"], CASES["special"]
    assert_as_reference(
        Result(result.out[place : place + 1], []), Case(case.logits[place : place + 1]), atol=2e-5
    )


@pytest.mark.parametrize("top_k", TOP_KS)
def test_the_confidence_is_that_of_the_top_k(results: dict[str, Result], top_k: int) -> None:
    assert_as_reference(results[f"top {top_k}"], CASES[f"top {top_k}"])


@pytest.mark.parametrize(
    "name", ["rows that end early", "every other row", "one row again and again"]
)
def test_rows_may_have_any_stride(results: dict[str, Result], name: str) -> None:
    assert not CASES[name].logits.is_contiguous()
    assert_as_reference(results[name], CASES[name])


def test_with_few_rows_every_block_is_a_program_and_the_splits_are_merged(
    results: dict[str, Result],
) -> None:
    """An untaken branch passes every numeric test: the launches themselves are looked at."""
    launches = results["(1, 151936) torch.float32"].launches
    assert launches == [("_scan_kernel", (1, 149), 1), ("_merge_kernel", (1,), 0)]


def test_with_many_rows_a_program_takes_a_larger_share(results: dict[str, Result]) -> None:
    launches = results["(37, 4099) torch.float32"].launches
    assert launches == [("_scan_kernel", (37, 2), 1), ("_merge_kernel", (37,), 0)]


def test_a_program_may_take_a_whole_row_in_several_blocks(results: dict[str, Result]) -> None:
    result = results["one program a row"]
    assert result.launches == [("_scan_kernel", (33, 1), 3), ("_merge_kernel", (33,), 0)]
    assert_as_reference(result, CASES["one program a row"])


def test_a_vocabulary_beyond_the_largest_grid_gives_a_program_two_blocks(
    results: dict[str, Result],
) -> None:
    launches = results["(1, 262208) torch.float32"].launches
    assert launches == [("_scan_kernel", (1, 129), 2), ("_merge_kernel", (1,), 0)]
