"""The portable CPU platform: SGLang on a machine that has no accelerator at all.

`activate` is the value of the entry point ``portable_cpu`` in the group ``sglang.srt.platforms``
(upstream: ``sglang/srt/platforms/__init__.py``). It answers "may this platform serve this machine?"
and nothing else; the platform class and everything heavy behind it is imported by upstream only
after a yes.
"""

from __future__ import annotations

import logging
import os
from importlib.metadata import EntryPoint, entry_points

import torch

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "sglang.srt.platforms"
ENTRY_POINT_NAME = "portable_cpu"
PLATFORM_CLASS = "sglang_dynasor.platforms.portable_cpu.PortableCpuPlatform"

# Set while we ask the other platforms: one of them may ask us back without end.
_asking_others = False


def activate() -> str | None:
    """Return the dotted path of `PortableCpuPlatform`, or None when the machine is someone else's.

    None for every accelerator upstream knows, for upstream's own CPU engine
    (``SGLANG_USE_CPU_ENGINE=1``) and when another out-of-tree platform would answer yes, because
    upstream refuses to start with two. ``SGLANG_PLATFORM=portable_cpu`` settles the last case:
    upstream then loads no other platform.

    Nothing is written and no CUDA context is made.
    """
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return None
    accelerator = find_accelerator()
    if accelerator is not None:
        logger.debug("portable CPU platform stays out: %s is available", accelerator)
        return None
    rival = _find_rival_platform()
    if rival is not None:
        logger.debug("portable CPU platform stays out: platform %r is active", rival)
        return None
    return PLATFORM_CLASS


def find_accelerator() -> str | None:
    """Name of the first accelerator torch can use, or None.

    Asks torch and not the driver files on purpose: upstream decides with these very predicates, and
    an answer of our own would leave machines (a driver too old for this torch,
    ``CUDA_VISIBLE_DEVICES=""``) for which neither side feels responsible.
    ``torch.cuda.is_available`` counts devices; it makes no context and takes no device memory, and
    upstream calls it while importing anyway. On ROCm it is true as well.
    """
    if torch.cuda.is_available():
        return "rocm" if torch.version.hip is not None else "cuda"
    if getattr(torch.version, "musa", None) is not None:
        return "musa"
    # npu and hpu modules exist on torch only once their vendor package has been loaded.
    for name in ("xpu", "npu", "hpu", "mps"):
        module = getattr(torch, name, None)
        if module is not None and module.is_available():
            return name
    return None


def _find_rival_platform() -> str | None:
    """Name of another installed platform plugin that claims this machine, or None."""
    global _asking_others
    if _asking_others:
        # We are being asked in turn: the platform that is asking was there first.
        return "the caller"
    _asking_others = True
    try:
        return next((point.name for point in _rival_entry_points() if _claims(point)), None)
    finally:
        _asking_others = False


def _rival_entry_points() -> list[EntryPoint]:
    """The other platform plugins upstream would load, its two selection variables honoured."""
    if os.environ.get("SGLANG_PLATFORM"):
        return []
    allowed = {name.strip() for name in os.environ.get("SGLANG_PLUGINS", "").split(",")} - {""}
    return [
        point
        for point in entry_points(group=ENTRY_POINT_GROUP)
        if point.name != ENTRY_POINT_NAME and (not allowed or point.name in allowed)
    ]


def _claims(point: EntryPoint) -> bool:
    try:
        return point.load()() is not None
    except Exception:  # a stranger's plugin may fail in any way; upstream reports it and goes on
        logger.debug("platform plugin %r failed and claims nothing", point.name, exc_info=True)
        return False
