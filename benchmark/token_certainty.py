"""The token certainty kernel against the floor, torch, torch.compile and flashinfer, on a GPU.

    python benchmark/token_certainty.py --batches 1 8 64 256 --vocabs 32000 128256 151936

The floor is the time in which this GPU's own copy moves as many bytes as the logits have. Every arm
is timed from a CUDA graph, so that no launch from Python counts, over as many different inputs as
it takes to leave nothing in the L2 cache; the arms alternate from round to round. flashinfer's
softmax and top-k are what the sampler runs anyway: they give two of our figures' inputs, not ours.

Without a GPU there is nothing to time, and the table says "not run". Then the numerics are checked
in Triton's interpreter, and the compiler is asked for registers, spills and load widths for three
generations of GPUs; with --vocabs. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sglang_dynasor.kernels import token_certainty
from sglang_dynasor.kernels.ahead_of_time import SHARED_LIMIT, compile_launch
from sglang_dynasor.kernels.reference import token_certainty_reference
from sglang_dynasor.kernels.token_certainty_triton import launches, token_certainty_triton

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmark" / "results"
TOP_K = 20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DISTINCT_BYTES = 512 << 20  # of input per timing: ten L2 caches of an H100
Arm = Callable[[torch.Tensor], Any]


def torch_sequence(logits: torch.Tensor) -> torch.Tensor:
    """The same six figures as one would write them: log_softmax, top-k, sums."""
    logits = logits.float()
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    top = log_p.topk(TOP_K, dim=1).values
    p1, p2 = top[:, 0].exp(), top[:, 1].exp()
    return torch.stack(
        (
            -(p * log_p).sum(1),
            logits.logsumexp(1),
            p1,
            p1 - p2,
            -log_p.mean(1) - math.log(logits.shape[1]),
            -top.mean(1),
        ),
        1,
    )


def make_arms() -> dict[str, Arm]:
    return {
        "token_certainty": token_certainty,
        "torch": torch_sequence,
        "torch.compile": torch.compile(torch_sequence, dynamic=False),
        "flashinfer softmax": flashinfer_softmax,
        "flashinfer top_k": flashinfer_top_k,
    }


def flashinfer_softmax(logits: torch.Tensor) -> torch.Tensor:
    import flashinfer

    return flashinfer.sampling.softmax(logits.float())


def flashinfer_top_k(logits: torch.Tensor) -> Any:
    import flashinfer

    return flashinfer.top_k(logits, TOP_K)


def capture(arm: Arm, inputs: list[torch.Tensor]) -> torch.cuda.CUDAGraph:
    """One graph that runs ``arm`` on each input."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            arm(inputs[0])
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for logits in inputs:
            arm(logits)
    return graph


