"""What is refused before any engine process is started, and how reports are judged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_dynasor import handshake, plugin
from sglang_dynasor.config import CONFIG_VARIABLE
from sglang_dynasor.handshake import (
    HandshakeError,
    check_scheduler_info,
    check_tokenizer_manager,
    refuse_unsupported,
    report_replicas,
)

SUPPORTED = {
    "disaggregation_mode": "null",
    "pp_size": 1,
    "dllm_algorithm": None,
    "tokenizer_worker_num": 1,
    "use_ray": False,
    "enable_priority_scheduling": False,
    "enable_dp_attention": False,
    "enable_dp_attention_local_control_broadcast": False,
}


@pytest.fixture(autouse=True)
def _python_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_RUST_SERVER", raising=False)


def server_args(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**SUPPORTED, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"disaggregation_mode": None},
        {"pp_size": None},
        {"enable_dp_attention": True, "enable_dp_attention_local_control_broadcast": True},
    ],
)
def test_an_ordinary_setup_is_accepted(changes: dict[str, Any]) -> None:
    refuse_unsupported(server_args(**changes))


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("--disaggregation-mode", {"disaggregation_mode": "prefill"}),
        ("--disaggregation-mode", {"disaggregation_mode": "decode"}),
        ("--pp-size", {"pp_size": 2}),
        ("--dllm-algorithm", {"dllm_algorithm": "LowConfidence"}),
        ("--tokenizer-worker-num", {"tokenizer_worker_num": 2}),
        ("--use-ray", {"use_ray": True}),
        ("--enable-dp-attention", {"enable_dp_attention": True}),
    ],
)
def test_an_unsupported_setup_is_refused_naming_the_flag(
    named: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        refuse_unsupported(server_args(**changes))
    assert "SGLANG_DYNASOR=0" in str(caught.value)


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_the_rust_server_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SGLANG_RUST_SERVER", value)
    with pytest.raises(ValueError, match="SGLANG_RUST_SERVER"):
        refuse_unsupported(server_args())


def test_priorities_are_refused_where_programs_would_overrule_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"--dynasor-policy gang-sjf.*one of fcfs, lpm"):
        refuse_unsupported(server_args(enable_priority_scheduling=True))
    monkeypatch.setenv(CONFIG_VARIABLE, '{"policy": "fcfs"}')
    refuse_unsupported(server_args(enable_priority_scheduling=True))


def test_all_refusals_come_at_once() -> None:
    with pytest.raises(ValueError, match="--pp-size > 1, --use-ray"):
        refuse_unsupported(server_args(pp_size=2, use_ray=True))


def test_the_real_server_args_have_every_field_that_is_looked_at() -> None:
    from sglang.srt.server_args import ServerArgs

    assert set(SUPPORTED) <= set(ServerArgs.__struct_fields__)


def test_a_scheduler_without_a_report_is_not_ours() -> None:
    with pytest.raises(HandshakeError, match=r"managers\.scheduler\.Scheduler"):
        check_scheduler_info({"status": "ready"})


def test_a_scheduler_that_misses_a_hook_is_refused_naming_it() -> None:
    report = {"version": plugin.SGLANG_VERSION, "unpatched": ["sglang.somewhere.Thing"]}
    with pytest.raises(HandshakeError, match=r"sglang\.somewhere\.Thing"):
        check_scheduler_info({"dynasor": report})


def test_a_scheduler_with_every_hook_passes() -> None:
    check_scheduler_info({"dynasor": {"version": plugin.SGLANG_VERSION, "unpatched": []}})


def test_replicas_report_together() -> None:
    replicas = [
        {"dynasor": {"unpatched": ["b"], "max_running_requests": 3}},
        {"dynasor": {"unpatched": ["a", "b"], "max_running_requests": 4}},
    ]
    merged = report_replicas(*controller(replicas))
    assert merged["ready"] == 1
    assert merged["dynasor"]["unpatched"] == ["a", "b"]
    assert merged["dynasor"]["max_running_requests"] == 7


@pytest.mark.parametrize("replicas", [[], [{}], [{"dynasor": {"unpatched": []}}, {}]])
def test_a_replica_without_a_report_leaves_none(replicas: list[dict[str, Any]]) -> None:
    assert report_replicas(*controller(replicas)) == {"ready": 1}


def controller(replicas: list[dict[str, Any]]) -> tuple[Any, Any]:
    return lambda _: {"ready": 1}, SimpleNamespace(_scheduler_init_infos=replicas)


def test_another_tokenizer_manager_is_refused() -> None:
    with pytest.raises(HandshakeError, match="TokenizerManager"):
        check_tokenizer_manager(object())


def test_a_wrong_version_fails_the_check_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "version", lambda name: "0.0.1")
    with pytest.raises(RuntimeError, match=r"0\.0\.1"):
        handshake.check_this_process()


def test_a_refused_setup_starts_no_process() -> None:
    def original(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("processes were started")

    with pytest.raises(ValueError, match="--pp-size"):
        handshake.launch_verified(original, object, server_args=server_args(pp_size=2))
    with pytest.raises(ValueError, match="--pp-size"):
        handshake.launch_verified(original, object, server_args(pp_size=2))
