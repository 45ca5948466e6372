"""Proof that every process of an engine runs our classes, and refusal of what cannot work.

Upstream swallows plugin errors: a broken plugin would be a normally running, unpatched server.
"""

from __future__ import annotations

import os
import pkgutil
import warnings
from typing import Any

from sglang_dynasor import plugin
from sglang_dynasor.allocation.chain_profile import ChainProfile
from sglang_dynasor.allocation.profile import CalibrationProfile
from sglang_dynasor.allocation.profile_file import ProfileFile, checkpoint_hash
from sglang_dynasor.config import UPSTREAM_POLICIES, DynasorConfig, is_enabled

# Module globals that must be our class, per process that reports.
_SCHEDULER_TARGETS = ("sglang.srt.managers.scheduler.Scheduler",)


class HandshakeError(RuntimeError):
    """An engine process does not run the classes it should."""


def is_patched(hook: plugin.Hook) -> bool:
    """Whether this process has our object in the place of `hook.target`."""
    try:
        current = pkgutil.resolve_name(hook.target)
    except (ImportError, AttributeError):
        return False
    ours = pkgutil.resolve_name(hook.ours)
    if hook.kind == "replace":
        return current is ours
    return _wraps(current, hook)


def _wraps(current: Any, hook: plugin.Hook) -> bool:
    """An around hook is in force when upstream's wrapper closes over our function."""
    ours = pkgutil.resolve_name(hook.ours)
    function = getattr(current, "__func__", current)
    while function is not None:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        if ours in cells:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def unpatched_hooks() -> list[str]:
    """Targets of this process without their hook."""
    return [hook.target for hook in plugin.HOOKS if not is_patched(hook)]


def check_this_process() -> None:
    """Raise HandshakeError naming each hook that is missing here; no-op when switched off."""
    if not is_enabled():
        return
    plugin.check_version()
    missing = unpatched_hooks()
    if missing:
        raise HandshakeError(
            f"not patched in the main process: {', '.join(missing)}; "
            "see the log above for the plugin's error, or run `sglang-dynasor doctor`"
        )


def handshake_info() -> dict[str, Any]:
    """What a scheduler process reports about itself when it is ready."""
    return {"version": plugin.SGLANG_VERSION, "unpatched": unpatched_hooks()}


def report_replicas(original: Any, controller: Any) -> dict[str, Any]:
    """Around `DataParallelController.get_init_info`, which drops what its schedulers reported.

    A replica without a report leaves none for all; limits of replicas add up.
    """
    info: dict[str, Any] = original(controller)
    reports = [replica.get("dynasor") for replica in controller._scheduler_init_infos]
    if not reports or None in reports:
        return info
    merged = {
        "version": plugin.SGLANG_VERSION,
        "unpatched": sorted({target for report in reports for target in report["unpatched"]}),
        "max_running_requests": sum(report["max_running_requests"] for report in reports),
    }
    return {**info, "dynasor": merged}


def check_scheduler_info(info: dict[str, Any]) -> None:
    """Raise HandshakeError unless a scheduler's report shows all of its hooks in force."""
    report = info.get("dynasor")
    if report is None:
        raise HandshakeError(f"not patched in a scheduler process: {_SCHEDULER_TARGETS[0]}")
    if report["unpatched"]:
        raise HandshakeError(
            f"not patched in a scheduler process: {', '.join(report['unpatched'])}"
        )


def check_tokenizer_manager(manager: Any) -> None:
    """Raise HandshakeError unless the running tokenizer manager is ours."""
    target = plugin.HOOKS[1]
    if type(manager) is not pkgutil.resolve_name(target.ours):
        raise HandshakeError(f"not patched in the main process: {target.target}")


def refuse_unsupported(server_args: Any) -> None:
    """Raise ValueError for a setup in which programs would only half work."""
    policy = DynasorConfig.from_environment().policy
    if server_args.enable_priority_scheduling and policy not in UPSTREAM_POLICIES:
        raise ValueError(
            f"--dynasor-policy {policy} orders by program and would pass over priorities; with "
            f"--enable-priority-scheduling it must be one of {', '.join(UPSTREAM_POLICIES)}"
        )
    refusals = {
        # Program messages are for one replica; otherwise they would have to go to all of them.
        "--enable-dp-attention without --enable-dp-attention-local-control-broadcast": (
            server_args.enable_dp_attention
            and not server_args.enable_dp_attention_local_control_broadcast
        ),
        "--disaggregation-mode": server_args.disaggregation_mode not in (None, "null"),
        "--pp-size > 1": (server_args.pp_size or 1) > 1,
        "--dllm-algorithm": server_args.dllm_algorithm is not None,
        "--tokenizer-worker-num > 1": (server_args.tokenizer_worker_num or 1) > 1,
        "--use-ray": bool(server_args.use_ray),
        "SGLANG_RUST_SERVER": os.environ.get("SGLANG_RUST_SERVER", "0").lower() in ("1", "true"),
    }
    given = [name for name, refused in refusals.items() if refused]
    if given:
        raise ValueError(
            f"sglang-dynasor does not support {', '.join(given)}; "
            "drop it, or turn the plugin off with SGLANG_DYNASOR=0"
        )


def warn_of_profile_mismatch(model_path: str) -> None:
    """Warn where a calibration profile was made for another model or checkpoint.

    Not by log: an offline engine shows none below errors.
    """
    config = DynasorConfig.from_environment()
    profiles: list[ProfileFile] = []
    if config.profile:
        profiles.append(CalibrationProfile.read(config.profile))
    if config.chain_profile:
        profiles.append(ChainProfile.read(config.chain_profile))
    for profile in profiles:
        # The hash reads all weights: only where the profile has one to compare with.
        checkpoint = checkpoint_hash(model_path) if profile.checkpoint_sha256 else None
        sentence = profile.mismatch(model_path, checkpoint)
        if sentence:
            warnings.warn(f"{sentence}: its promise does not hold here", stacklevel=2)


def launch_verified(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `Engine._launch_subprocesses`: refuse early, then verify what was started.

    Raises HandshakeError, and ValueError where the reward model can't start, after ending the
    processes that were started.
    """
    server_args = kwargs.get("server_args") or args[1]
    refuse_unsupported(server_args)
    check_this_process()
    launched = original(*args, **kwargs)
    manager, scheduler_result = launched[0], launched[3]
    try:
        for info in scheduler_result.scheduler_infos:
            check_scheduler_info(info)
        if manager is not None:
            check_tokenizer_manager(manager)
            manager.wait_for_programs()
    except (HandshakeError, ValueError):
        from sglang.srt.utils import kill_process_tree

        kill_process_tree(os.getpid(), include_parent=False)
        raise
    warn_of_profile_mismatch(server_args.model_path)
    return launched