def replay_us(graph: torch.cuda.CUDAGraph, calls: int) -> float:
    """Microseconds per call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return 1000 * start.elapsed_time(end) / calls


def copy_bytes_per_us(rounds: int) -> float:
    """Bytes that a device copy reads and writes per microsecond."""
    source = torch.empty(DISTINCT_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    graph = capture(target.copy_, [source])
    times = [replay_us(graph, 1) for _ in range(rounds + 1)][1:]
    return 2 * DISTINCT_BYTES / statistics.median(times)


def measure(batch: int, vocab: int, bandwidth: float, options: Any) -> list[dict[str, Any]]:
    """One row per arm for a shape; an arm that this GPU can't run says so in `note`."""
    dtype = DTYPES[options.dtype]
    size = batch * vocab * dtype.itemsize
    inputs = [
        torch.randn(batch, vocab, device="cuda").to(dtype) * 4
        for _ in range(min(256, max(1, DISTINCT_BYTES // size)))
    ]
    torch._dynamo.reset()  # a shape of its own for torch.compile
    graphs, notes = {}, {}
    for name, arm in make_arms().items():
        try:
            graphs[name] = capture(arm, inputs)
        except (ImportError, RuntimeError) as error:  # not installed, or not made for this GPU
            notes[name] = f"not run: {str(error).splitlines()[0]}"
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(options.rounds + 1):
        for name in graphs if turn % 2 else reversed(graphs):
            time = replay_us(graphs[name], len(inputs))
            if turn:  # the first one warms up
                times[name].append(time)
    floor = size / bandwidth
    rows = []
    for name in [*graphs, *notes]:
        row: dict[str, Any] = {"batch": batch, "vocab": vocab, "arm": name}
        if name in graphs:
            ordered = sorted(times[name])
            median = statistics.median(ordered)
            row |= {"us": round(median, 2), "p20_us": round(ordered[len(ordered) // 5], 2)}
            row |= {"p80_us": round(ordered[4 * len(ordered) // 5], 2)}
            row |= {"gb_per_s": round(size / median / 1000), "over_floor": round(median / floor, 2)}
        rows.append(row | {"floor_us": round(floor, 2), "note": notes.get(name, "")})
    return rows


def largest_error(logits: torch.Tensor, branch: Arm) -> float:
    """Largest absolute difference of any column from the float64 reference."""
    found, expected = branch(logits).double().cpu(), token_certainty_reference(logits, TOP_K)
    return float((found - expected).abs().max())


def numerics(options: argparse.Namespace, device: str, branch: Arm) -> dict[str, float]:
    """`largest_error` by vocabulary, two rows each."""
    source = torch.Generator().manual_seed(options.seed)
    dtype = DTYPES[options.dtype]
    errors = {}
    for vocab in options.vocabs:
        logits = torch.randn(2, vocab, generator=source) * torch.tensor([[1.0], [6.0]])
        errors[str(vocab)] = largest_error(logits.to(device, dtype), branch)
    return errors


def interpreted_numerics() -> dict[str, float]:
    """`numerics` of the kernel in Triton's interpreter, which needs a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    errors: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
    return errors


def resource_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the compiler makes of both kernels, for few and for many rows."""
    rows = []
    vocab = max(options.vocabs)
    for capability in SHARED_LIMIT:
        for batch in (8, 64):
            logits = torch.empty(batch, vocab, dtype=DTYPES[options.dtype], device="meta")
            for launch in launches(logits, TOP_K, torch.empty(batch, 6, device="meta")):
                found = compile_launch(launch, capability)
                widths = Counter(found.load_widths).most_common()
                row = {"capability": capability, "batch": batch, "vocab": vocab} | found._asdict()
                del row["load_widths"]
                rows.append(row | {"loads": ", ".join(f"{n} of {width} B" for width, n in widths)})
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    widths = {
        name: max(len(name), *(len(str(row.get(name, ""))) for row in rows)) for name in rows[0]
    }
    print("  ".join(name.rjust(width) for name, width in widths.items()))
    for row in rows:
        print("  ".join(str(row.get(name, "")).rjust(width) for name, width in widths.items()))


def describe_run(options: argparse.Namespace, machine: str, label: str) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return {
        "commit": commit.stdout.strip() or "none",
        "machine": machine,
        "python": platform.python_version(),
        "torch": version("torch"),
        "triton": version("triton"),
        "flashinfer": version_of("flashinfer-python"),
        "dtype": options.dtype,
        "seed": options.seed,
        "rounds": options.rounds,
        "label": label,
    }


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def save(path: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, *facts])
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)


def run_on_gpu(options: argparse.Namespace) -> dict[str, Any]:
    machine = torch.cuda.get_device_name()
    torch.manual_seed(options.seed)
    errors = numerics(options, "cuda", token_certainty)
    bandwidth = copy_bytes_per_us(options.rounds)
    rows = [
        row
        for vocab in options.vocabs
        for batch in options.batches
        for row in measure(batch, vocab, bandwidth, options)
    ]
    print_table(rows)
    facts = describe_run(options, machine, f"measured ({machine})")
    save(options.output / "token_certainty.csv", rows, facts)
    summary: dict[str, Any] = {"copy_gb_per_s": round(bandwidth / 1000), "largest_error": errors}
    us = {(row["batch"], row["vocab"], row["arm"]): row.get("us") for row in rows}
    for row in rows:
        if row["arm"] == "token_certainty" and "us" in row:
            shape = f"{row['batch']}x{row['vocab']}"
            baseline = us[row["batch"], row["vocab"], "torch"]
            summary[f"over_floor_{shape}"] = row["over_floor"]
            summary[f"torch_ratio_{shape}"] = round(baseline / row["us"], 2) if baseline else None
    return summary | facts


def run_without_gpu(options: argparse.Namespace) -> dict[str, Any]:
    print("no GPU found: times are not run")
    rows = resource_rows(options)
    print_table(rows)
    facts = describe_run(options, f"{platform.machine()}, no GPU", "compiled, times not run")
    save(options.output / "token_certainty_resources.csv", rows, facts)
    return {
        "largest_error_interpreted": interpreted_numerics(),
        "spilled": sum(row["spilled"] for row in rows),
        **facts,
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--vocabs", type=int, nargs="+", default=[32_000, 128_256, 151_936])
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="the engine's: float32")
    parser.add_argument("--rounds", type=int, default=30, help="measured rounds per arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--interpreted", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if options.interpreted:
        kernel: Arm = lambda logits: token_certainty_triton(logits, TOP_K)  # noqa: E731
        print(json.dumps(numerics(options, "cpu", kernel)))
        return
    run = run_on_gpu if torch.cuda.is_available() else run_without_gpu
    print(json.dumps({"benchmark": "token_certainty", **run(options)}))


if __name__ == "__main__":
    main()
