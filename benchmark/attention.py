"""Decode throughput of the attention backend ``batched_cpu`` beside ``torch_native``.

Both arms run in ONE engine: between rounds the scheduler process is told (by upstream's own
``collective_rpc``) to swap the attention backend of its model runner. So both see the same process,
KV pool, prefix cache and requests, and the arms alternate: a machine that grows slower or faster
during the run does so for both. Measured is a whole ``generate`` call on prompts that are already
in the prefix cache: one extend step of one token per request, then ``--tokens`` decode steps with
everything a step costs, not the attention alone. The order of the arms flips from round to round.

The ratio is the median over rounds of (ours / torch_native), so both arms of a pair saw the same
load of the machine. On a shared machine believe the processor time of the scheduler process more
than the wall clock: it is given beside it, with its own ratio.

    python benchmark/attention.py --batches 1 8 32 64 128 --rounds 5
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "python" / "sglang_dynasor" / "models" / "tiny_reasoner"
RESULTS = ROOT / "benchmark" / "results" / "attention.csv"
BASELINE, OURS = "torch_native", "batched_cpu"


def use_attention(scheduler: Any, name: str) -> None:
    """Runs in the scheduler process, as a method of its Scheduler: decode with backend ``name``."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    runner = scheduler.tp_worker.model_runner
    backends = runner.__dict__.setdefault("_benchmark_backends", {})
    if name not in backends:
        backends[name] = ATTENTION_BACKENDS[name](runner)
    runner.attn_backend = backends[name]


def run_scheduler(*arguments: Any, **keywords: Any) -> Any:
    """Upstream's scheduler process, with `use_attention` reachable from the outside."""
    from sglang.srt.managers import scheduler

    scheduler.Scheduler.use_attention = use_attention
    return scheduler.run_scheduler_process(*arguments, **keywords)


def start_engine(options: argparse.Namespace) -> Any:
    from sglang.srt.entrypoints.engine import Engine

    class SwitchingEngine(Engine):
        run_scheduler_process_func = staticmethod(run_scheduler)

    batch = max(options.batches)
    longest = max(len(ids) for ids in read_prompts(options, batch)) + options.tokens
    return SwitchingEngine(
        model_path=str(options.model_path),
        attention_backend=OURS,
        random_seed=options.seed,
        max_running_requests=batch,
        max_total_tokens=batch * (longest + 8),
    )


def read_prompts(options: argparse.Namespace, batch: int) -> list[list[int]]:
    """Token ids of ``batch`` prompts: the problems in turn, or random ids of mixed length."""
    source = random.Random(options.seed)
    if options.problems_file is None:
        low, high = options.prompt_tokens
        return [
            [source.randrange(6, 100) for _ in range(source.randint(low, high))]
            for _ in range(batch)
        ]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model_path)
    problems = [json.loads(line) for line in options.problems_file.read_text().splitlines()]
    texts = [
        problem["prompt"]
        if "prompt" in problem
        else tokenizer.apply_chat_template(
            problem["messages"], tokenize=False, add_generation_prompt=True
        )
        for problem in problems
    ]
    return [tokenizer.encode(texts[row % len(texts)]) for row in range(batch)]


def scheduler_process() -> psutil.Process:
    """The engine's scheduler, which upstream names after its role."""
    return next(
        child
        for child in psutil.Process().children(recursive=True)
        if "sglang::scheduler" in child.name() or "sglang::scheduler" in " ".join(child.cmdline())
    )


def seconds_of(
    engine: Any, prompts: list[list[int]], options: argparse.Namespace
) -> tuple[float, float]:
    """Wall-clock seconds and scheduler processor seconds of one round."""
    settings = {
        "temperature": options.temperature,
        "max_new_tokens": options.tokens,
        "ignore_eos": True,
    }
    process = scheduler_process()
    busy = sum(process.cpu_times()[:2])
    start = time.perf_counter()
    engine.generate(input_ids=prompts, sampling_params=settings)
    return time.perf_counter() - start, sum(process.cpu_times()[:2]) - busy


