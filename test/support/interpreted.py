"""Runs the Triton branch in Triton's interpreter, a process of its own.

    TRITON_INTERPRET=1 python test/support/interpreted.py CASES RESULTS

The variable counts when triton is first imported, and would reach every kernel of the process.
CASES is a saved list of (logits, top_k, programs wanted of many rows or None). RESULTS gets per
case the output and the launches made: name of the kernel, grid, and blocks per program.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from sglang_dynasor.kernels import token_certainty_triton as branch


class Spy:
    """Stands in for a kernel and notes each launch before making it."""

    def __init__(
        self, kernel: Any, name: str, seen: list[tuple[str, tuple[int, ...], int]]
    ) -> None:
        self.kernel, self.name, self.seen = kernel, name, seen

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **options: int) -> None:
            blocks = arguments[-1] if self.name == "_scan_kernel" else 0
            self.seen.append((self.name, grid, blocks))
            self.kernel[grid](*arguments, **options)

        return launch


def main(cases: str, results: str) -> None:
    seen: list[tuple[str, tuple[int, ...], int]] = []
    for name in ("_scan_kernel", "_merge_kernel"):
        setattr(branch, name, Spy(getattr(branch, name), name, seen))
    usual = branch._MANY_PROGRAMS
    found = []
    for logits, top_k, programs in torch.load(cases):
        branch._MANY_PROGRAMS = programs or usual
        out = branch.token_certainty_triton(logits, top_k)
        found.append((out, list(seen)))
        seen.clear()
    torch.save(found, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
