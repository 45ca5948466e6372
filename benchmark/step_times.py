"""How long the passes of an engine take, for `sglang-dynasor simulate --step-times`.

    python benchmark/step_times.py --model-path MODEL --out steps.csv

On any engine, a GPU included: requests of `--decode-tokens` tokens, up to `--max-batch` of them at
once, and prompts of up to `--max-prompt` tokens. The scheduler itself notes its passes (see
`recorded_engine`): what it does between two of them is in, what clients cost is not. Means, in
milliseconds. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from recorded_engine import RecordedEngine, recorded, table
from serving_report import facts
from sglang_dynasor.models import resolve_model
from sglang_dynasor.platforms import activate

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROMPTS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096)
WRITTEN_S = 1.0  # after the last answer, by which the log is


def drive(engine: Any, options: argparse.Namespace) -> None:
    """Ask for batches of all sizes that fit, and for prompts of all lengths that may be."""
    rng = random.Random(options.seed)
    room = int(engine.get_server_info()["max_total_num_tokens"])
    context = engine.tokenizer_manager.context_len

    def ask(batch: int, prompt_tokens: int, new_tokens: int) -> None:
        length = prompt_tokens + new_tokens
        if batch * length > room or length >= context:
            return
        prompts = [
            [rng.randrange(3, options.vocabulary) for _ in range(prompt_tokens)]
            for _ in range(batch)
        ]
        params = {"temperature": 1.0, "max_new_tokens": new_tokens, "ignore_eos": True}
        engine.generate(input_ids=prompts, sampling_params=params)

    for _ in range(options.repeats):
        for batch in BATCHES:
            if batch <= options.max_batch:
                ask(batch, 8, options.decode_tokens)
        for size in PROMPTS:
            if size <= options.max_prompt:
                ask(1, size, 1)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of kind, size and ms."""
    activate()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "steps.jsonl"
        model = str(resolve_model(options.model_path))
        flags = {"model_path": model, "random_seed": options.seed, "log_level": "error"}
        engine = RecordedEngine(log=log, **flags)
        try:
            engine.generate(input_ids=[[5] * 8] * 4, sampling_params={"max_new_tokens": 32})
            time.sleep(WRITTEN_S)
            recorded(log)  # the warm-up's
            drive(engine, options)
            time.sleep(WRITTEN_S)
            steps = recorded(log).steps
        finally:
            engine.shutdown()
    return [
        {"kind": kind, "size": round(size, 2), "ms": round(ms, 4)}
        for kind, passes in steps.items()
        for size, ms in table(passes)
    ]


def main() -> None:
    """Measure, write the table, end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model-path", default="tiny_reasoner", help="directory or embedded name")
    parser.add_argument("--out", type=Path, required=True, help="CSV: kind, size, ms")
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--max-prompt", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32, help="prompts draw ids below it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = measure(options)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["kind", "size", "ms"])
        writer.writeheader()
        writer.writerows(rows)
    print(json.dumps({"rows": rows, **facts(options)}))


if __name__ == "__main__":
    main()