def measure(
    engine: Any, batch: int, options: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Seconds and processor seconds of every round, by arm."""
    prompts = read_prompts(options, batch)
    rounds: dict[str, list[tuple[float, float]]] = {BASELINE: [], OURS: []}
    for turn in range(-1, options.rounds):  # the first turn fills caches and is thrown away
        for arm in (BASELINE, OURS) if turn % 2 else (OURS, BASELINE):
            engine.collective_rpc("use_attention", name=arm)
            seconds = seconds_of(engine, prompts, options)
            if turn >= 0:
                rounds[arm].append(seconds)
    return rounds


def summarise(
    rounds: dict[str, list[tuple[float, float]]], batch: int, tokens: int
) -> list[dict[str, Any]]:
    """One row per arm. Ratios are medians over pairs of rounds, above 1 where the arm is faster."""
    rows = []
    for arm, times in rounds.items():
        rates = sorted(batch * tokens / wall for wall, _ in times)
        wall_ratios, busy_ratios = (
            [base[which] / own[which] for base, own in zip(rounds[BASELINE], times, strict=True)]
            for which in (0, 1)
        )
        rows.append(
            {
                "batch": batch,
                "backend": arm,
                "tokens_per_second": round(statistics.median(rates), 1),
                "low": round(rates[0], 1),
                "high": round(rates[-1], 1),
                "ms_per_step": round(1000 * statistics.median(w for w, _ in times) / tokens, 2),
                "cpu_ms_per_step": round(1000 * statistics.median(c for _, c in times) / tokens, 2),
                "ratio": round(statistics.median(wall_ratios), 3),
                "cpu_ratio": round(statistics.median(busy_ratios), 3),
            }
        )
    return rows


def describe_run(options: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    cpu_lines = [
        line.partition(":")[2].strip()
        for line in _read(Path("/proc/cpuinfo")).splitlines()
        if line.startswith("model name")
    ]
    return {
        "commit": commit.stdout.strip() or "none",
        "machine": f"{cpu_lines[0] if cpu_lines else platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "python": platform.python_version(),
        "torch": version("torch"),
        "sglang": version("sglang"),
        "model": options.model_path.name,
        "seed": options.seed,
        "tokens": options.tokens,
        "rounds": options.rounds,
        "label": "measured (CPU)",
    }


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", type=Path, default=MODEL)
    parser.add_argument("--problems-file", type=Path, help="JSON lines with prompt or messages")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds per arm")
    parser.add_argument("--tokens", type=int, default=96, help="decode steps per round")
    parser.add_argument(
        "--prompt-tokens", type=int, nargs=2, default=[16, 256], metavar=("LOW", "HIGH")
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    rows: list[dict[str, Any]] = []
    engine = start_engine(options)
    try:
        columns = ["tokens/s", "low", "high", "ms/step", "cpu ms/step", "ratio", "cpu ratio"]
        print(f"{'batch':>5}  {'backend':<13}" + "".join(f"{name:>12}" for name in columns))
        for batch in options.batches:
            for row in summarise(measure(engine, batch, options), batch, options.tokens):
                rows.append(row)
                numbers = "".join(f"{number:>12}" for number in list(row.values())[2:])
                print(f"{batch:>5}  {row['backend']:<13}{numbers}", flush=True)
    finally:
        engine.shutdown()
    facts = describe_run(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *facts])
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)
    ours = [row for row in rows if row["backend"] == OURS]
    summary = {f"ratio_at_{row['batch']}": row["ratio"] for row in ours}
    summary |= {f"cpu_ratio_at_{row['batch']}": row["cpu_ratio"] for row in ours}
    print(json.dumps({"benchmark": "attention", **summary, **facts}))


if __name__ == "__main__":
    main()
