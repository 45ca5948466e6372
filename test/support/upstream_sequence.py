"""Script: a fixed sequence of ordinary requests, one at a time, on a fresh `sglang.Engine`.

Writes what came back, without ids and times, to the file given. Whether the plugin is in force is
decided by the environment alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

GREEDY = {"temperature": 0.0, "max_new_tokens": 60}
SAMPLED = {"temperature": 1.3, "max_new_tokens": 60}
LONG_PROMPT = "+".join(str(10 + 7 * i % 89) for i in range(40))

REQUESTS: list[dict[str, Any]] = [
    {"prompt": "37+58+91", "sampling_params": GREEDY},
    {"prompt": "37+58+91", "sampling_params": SAMPLED},
    {"prompt": "37+58+91", "sampling_params": SAMPLED},
    {"prompt": LONG_PROMPT, "sampling_params": SAMPLED},
    {"prompt": LONG_PROMPT + "+1", "sampling_params": GREEDY},
    {"prompt": "12+34", "sampling_params": {**SAMPLED, "stop": ["=", ";"]}},
    {"prompt": "12+34", "sampling_params": {**SAMPLED, "ignore_eos": True}},
    {"prompt": "12+34", "sampling_params": {**SAMPLED, "custom_params": {"own": 1}}},
    {"prompt": "12+34", "sampling_params": {**SAMPLED, "top_k": 5, "min_p": 0.01}},
    {"prompt": "12+34", "sampling_params": {**SAMPLED, "frequency_penalty": 0.5}},
    {"input_ids": [10, 11, 12, 13], "sampling_params": SAMPLED},
    {"prompt": "99+98", "sampling_params": SAMPLED, "return_logprob": True},
    {"prompt": "99+98", "sampling_params": SAMPLED, "rid": "own-id"},
    {"prompt": "99+98", "sampling_params": {"temperature": "hot"}},
    {"prompt": "9" * 600, "sampling_params": SAMPLED},
    {"prompt": "11+22+33", "sampling_params": SAMPLED},
]


def without_ids_and_times(output: dict[str, Any]) -> dict[str, Any]:
    meta = {
        key: value
        for key, value in output["meta_info"].items()
        if key != "id" and "latency" not in key and not key.endswith(("_ts", "_time"))
    }
    return {**output, "meta_info": meta}


def answer(engine: Any, request: dict[str, Any]) -> Any:
    try:
        return without_ids_and_times(engine.generate(**request))
    except Exception as error:  # what is refused must be refused alike
        return [type(error).__name__, str(error)]


def main() -> None:
    from sglang.srt.entrypoints.engine import Engine

    from sglang_dynasor.models import default_model_path

    engine = Engine(model_path=str(default_model_path()), random_seed=7, max_total_tokens=4096)
    info = engine._scheduler_init_result.scheduler_infos[0]
    result = {
        "tokenizer_manager": type(engine.tokenizer_manager).__name__,
        "scheduler_is_ours": "dynasor" in info,
        "outputs": [answer(engine, request) for request in REQUESTS],
    }
    Path(sys.argv[1]).write_text(json.dumps(result))
    engine.shutdown()


if __name__ == "__main__":
    main()
