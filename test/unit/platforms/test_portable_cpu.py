"""What the platform tells upstream."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.arg_groups import choices
from sglang.srt.arg_groups.arg_utils import field_names
from sglang.srt.model_executor.cuda_graph_config import Backend, CudaGraphConfig
from sglang.srt.platforms import SRTPlatform
from sglang.srt.server_args import ServerArgs

from sglang_dynasor.platforms import portable_cpu, registration
from sglang_dynasor.platforms.portable_cpu import (
    PortableCpuPlatform,
    compute_threads,
    default_server_args,
    usable_cores,
)


class Unset(SimpleNamespace):
    """Server arguments as the resolver hands them over, everything unset unless given."""

    def __init__(self, **given: Any) -> None:
        raw = {name: given.get(name) for name in default_server_args()}
        config = CudaGraphConfig()
        sizes = {"tp_size": 1, "pp_size": 1, "dp_size": 1}
        resolved = {
            **raw,
            "device": given.get("device", "cpu"),
            "cuda_graph_config": config,
            **sizes,
        }
        super().__init__(_raw_input=raw, **resolved)


@pytest.fixture(autouse=True)
def threads_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_every_default_is_a_field_of_upstreams_server_arguments() -> None:
    assert set(default_server_args()) <= field_names(ServerArgs)


def test_the_command_line_accepts_both_backends_once_the_platform_exists() -> None:
    assert isinstance(PortableCpuPlatform(), SRTPlatform)
    PortableCpuPlatform()
    assert choices.ATTENTION_BACKEND_CHOICES.count(registration.ATTENTION_BACKEND) == 1
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    line = ["--model-path=m", "--attention-backend=batched_cpu", "--sampling-backend=keyed"]
    parsed = parser.parse_args(line)
    assert (parsed.attention_backend, parsed.sampling_backend) == ("batched_cpu", "keyed")


def test_it_is_an_out_of_tree_platform_on_the_plain_torch_path() -> None:
    platform = PortableCpuPlatform()
    assert platform.is_out_of_tree() and not platform.is_cuda_alike()
    assert platform.get_device() == "cpu"
    assert platform.get_default_attention_backend() == "batched_cpu"
    assert platform.get_dispatch_key_name() == "native"
    assert not platform.capabilities.supports_triton


def test_defaults_fill_only_what_the_user_left_open() -> None:
    arguments = Unset(max_total_tokens=2048, dtype="auto", attention_backend="torch_native")
    PortableCpuPlatform().apply_server_args_defaults(arguments)
    assert arguments.max_total_tokens == 2048
    assert arguments.attention_backend == "torch_native"
    assert arguments.dtype == "float32"
    assert arguments.sampling_backend == "pytorch"
    assert arguments.cuda_graph_config.decode.backend == Backend.DISABLED
    assert arguments.cuda_graph_config.prefill.backend == Backend.DISABLED
    assert arguments.chunked_prefill_size == default_server_args()["chunked_prefill_size"]


def test_the_users_sampling_backend_survives_upstreams_cpu_rule() -> None:
    arguments = Unset(sampling_backend="keyed")
    arguments.sampling_backend = "pytorch"
    PortableCpuPlatform().apply_server_args_defaults(arguments)
    assert arguments.sampling_backend == "keyed"


def test_another_device_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="device='cuda' was asked for"):
        PortableCpuPlatform().apply_server_args_defaults(Unset(device="cuda"))


def test_the_users_thread_count_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    PortableCpuPlatform().apply_server_args_defaults(Unset())
    assert os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.setattr(portable_cpu, "usable_cores", lambda: 10)
    monkeypatch.delenv("OMP_NUM_THREADS")
    PortableCpuPlatform().apply_server_args_defaults(Unset())
    assert os.environ["OMP_NUM_THREADS"] == "8"


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(1, 1, 1), (2, 1, 1), (4, 1, 2), (16, 2, 7), (4, 4, 1)]
)
def test_two_cores_are_left_to_the_other_processes(cores: int, ranks: int, threads: int) -> None:
    assert compute_threads(cores, ranks) == threads


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)]
)
def test_a_containers_cpu_quota_counts_as_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cores(file) == cores
    assert usable_cores(tmp_path / "absent") == 8
