"""The general plugin: version gate and hooks. Nothing else.

Loaded by upstream in every engine process (`sglang/srt/plugins/__init__.py`). Upstream logs and
swallows what a plugin raises, so launcher and engine verify every hook afterwards (handshake.py).
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

SGLANG_VERSION = "0.5.23"


@dataclass(frozen=True, slots=True)
class Hook:
    """One upstream object and what stands in its place; both as dotted paths."""

    target: str
    kind: Literal["replace", "around"]
    ours: str
    purpose: str


HOOKS = (
    Hook(
        "sglang.srt.managers.scheduler.Scheduler",
        "replace",
        "sglang_dynasor.managers.scheduler.DynasorScheduler",
        "program table, ending a program, prompt shared by siblings",
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager",
        "replace",
        "sglang_dynasor.managers.tokenizer_manager.DynasorTokenizerManager",
        "validates program fields, runs programs",
    ),
    Hook(
        "sglang.srt.entrypoints.openai.serving_completions.OpenAIServingCompletion",
        "replace",
        "sglang_dynasor.serving.openai.DynasorServingCompletion",
        "`sglext.dynasor` in completions (chat has a class property for it)",
    ),
    Hook(
        "sglang.srt.entrypoints.anthropic.serving.AnthropicServing",
        "replace",
        "sglang_dynasor.serving.other_routes.DynasorAnthropicServing",
        "`sglext.dynasor` in messages",
    ),
    Hook(
        "sglang.srt.entrypoints.ollama.serving.OllamaServing",
        "replace",
        "sglang_dynasor.serving.other_routes.DynasorOllamaServing",
        "refuses programs where their report would be lost",
    ),
    Hook(
        "sglang.srt.entrypoints.openai.serving_responses.OpenAIServingResponses",
        "replace",
        "sglang_dynasor.serving.other_routes.DynasorServingResponses",
        "refuses programs where their report would be lost",
    ),
    Hook(
        "sglang.srt.entrypoints.engine.Engine._launch_subprocesses",
        "around",
        "sglang_dynasor.handshake.launch_verified",
        "refuses unsupported setups and engines whose processes are not patched",
    ),
    Hook(
        "sglang.srt.managers.data_parallel_controller.DataParallelController.get_init_info",
        "around",
        "sglang_dynasor.handshake.report_replicas",
        "passes on what each data-parallel replica reports about its hooks",
    ),
    Hook(
        "sglang.srt.managers.data_parallel_controller.DataParallelController.send_control_message",
        "around",
        "sglang_dynasor.managers.replicas.send_to_replica",
        "sends what concerns one program to the replica it lives on",
    ),
)


def check_version() -> None:
    """Raise RuntimeError unless exactly the pinned SGLang is installed."""
    installed = version("sglang")
    if installed != SGLANG_VERSION:
        raise RuntimeError(
            f"sglang-dynasor is written against sglang=={SGLANG_VERSION}, found {installed}"
        )


def register() -> None:
    """Entry point `sglang.srt.plugins: dynasor`. Raises RuntimeError on a wrong version."""
    from sglang_dynasor.config import DynasorConfig, is_enabled

    if not is_enabled():
        return
    check_version()
    if _is_detokenizer():
        return
    DynasorConfig.from_environment()  # a malformed setting shows here, not at the first request

    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_dynasor.managers import program_messages

    program_messages.register()
    for hook in HOOKS:
        HookRegistry.register(hook.target, pkgutil.resolve_name(hook.ours), HookType(hook.kind))


def _is_detokenizer() -> bool:
    # It handles no program and need not import the scheduler; upstream titles it before loading.
    import setproctitle

    return setproctitle.getproctitle().startswith("sglang::detokenizer")
