"""`PortableCpuPlatform`: float32 models on any CPU, without upstream's compiled CPU kernels.

Upstream's own CPU engine needs the ``sgl_kernel`` CPU build (AMX machines). This platform answers
the same questions through upstream's out-of-tree seam (``sglang/srt/platforms/interface.py``) and
leaves every operator on its plain torch path.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from . import registration

MAX_TOTAL_TOKENS = 65_536
MAX_RUNNING_REQUESTS = 128
CHUNKED_PREFILL_TOKENS = 1_024
MEMORY_FRACTION = 0.5


def default_server_args() -> dict[str, Any]:
    """The server arguments that suit a CPU, by upstream field name.

    - ``dtype``: bfloat16 matrix products run at a fiftieth of the float32 speed without AMX.
    - ``max_total_tokens``: an upper bound in tokens; upstream lowers it to what
      ``mem_fraction_static`` of the free memory holds.
    - ``chunked_prefill_size``: tokens per prefill step; a decode step waits for at most one such
      chunk.
    - ``max_running_requests``: past this the batch gains no throughput on a CPU, each request only
      waits.
    """
    return {
        "device": "cpu",
        "dtype": "float32",
        "attention_backend": registration.ATTENTION_BACKEND,
        "sampling_backend": "pytorch",
        "disable_cuda_graph": True,
        "disable_custom_all_reduce": True,
        "max_total_tokens": MAX_TOTAL_TOKENS,
        "max_running_requests": MAX_RUNNING_REQUESTS,
        "chunked_prefill_size": CHUNKED_PREFILL_TOKENS,
        "mem_fraction_static": MEMORY_FRACTION,
    }


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use, at least 1: its affinity, capped by its container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group of version 2, or "max": no quota
        return cores


def compute_threads(cores: int, ranks: int) -> int:
    """OpenMP threads of each scheduler process, ``ranks`` of them sharing ``cores`` usable cores.

    Two cores stay free for the tokenizer and detokenizer processes: an OpenMP team that has to
    share a core with them spins at every barrier, and decode falls to a few tokens per second.
    """
    return max(1, (cores - 2) // max(1, ranks))


def _without_graphs(config: Any) -> Any:
    # `disable_cuda_graph` was already folded into this value when the platform is asked.
    from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase

    for phase in (Phase.DECODE, Phase.PREFILL):
        config = with_phase(config, phase, backend=Backend.DISABLED)
    return config


class PortableCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """The platform object upstream instantiates once per process after `activate` said yes."""

    _enum = PlatformEnum.OOT

    def __init__(self) -> None:
        # The command line is parsed in a process that builds no model: the names must be known
        # here, whether or not the general plugin is switched on.
        registration.add_choices()

    def get_device(self, device_id: int | None = 0) -> str:
        """``"cpu"``; upstream splits the answer like a string when no device was asked for."""
        return "cpu"

    def get_default_attention_backend(self) -> str:
        return registration.ATTENTION_BACKEND

    def get_dispatch_key_name(self) -> str:
        return "native"

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"

    def get_compile_backend(self, mode: str | None = None) -> str:
        # No compiler can be assumed on such a machine.
        return "eager"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Fill in what the user left open (upstream: ``arg_groups/platform_hook.py``).

        Runs once, in the launching process, before the engine's children exist. That is also the
        moment to set ``OMP_NUM_THREADS`` (kept when the user set it): the children read it while
        loading torch.
        """
        if server_args.device != "cpu":
            raise ValueError(
                f"device={server_args.device!r} was asked for, but no accelerator was found here; "
                "leave the device out or pass device='cpu'"
            )
        asked = server_args._raw_input
        for name, value in default_server_args().items():
            if asked[name] in (None, "auto"):
                setattr(server_args, name, value)
        if asked["sampling_backend"] is not None:
            # Upstream sets "pytorch" for every CPU before it comes here, over the user's own
            # choice.
            server_args.sampling_backend = asked["sampling_backend"]
        server_args.disable_custom_all_reduce = True
        server_args.cuda_graph_config = _without_graphs(server_args.cuda_graph_config)
        ranks = server_args.tp_size * server_args.pp_size * server_args.dp_size
        threads = compute_threads(usable_cores(), ranks)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))

    def init_backend(self) -> None:
        """Make our backends known to the process that builds the model."""
        registration.register_attention()
        registration.register_keyed_sampler()
