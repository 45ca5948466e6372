"""The server of the soak test: its processes, its memory, and what its scheduler remembers."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from sglang_dynasor.models import resolve_model
from sglang_dynasor.platforms import activate

START_LIMIT_S = 300.0
SETTLE_LIMIT_S = 60.0
MEMORY_EVERY_S = 1.0
MB = 1 << 20
# What upstream logs for each step of a request whose client is gone (sglang#36333, #36876).
ZOMBIE = b"state was deleted in TokenizerManager"


class SoakServer:
    """A running server as its operator sees it."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url = url
        self.memory: list[dict[str, float]] = []  # MB by process, one sample a second
        self._process = process
        self._log = log

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def pool(self) -> dict[str, int]:
        """What the scheduler says of its programs and its pool."""
        info = httpx.get(f"{self.url}/server_info", timeout=30).json()
        state: dict[str, int] = info["internal_states"][0]["dynasor"]
        return state

    async def watch_memory(self) -> None:
        """Sample the memory of all processes until cancelled."""
        while self.alive:
            self.memory.append(await asyncio.to_thread(self._resident_mb))
            await asyncio.sleep(MEMORY_EVERY_S)

    def _resident_mb(self) -> dict[str, float]:
        """Memory by process, named by its title."""
        resident: Counter[str] = Counter()
        with suppress(psutil.NoSuchProcess):
            main = psutil.Process(self._process.pid)
            for process in [main, *main.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    title = "main" if process == main else process.cmdline()[0].split("/")[-1]
                    resident[title] += process.memory_info().rss / MB
        return dict(resident)

    @property
    def growth(self) -> dict[str, float]:
        """By process and in all: see `growth`."""
        titles = sorted(set().union(*self.memory))
        series = {title: [sample.get(title, 0.0) for sample in self.memory] for title in titles}
        series["all"] = [sum(sample.values()) for sample in self.memory]
        return {title: round(growth(values), 2) for title, values in series.items()}

    def log_counts(self) -> dict[str, int]:
        """Lines of the log that should not be there."""
        lines = self._log.read_bytes().splitlines()
        return {
            "zombie_steps": sum(ZOMBIE in line for line in lines),
            "tracebacks": sum(b"Traceback (most recent" in line for line in lines),
        }

    def log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])


def left_over(pool: dict[str, int], before: dict[str, int]) -> tuple[int, int]:
    """KV tokens that are neither free nor evictable, and entries of the program table."""
    free = [state["available_tokens"] + state["evictable_tokens"] for state in (before, pool)]
    pools = ("available_tokens", "evictable_tokens", "protected_tokens")
    entries = sum(value for name, value in pool.items() if name not in pools)
    return max(free[0] - free[1], pool["protected_tokens"]), entries


async def drained(server: SoakServer, before: dict[str, int]) -> tuple[int, int]:
    """What is left once nothing changes any more, or after a minute."""
    ends_at = time.monotonic() + SETTLE_LIMIT_S
    while True:
        left = left_over(await asyncio.to_thread(server.pool), before)
        if not any(left) or time.monotonic() > ends_at:
            return left
        await asyncio.sleep(0.2)


def growth(samples: Sequence[float]) -> float:
    """Median of the second half of the samples less that of the first, in their unit."""
    middle = len(samples) // 2
    if middle == 0:
        return 0.0
    return statistics.median(samples[middle:]) - statistics.median(samples[:middle])


def server_command(options: argparse.Namespace, port: int) -> list[str]:
    """The server under a small pool, short prefill chunks and a bounded queue."""
    keyed = ("--sampling-backend", "keyed") if activate() else ()
    return [
        *(sys.executable, "-m", "sglang_dynasor.launch_server"),
        *("--model-path", str(resolve_model(options.model_path))),
        *("--host", "127.0.0.1", "--port", str(port), "--random-seed", str(options.seed)),
        *("--max-running-requests", str(options.max_running_requests)),
        *("--max-queued-requests", str(options.max_queued_requests)),
        *("--max-total-tokens", str(options.max_total_tokens)),
        *("--chunked-prefill-size", str(options.chunked_prefill_size)),
        *("--dynasor-policy", options.policy),
        *("--dynasor-speculative-share", "0.5"),  # so that offers are drawn and trimmed
        *("--dynasor-reward-model-path", "tiny_reward"),
        *("--dynasor-reward-server-args", "--max-total-tokens 8192 --sleep-on-idle"),
        *keyed,
    ]


@contextmanager
def started_server(options: argparse.Namespace, log: Path) -> Iterator[SoakServer]:
    """A server that answers; whatever happens, its process group ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {**os.environ, "SGLANG_DYNASOR": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")  # the clients need a core of their own
    with log.open("wb") as output:
        process = subprocess.Popen(
            server_command(options, port),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    server = SoakServer(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        with suppress(ProcessLookupError):  # it and all its children have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(server: SoakServer) -> None:
    ends_at = time.monotonic() + START_LIMIT_S
    while server.alive and time.monotonic() < ends_at:
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start; the end of its log:\n{server.log_end()}")
