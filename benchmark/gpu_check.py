"""Everything that only a GPU can show, in one command and one JSON file.

    python benchmark/gpu_check.py --model-path DIR --output gpu_check.json

Takes any model directory and no network. Each check is a process of its own with a time limit, so
that one which hangs or crashes is reported and the others still run:

    hooks         `sglang-dynasor doctor`
    observer      the certainty observer with the CUDA driver told to fail on any synchronisation
    graph         the kernel captured in a CUDA graph and replayed on other logits
    off           the same ordinary requests with the plugin off and on: the same tokens
    engine        CUDA graphs, overlap and flashinfer on; with certainty the tokens stay the same
    overhead      decode throughput, certainty on over off, alternating in one engine
    kernel_table  `benchmark/token_certainty.py`

Exit status: 0 all passed, 1 something failed, 2 no GPU found.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

LIMITS_S = {"hooks": 120, "observer": 180, "graph": 180, "engine_off": 420, "engine_on": 720}
TABLE_LIMIT_S = 600
BATCH, TOKENS, ROUNDS = 32, 128, 5
GREEDY = {"temperature": 0.0, "max_new_tokens": 64, "ignore_eos": True}
MEASURED = {"token_certainty": True}
PROMPTS = (
    "What is 37 + 58 + 91?",
    "Name the planets in order of their distance from the sun.",
    "A train leaves at noon and travels 240 km at 80 km/h. When does it arrive? Think first.",
)


def check_hooks(options: argparse.Namespace) -> dict[str, Any]:
    from sglang_dynasor.doctor import examine

    return {"passed": examine() == 0}


def check_observer(options: argparse.Namespace) -> dict[str, Any]:
    """Any wait for the device raises inside the observer; the host reads after its own wait."""
    from sglang_dynasor.managers.certainty_observer import CertaintyObserver, read

    seen: list[Any] = []
    observer = CertaintyObserver(lambda reqs, commits, certainty: seen.append(certainty))
    info: Any = SimpleNamespace(
        is_all_greedy=True,
        logit_bias=None,
        has_custom_logit_processor=False,
        has_watermark_candidates=False,
    )
    logits = torch.randn(BATCH, 151_936, device="cuda")
    ids = logits.argmax(1)
    observer.after_sample(observer.before_grammar(logits, info), ids)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        device = observer.after_sample(observer.before_grammar(logits, info), ids)
        host = device.copy_to_host(lambda tensor: tensor.to("cpu", non_blocking=True))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    batch: Any = SimpleNamespace(reqs=[None] * BATCH)
    host.consume(batch, [None] * BATCH)
    ((values, _),) = read(seen)
    return {"passed": bool((values >= 0).all()), "rows": len(values)}


def check_graph(options: argparse.Namespace) -> dict[str, Any]:
    from sglang_dynasor.kernels import token_certainty
    from sglang_dynasor.kernels.reference import token_certainty_reference

    errors = {}
    for rows in (1, 32, 33, 256):  # both regimes
        logits = torch.randn(rows, 128_256, device="cuda")
        token_certainty(logits)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = token_certainty(logits)
        logits.normal_().mul_(5.0)
        graph.replay()
        errors[rows] = float((out.double().cpu() - token_certainty_reference(logits)).abs().max())
    return {"passed": max(errors.values()) < 2e-5, "largest_error": errors}


def generate_alone(engine: Any, **keywords: Any) -> list[list[int]]:
    """Token ids of each prompt, one request at a time: batch composition changes GPU sums."""
    return [
        engine.generate(prompt, sampling_params=dict(GREEDY), **keywords)["output_ids"]
        for prompt in PROMPTS
    ]


def tokens_per_second(engine: Any, **keywords: Any) -> float:
    prompts = [f"{index}: {PROMPTS[index % len(PROMPTS)]}" for index in range(BATCH)]
    params = {"temperature": 1.0, "max_new_tokens": TOKENS, "ignore_eos": True}
    start = time.perf_counter()
    engine.generate(prompts, sampling_params=params, **keywords)
    return BATCH * TOKENS / (time.perf_counter() - start)


def check_engine_off(options: argparse.Namespace) -> dict[str, Any]:
    """The engine without the plugin (the environment says so)."""
    from sglang.srt.entrypoints.engine import Engine

    engine = Engine(
        model_path=str(options.model_path),
        random_seed=options.seed,
        attention_backend=options.attention_backend,
    )
    try:
        outputs = generate_alone(engine)
        tokens_per_second(engine)
        rates = [tokens_per_second(engine) for _ in range(ROUNDS)]
        return {
            "passed": "dynasor" not in engine.get_server_info(),
            "outputs": outputs,
            "tokens_per_second": round(statistics.median(rates), 1),
        }
    finally:
        engine.shutdown()


def check_engine_on(options: argparse.Namespace) -> dict[str, Any]:
    from sglang_dynasor import DynasorEngine

    engine = DynasorEngine(
        model_path=str(options.model_path),
        random_seed=options.seed,
        attention_backend=options.attention_backend,
    )
    try:
        info = engine.get_server_info()
        settings = {
            "cuda_graph": info["cuda_graph_config"]["decode"]["backend"],
            "overlap": not info["disable_overlap_schedule"],
            "attention_backend": info["attention_backend"],
        }
        outputs = generate_alone(engine)
        measured = engine.generate(PROMPTS[0], sampling_params=dict(GREEDY), program=MEASURED)
        certainty = measured["meta_info"]["dynasor"]["certainty"]
        same = generate_alone(engine, program=MEASURED) == generate_alone(engine)
        tokens_per_second(engine, program=MEASURED)
        pairs = [
            (tokens_per_second(engine), tokens_per_second(engine, program=MEASURED))
            for _ in range(ROUNDS)
        ]
    finally:
        engine.shutdown()
    return {
        "passed": same
        and settings["cuda_graph"] != "disabled"
        and settings["overlap"]
        and certainty["tokens"] == GREEDY["max_new_tokens"],
        "settings": settings,
        "same_tokens_with_certainty": same,
        "certainty": certainty,
        "outputs": outputs,
        "tokens_per_second": round(statistics.median(off for off, _ in pairs), 1),
        "certainty_ratio": round(statistics.median(on / off for off, on in pairs), 4),
    }


CHECKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "hooks": check_hooks,
    "observer": check_observer,
    "graph": check_graph,
    "engine_off": check_engine_off,
    "engine_on": check_engine_on,
}


def run(command: list[str], limit_s: float, switch: str = "1") -> dict[str, Any]:
    """The JSON object of the last stdout line of a process, or what became of the process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "SGLANG_DYNASOR": switch},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # an engine's processes too
        process.communicate()
        return {"passed": False, "reason": f"longer than {limit_s} s"}
    lines = stdout.strip().splitlines()
    if process.returncode or not lines or not lines[-1].startswith("{"):
        reason = stderr.strip()[-2000:] or f"exit status {process.returncode}"
        return {"passed": False, "reason": reason}
    result: dict[str, Any] = json.loads(lines[-1])
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, limit_s in LIMITS_S.items():
        print(f"{name} ...", flush=True)
        command = [__file__, *sys.argv[1:], "--check", name]
        results[name] = run(command, limit_s, "0" if name == "engine_off" else "1")
        print(f"{name}: {verdict(results[name])}", flush=True)
    off, on = results["engine_off"], results["engine_on"]
    same = "outputs" in off and off["outputs"] == on.get("outputs")
    results["off_means_off"] = {"passed": same}
    if "tokens_per_second" in off and "tokens_per_second" in on:
        # Two processes, one after the other: read it with a grain of salt.
        results["idle_ratio"] = round(on["tokens_per_second"] / off["tokens_per_second"], 4)
    table = run([str(Path(__file__).with_name("token_certainty.py"))], TABLE_LIMIT_S)
    results["kernel_table"] = {"passed": "reason" not in table} | table
    for name in ("off_means_off", "kernel_table"):
        print(f"{name}: {verdict(results[name])}", flush=True)
    return results


def verdict(result: dict[str, Any]) -> str:
    return "passed" if result["passed"] else f"FAILED {result.get('reason', '')}".rstrip()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", type=Path, required=True, help="a model directory")
    parser.add_argument("--attention-backend", default="flashinfer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--check", choices=CHECKS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    if not torch.cuda.is_available():
        print("no GPU found")
        return 2
    if not options.model_path.is_dir():
        print(f"--model-path: not a directory: {options.model_path}")
        return 1
    if options.check:
        print("\n" + json.dumps(CHECKS[options.check](options)))
        return 0
    results = run_all(options)
    passed = all(item["passed"] for item in results.values() if isinstance(item, dict))
    report = {
        "passed": passed,
        "device": torch.cuda.get_device_name(),
        "model": options.model_path.name,
        **results,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{'all passed' if passed else 'something FAILED'}: {options.output}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
