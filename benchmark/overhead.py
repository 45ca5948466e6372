"""What the plugin costs: switched off, on but idle, and measuring the certainty of every request.

    python benchmark/overhead.py --rounds 3 --seconds 180 --starts 2
    python benchmark/overhead.py --http    # two servers and streaming requests: overhead_http.py

Two engines run side by side, one without the plugin and one with it, and sleep when they have
nothing to do. The arms take turns in a shuffled order: a machine that grows slower during the run
does so for all. A round is one `generate` call of `--batch` requests of `--tokens` tokens on
prompts that are in the prefix cache. `--starts` repeats all of it with fresh engines, for two
processes of the same code differ by their memory layout, too.

A ratio is throughput over that with the plugin off, the median over rounds with a bootstrap
interval of 95%. On a shared machine believe the processor time of the scheduler process beside it
more. `consume_us_per_row` is host work per committed token in the scheduler, at the same batch.

These are CPU figures, of hooks and host work, and of a plain torch branch that measures the logits.
They say nothing of the Triton kernel, which only `benchmark/token_certainty.py` times, on a GPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import overhead_http
from attention import MODEL, ROOT, describe_run, read_prompts
from overhead_worker import Worker
from sglang_dynasor.models import smollm2

RESULTS = ROOT / "benchmark" / "results"
ARMS = ("off", "idle", "certainty")
RATIO_NAMES = {"tiny_reasoner": "", "smollm2": "_v49k"}
BARS = {"idle": 0.99, "certainty": 0.97, "certainty_v49k": 0.95, "consume_us_per_row": 3.0}
RESAMPLES = 2000
# The architecture of SmolLM2-135M, for machines on which its weights can't be had.
SMOLLM2_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
Times = dict[str, list[tuple[float, float]]]


def models_of(options: argparse.Namespace, folder: Path) -> list[tuple[str, Path, bool]]:
    """Name, path, and whether the weights are random, of each model to run."""
    if options.model_path is not None:
        return [(options.model_path.name, options.model_path, False)]
    models = [("tiny_reasoner", MODEL, False)]
    if options.skip_smollm2:
        return models
    try:
        return [*models, ("smollm2", smollm2.fetch(), False)]
    except FileNotFoundError as error:
        print(f"smollm2: random weights of its architecture, for {error}")
        (folder / "config.json").write_text(json.dumps(SMOLLM2_CONFIG))
        return [*models, ("smollm2", folder, True)]


def measure(path: Path, dummy: bool, options: argparse.Namespace, folder: Path) -> Times:
    """Wall-clock and processor seconds of every round, by arm."""
    chosen = argparse.Namespace(**{**vars(options), "model_path": path})
    spec = {
        "model": str(path),
        "dummy_weights": dummy,
        "prompts": read_prompts(chosen, options.batch),
        "tokens": options.tokens,
        "temperature": options.temperature,
        "seed": options.seed,
    }
    source = random.Random(options.seed)
    times: Times = {arm: [] for arm in ARMS}
    for _ in range(options.starts):
        without = Worker(False, spec, folder / "off.log")
        try:
            without.wait_ready()
            with_plugin = Worker(True, spec, folder / "on.log")
            try:
                with_plugin.wait_ready()
                workers = {"off": without, "idle": with_plugin, "certainty": with_plugin}
                take_turns(workers, options.rounds, options.seconds, source, times)
            finally:
                with_plugin.stop()
        finally:
            without.stop()
    return times


def take_turns(
    workers: dict[str, Worker], rounds: int, seconds: float, source: random.Random, times: Times
) -> None:
    """At least so many rounds of every arm and for at least so long, in a new order each time."""
    for arm, worker in workers.items():  # fills the caches: thrown away
        worker.seconds(measured=arm == "certainty")
    done, until = 0, time.monotonic() + seconds
    while done < rounds or time.monotonic() < until:
        for arm in source.sample(ARMS, len(ARMS)):
            times[arm].append(workers[arm].seconds(measured=arm == "certainty"))
        done += 1


def median_interval(values: list[float], seed: int) -> tuple[float, float, float]:
    """The median, and the ends of its bootstrap interval of 95%."""
    drawn = np.random.default_rng(seed).choice(values, (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return statistics.median(values), float(low), float(high)


def summarise(name: str, times: Times, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per arm; a ratio above 1 is faster than with the plugin off."""
    rows = []
    for arm in ARMS:
        walls = [wall for wall, _ in times[arm]]
        row: dict[str, Any] = {
            "model": name,
            "arm": arm,
            "batch": options.batch,
            "tokens_per_second": options.batch * options.tokens / statistics.median(walls),
        }
        for which, prefix in enumerate(("", "cpu_")):
            ratios = [
                base[which] / own[which] for base, own in zip(times["off"], times[arm], strict=True)
            ]
            middle, low, high = median_interval(ratios, options.seed)
            row |= {f"{prefix}ratio": middle, f"{prefix}low": low, f"{prefix}high": high}
        rows.append({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})
    return rows


