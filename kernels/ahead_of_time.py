"""What the compiler makes of a launch for a GPU that need not be here: registers, spills, loads."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .token_certainty_triton import Launch

# Shared memory one block of threads may have, bytes (CUDA C++ programming guide, table of
# technical specifications per compute capability).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
}


class Resources(NamedTuple):
    """Of one compiled kernel; bytes, but for the registers per thread."""

    kernel: str
    registers: int
    spilled: int  # local memory and stack: 0 unless registers ran out
    shared: int
    load_widths: tuple[int, ...]  # of every load from global memory in the PTX, in program order


def compile_launch(launch: Launch, capability: int, **options: int) -> Resources:
    """Compile ``launch`` for compute capability ``capability`` (90: H100) as a call would.

    Like the runtime: pointers are taken as aligned, and integers that 16 divides are known to be
    so, unless the kernel opts out. ``options`` are further compiler options, such as maxnreg.
    """
    kernel = launch.kernel
    constants = {name: value for name, value in launch.options.items() if name != "num_warps"}
    signature: dict[str, str] = dict.fromkeys(constants, "constexpr")
    attributes: dict[tuple[int, ...], list[Any]] = {}
    unspecialized = kernel.do_not_specialize or ()
    for position, (name, value) in enumerate(zip(kernel.arg_names, launch.arguments, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
        elif value == 1 and name not in unspecialized:
            signature[name], constants[name] = "constexpr", 1
            continue
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
        if isinstance(value, torch.Tensor) or (value % 16 == 0 and name not in unspecialized):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    options = {"num_warps": launch.options["num_warps"], **options}
    compiled = triton.compile(source, target=target, options=options)
    usage = _resource_usage(compiled.asm["cubin"])
    return Resources(
        kernel.__name__,
        registers=usage["REG"],
        spilled=usage["STACK"] + usage["LOCAL"],
        shared=compiled.metadata.shared,
        load_widths=tuple(_load_widths(compiled.asm["ptx"])),
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def _load_widths(ptx: str) -> list[int]:
    """Bytes of each load from global memory: ld.global(.modifiers)(.vN).(b|f|u|s)BITS."""
    found = re.findall(r"\bld\.global(?:\.\w+(?:::\w+)?)*?(?:\.v(\d))?\.[bfus](\d+)\b", ptx)
    return [int(lanes or 1) * int(bits) // 8 for lanes, bits in found]
