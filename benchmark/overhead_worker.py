"""The process with one engine of the overhead benchmark; talks JSON lines on stdin and stdout."""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

START_LIMIT_S = 400.0
ROUND_LIMIT_S = 900.0


class Worker:
    """Starts the process, with or without the plugin, and asks it for rounds."""

    def __init__(self, plugin: bool, spec: dict[str, Any], log: Path) -> None:
        self._log = log
        environment = {**os.environ, "SGLANG_DYNASOR": str(int(plugin))}
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment.pop("SGLANG_DYNASOR_CONFIG", None)
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, __file__, json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def wait_ready(self) -> None:
        self._reply(START_LIMIT_S)

    def seconds(self, measured: bool) -> tuple[float, float]:
        """Wall-clock seconds and scheduler processor seconds of one round."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"measured": measured}) + "\n")
        self.process.stdin.flush()
        reply = self._reply(ROUND_LIMIT_S)
        return reply["wall"], reply["busy"]

    def stop(self) -> None:
        """End the process and its engine."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            for process in (*children, self.process):
                process.kill()

    def _reply(self, limit_s: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], limit_s)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            end = "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])
            raise RuntimeError(f"an engine gave no answer; the end of its log:\n{end}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def start_engine(spec: dict[str, Any]) -> Any:
    from sglang.srt.entrypoints.engine import Engine

    longest = max(map(len, spec["prompts"])) + spec["tokens"]
    batch = len(spec["prompts"])
    return Engine(
        model_path=spec["model"],
        random_seed=spec["seed"],
        max_running_requests=batch,
        max_total_tokens=batch * (longest + 8),
        # The engine that has nothing to do must leave the cores to the other.
        sleep_on_idle=True,
        skip_tokenizer_init=spec["dummy_weights"],
        load_format="dummy" if spec["dummy_weights"] else "auto",
    )


def run_round(engine: Any, spec: dict[str, Any], measured: bool) -> dict[str, float]:
    from attention import scheduler_process

    settings = {
        "temperature": spec["temperature"],
        "max_new_tokens": spec["tokens"],
        "ignore_eos": True,
        **({"custom_params": {"dynasor": {"token_certainty": True}}} if measured else {}),
    }
    scheduler = scheduler_process()
    busy = sum(scheduler.cpu_times()[:2])
    start = time.perf_counter()
    outputs = engine.generate(input_ids=spec["prompts"], sampling_params=settings)
    wall = time.perf_counter() - start
    for output in outputs:
        meta = output["meta_info"]
        assert meta["completion_tokens"] == spec["tokens"]
        summary = meta.get("dynasor", {}).get("certainty", {})
        assert summary.get("tokens") == (spec["tokens"] if measured else None)
    return {"wall": wall, "busy": sum(scheduler.cpu_times()[:2]) - busy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=json.loads)
    spec = parser.parse_args().spec
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints goes to the log
    engine = start_engine(spec)
    try:
        print("{}", file=answers, flush=True)
        for line in sys.stdin:
            reply = run_round(engine, spec, json.loads(line)["measured"])
            print(json.dumps(reply), file=answers, flush=True)
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main()
