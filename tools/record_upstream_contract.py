"""Record what this package relies on in SGLang: signatures, bases, message fields, attributes.

    python tools/record_upstream_contract.py  # rewrites test/integration/upstream_contract.json

The test compares the installed SGLang with the record, so a change of any of it is seen by name
when the pin moves. Imports and overridden methods are found in our own source; what is only called
or read on an upstream object is listed here.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sglang_dynasor

PACKAGE = Path(sglang_dynasor.__file__).parent
RECORD = Path(__file__).resolve().parents[1] / "test" / "integration" / "upstream_contract.json"

CALLED = (
    "sglang.srt.managers.scheduler.Scheduler.collect_inflight_reqs",
    "sglang.srt.model_executor.model_runner.ModelRunner.sampling_observer",
    "sglang.srt.model_executor.model_runner.ModelRunner.supports_sampling_observer",
    "sglang.srt.sampling.sampling_observer.SamplingObserver.is_active",
    "sglang.srt.sampling.sampling_observer.SamplingObserver.before_grammar",
    "sglang.srt.sampling.sampling_observer.SamplingObserver.after_sample",
    "sglang.srt.managers.auxiliary_output.DeviceAuxiliaryOutput.copy_to_host",
    "sglang.srt.managers.auxiliary_output.HostAuxiliaryOutput.consume",
    "sglang.srt.managers.data_parallel_controller.DataParallelController.get_init_info",
    "sglang.srt.managers.scheduler.Scheduler._release_aborted_request",
    "sglang.srt.managers.scheduler.Scheduler.send_control_output",
    "sglang.srt.managers.scheduler.run_scheduler_process",
    "sglang.srt.managers.schedule_batch.Req.finished",
    "sglang.srt.managers.schedule_batch.ScheduleBatch.batch_size",
    "sglang.srt.managers.schedule_batch.FINISH_ABORT.__init__",
    "sglang.srt.managers.io_struct.GenerateReqInput.normalize_batch_and_arguments",
    "sglang.srt.managers.io_struct.GenerateReqInput.contains_mm_input",
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._accumulate_request_meta_info",
    "sglang.srt.managers.tokenizer_manager.TokenizerManager.auto_create_handle_loop",
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._tokenize_texts",
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._dispatch_to_scheduler",
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._init_req_state",
    "sglang.srt.managers.tokenizer_manager.TokenizerManager.create_abort_task",
    "sglang.srt.managers.tokenizer_manager.TokenizerManager.config_value",
    "sglang.srt.plugins.hook_registry.HookRegistry.register",
    "sglang.utils.TypeBasedDispatcher.__init__",
    "sglang.utils.TypeBasedDispatcher.__iadd__",
    "sglang.srt.entrypoints.engine.Engine._launch_subprocesses",
)
FIELDS = {
    "sglang.srt.managers.auxiliary_output.CommittedTokens": ("output_index", "token_ids"),
    "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo": (
        *("is_all_greedy", "logit_bias", "has_custom_logit_processor", "has_watermark_candidates"),
    ),
    "sglang.srt.managers.io_struct.AbortReq": ("rid", "finished_reason"),
    "sglang.srt.managers.schedule_batch.ScheduleBatch": (
        *("reqs", "forward_mode", "extend_num_tokens", "batch_is_full"),
    ),
    "sglang.srt.managers.io_struct.GetInternalStateReqOutput": ("internal_state",),
    "sglang.srt.managers.io_struct.TokenizedGenerateReqInput": ("rid", "sampling_params"),
    "sglang.srt.managers.io_struct.GenerateReqInput": (
        *("text", "input_ids", "input_embeds", "sampling_params", "rid", "stream"),
        "session_params",
    ),
    "sglang.srt.server_args.ServerArgs": (
        *("disaggregation_mode", "pp_size", "dllm_algorithm", "tokenizer_worker_num", "use_ray"),
    ),
}
# Set on self somewhere in the class or its bases.
ATTRIBUTES = {
    "sglang.srt.managers.scheduler.Scheduler": (
        *("waiting_queue", "chunked_req", "_pending_chunked_abort_req", "grammar_manager"),
        *("tree_cache", "token_to_kv_pool_allocator", "_request_dispatcher"),
        *("tp_worker", "output_streamer", "policy", "schedule_policy", "page_size"),
        "_engine_paused",
    ),
    "sglang.srt.constrained.grammar_manager.GrammarManager": ("grammar_queue",),
    "sglang.srt.managers.tokenizer_manager.TokenizerManager": (
        *("rid_to_state", "_result_dispatcher", "tokenizer", "incremental_streaming_output"),
    ),
    "sglang.srt.managers.data_parallel_controller.DataParallelController": (
        "_scheduler_init_infos",
    ),
    "sglang.srt.managers.schedule_batch.Req": (
        *("rid", "output_ids", "origin_input_ids", "grammar", "kv", "to_finish"),
        *("finished_reason", "skip_radix_cache_insert", "discard_output_reason"),
        "sampling_params",
    ),
}


def upstream(path: str) -> Any:
    """The upstream object at a dotted path, also where our plugin has taken its place."""
    owner_path, _, name = path.rpartition(".")
    try:
        owner = importlib.import_module(owner_path)
    except ModuleNotFoundError:
        owner = upstream(owner_path)
    try:
        found = inspect.getattr_static(owner, name)
    except AttributeError:  # made by the module on demand, or a module itself
        found = getattr(owner, name, None) or importlib.import_module(path)
    if isinstance(found, type):
        bases = (base for base in found.__mro__ if not base.__module__.startswith("sglang_dynasor"))
        found = next(bases)
    if isinstance(found, (classmethod, staticmethod)):
        found = found.__func__
    return found.fget if isinstance(found, property) else found


def imported_paths() -> Iterator[str]:
    """Dotted paths of everything our modules import from SGLang."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def overridden_paths() -> Iterator[str]:
    """Dotted paths of the upstream methods that our classes override."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "(" not in path.read_text(encoding="utf-8") or path.name == "__main__.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        uses_sglang = any(
            isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang.")
            for node in tree.body
        )
        classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        if not uses_sglang or not classes:
            continue
        relative = path.relative_to(PACKAGE).with_suffix("")
        module = importlib.import_module(".".join(["sglang_dynasor", *relative.parts]))
        for name in classes:
            yield from _overridden_by(getattr(module, name))


def _overridden_by(ours: type) -> Iterator[str]:
    bases = [base for base in ours.__mro__ if base.__module__.split(".")[0] == "sglang"]
    for name, value in vars(ours).items():
        if not callable(value) and not isinstance(value, (property, classmethod, staticmethod)):
            continue
        owner = next((base for base in bases if name in vars(base)), None)
        if owner is not None and (not name.startswith("__") or name == "__init__"):
            yield f"{owner.__module__}.{owner.__qualname__}.{name}"


def contract() -> dict[str, Any]:
    """What is relied on, as the installed SGLang has it."""
    functions: dict[str, str] = {}
    classes: dict[str, list[str]] = {}
    for path in sorted({*imported_paths(), *overridden_paths(), *CALLED}):
        found = upstream(path)
        if isinstance(found, type):
            classes[path] = [base.__name__ for base in found.__mro__[1:-1]]
        elif inspect.isroutine(found):
            functions[path] = _stable(str(inspect.signature(found)))
        else:
            functions[path] = type(found).__name__
    return {
        "functions": functions,
        "classes": classes,
        "fields": {path: _fields(upstream(path), names) for path, names in FIELDS.items()},
        "attributes": {
            path: _assigned(upstream(path), names) for path, names in ATTRIBUTES.items()
        },
    }


def _fields(owner: Any, names: tuple[str, ...]) -> dict[str, str | None]:
    if dataclasses.is_dataclass(owner):
        known = {field.name: str(field.type) for field in dataclasses.fields(owner)}
    else:
        known = {
            name: str(annotation)
            for base in reversed(owner.__mro__)
            for name, annotation in vars(base).get("__annotations__", {}).items()
        }
    return {name: _stable(known[name]) if name in known else None for name in names}


def _assigned(owner: type, names: tuple[str, ...]) -> dict[str, bool]:
    sources = [inspect.getsource(base) for base in owner.__mro__[:-1]]
    sources += [inspect.getsource(sys.modules[owner.__module__])]
    text = "\n".join(sources)
    return {name: bool(re.search(rf"self\.{name}\b[^=\n]*=[^=]", text)) for name in names}


def _stable(text: str) -> str:
    """Without memory addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def main() -> None:
    RECORD.write_text(json.dumps(contract(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {RECORD}")


if __name__ == "__main__":
    main()