def consume_us_per_row(batch: int, calls: int = 2048, block: int = 64) -> dict[str, float]:
    """Median microseconds per row of `BranchCertainty.consume`, by what is asked of it.

    Over blocks of calls, for a call may leave its work to a later one.
    """
    from sglang.srt.managers.auxiliary_output import CommittedTokens

    from sglang_dynasor.allocation import BranchRule
    from sglang_dynasor.kernels.token_certainty import COLUMNS
    from sglang_dynasor.managers.branch_certainty import BranchCertainty
    from sglang_dynasor.managers.certainty_observer import HostCertainty

    every_rule = BranchRule(bar=0.001, loop=True, entropy_floor=1e-6)
    source = np.random.default_rng(0)
    reqs: Any = [
        SimpleNamespace(rid=f"program::{row}", finished=lambda: False) for row in range(batch)
    ]
    values = torch.from_numpy(source.random((calls, batch, len(COLUMNS)), np.float32))
    tokens = source.integers(0, 50_000, (calls, batch)).tolist()
    result = {}
    for name, rule, keeps_values in (
        ("measured", None, False),
        ("every rule", every_rule, False),
        ("every rule and token values", every_rule, True),
    ):
        certainty = BranchCertainty()
        for req in reqs:
            certainty.open(req.rid, rule, keeps_values)
        times = []
        for call in range(calls):
            commits = [CommittedTokens(call, (token,)) for token in tokens[call]]
            certain = HostCertainty(values[call], True, None, certainty.consume)
            start = time.perf_counter_ns()
            certainty.consume(reqs, commits, certain)
            times.append((time.perf_counter_ns() - start) / 1000 / batch)
            if call % block == block - 1:
                certainty.payloads(reqs)  # as a stream takes them
        blocks = [statistics.mean(times[at : at + block]) for at in range(0, calls, block)]
        result[name] = statistics.median(blocks)
    return result


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", type=Path, help="default: the tiny reasoner, then SmolLM2")
    parser.add_argument("--skip-smollm2", action="store_true", help="the tiny reasoner alone")
    parser.add_argument("--problems-file", type=Path, help="JSON lines with prompt or messages")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96, help="decode steps per round")
    parser.add_argument(
        "--prompt-tokens", type=int, nargs=2, default=[16, 256], metavar=("LOW", "HIGH")
    )
    parser.add_argument("--rounds", type=int, default=3, help="per arm and start, at least")
    parser.add_argument("--seconds", type=float, default=180, help="per start, at least")
    parser.add_argument("--starts", type=int, default=2, help="fresh pairs of engines")
    parser.add_argument(
        "--http", action="store_true", help="of requests over HTTP, plugin off and on"
    )
    parser.add_argument("--output", type=Path, help="default: a file in benchmark/results")
    options = parser.parse_args()
    if options.output is None:
        options.output = RESULTS / ("overhead_http.csv" if options.http else "overhead.csv")
    return options


def main_http(options: argparse.Namespace) -> None:
    options.model_path = options.model_path or MODEL
    with tempfile.TemporaryDirectory() as folder:
        rounds = overhead_http.measure(options, Path(folder))
    rows = overhead_http.summarise(rounds, options, median_interval)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    on = rows[-1]
    summary = {f"http_{key}": on[key] for key in ("ratio", "low", "high", "cpu_ratio")}
    facts = describe_run(options)
    write_rows(options.output, rows, facts)
    print(
        json.dumps({"benchmark": "overhead --http", **summary, "bars": overhead_http.BARS, **facts})
    )


def write_rows(path: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *facts])
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)


def main() -> None:
    options = parse_options()
    if options.http:
        main_http(options)
        return
    consume = consume_us_per_row(options.batch)
    for name, microseconds in consume.items():
        print(f"consume, {name}: {microseconds:.2f} us per row at batch {options.batch}")
    summary: dict[str, Any] = {"consume_us_per_row": round(max(consume.values()), 3)}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path, dummy in models_of(options, Path(folder)):
            times = measure(path, dummy, options, Path(folder))
            for row in summarise(name, times, options):
                rows.append(row | {"weights": "random" if dummy else "the model's"})
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
                if row["arm"] != "off":
                    key = f"{row['arm']}_ratio{RATIO_NAMES.get(name, '')}"
                    summary |= {key: row["ratio"], f"cpu_{key}": row["cpu_ratio"]}
    facts = describe_run(argparse.Namespace(**{**vars(options), "model_path": MODEL}))
    del facts["model"]  # every row has its own
    write_rows(options.output, rows, facts)
    print("CPU figures of hooks and host work; they say nothing of the Triton kernel.")
    print(json.dumps({"benchmark": "overhead", **summary, "bars": BARS, **facts}))


if __name__ == "__main__":
    main()
