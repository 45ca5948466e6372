"""How long the passes of an engine take, for `sglang-dynasor simulate --step-times`.

    python benchmark/step_times.py --model-path MODEL --out steps.csv

On any engine, a GPU included: `batch` requests of `--decode-tokens` tokens each, all at once, give
the time of a decode pass; one request of `size` new tokens and one output gives that of a prefill.
Medians of `--repeats`, in milliseconds; what scheduler and client add is in them. The last line of
stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from serving_report import facts
from sglang_dynasor.demo import started_engine
from sglang_dynasor.models import resolve_model

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROMPTS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096)


def seconds_of(engine: Any, prompts: list[list[int]], new_tokens: int) -> float:
    engine.flush_cache()
    params = {"temperature": 1.0, "max_new_tokens": new_tokens, "ignore_eos": True}
    started = time.perf_counter()
    engine.generate(input_ids=prompts, sampling_params=params)
    return time.perf_counter() - started


def measure(engine: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of kind, size and ms. `options` are the command line's below."""
    rng = random.Random(options.seed)
    info = engine.get_server_info()
    vocabulary = options.vocabulary
    context = int(info["max_total_num_tokens"])

    def prompt(length: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(length)]

    rows = []
    tokens = options.decode_tokens
    for batch in BATCHES:
        if batch > options.max_batch or batch * (tokens + 8) > context:
            break
        prompts = [prompt(8) for _ in range(batch)]
        # Twice as many tokens less once as many: prefill and start cancel.
        took = [
            seconds_of(engine, prompts, 2 * tokens) - seconds_of(engine, prompts, tokens)
            for _ in range(options.repeats)
        ]
        rows.append(_row("decode", batch, statistics.median(took) / tokens))
    for size in PROMPTS:
        if size > options.max_prompt:
            break
        took = [seconds_of(engine, [prompt(size)], 1) for _ in range(options.repeats)]
        rows.append(_row("prefill", size, statistics.median(took)))
    return rows


def _row(kind: str, size: int, seconds: float) -> dict[str, Any]:
    return {"kind": kind, "size": size, "ms": round(1000 * seconds, 4)}


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
    model = resolve_model(options.model_path)
    with started_engine(model, options.seed) as engine:
        seconds_of(engine, [[5] * 8] * 4, 32)  # warm
        rows = measure(engine, options)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["kind", "size", "ms"])
        writer.writeheader()
        writer.writerows(rows)
    print(json.dumps({"rows": rows, **facts(options)}))


if __name__ == "__main__":
    main()
