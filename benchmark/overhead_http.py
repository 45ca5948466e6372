"""What the plugin costs requests without a program on the HTTP path: `overhead.py --http`.

Two servers, one without the plugin and one with it, both asleep when they have nothing to do. They
take turns in a shuffled order. A round is `--batch` times three streaming chat completions, at
most `--batch` of them at once, with `--tokens` tokens each and without any program field.

Throughput and the processor time of the server's main process, where the plugin's HTTP work is,
are medians over rounds; a ratio is paired by round, with a bootstrap interval of 95%.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

START_LIMIT_S = 400.0
WAVES = 3
ARMS = ("off", "on")
BARS = {"http_ratio": 0.98}
Round = tuple[float, float]  # wall-clock seconds, processor seconds of the main process


class Server:
    """One server in a process group of its own; `cpu_s` is what its main process has used."""

    def __init__(self, plugin: bool, options: argparse.Namespace, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        environment = {**os.environ, "SGLANG_DYNASOR": str(int(plugin))}
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment.pop("SGLANG_DYNASOR_CONFIG", None)
        command = [
            *(sys.executable, "-m", "sglang_dynasor.launch_server", "--host", "127.0.0.1"),
            *("--model-path", str(options.model_path), "--port", str(self.port)),
            *("--max-running-requests", str(options.batch), "--sleep-on-idle"),
            *("--random-seed", str(options.seed)),
        ]
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, start_new_session=True
            )

    def wait_ready(self) -> None:
        ends_at = time.monotonic() + START_LIMIT_S
        while time.monotonic() < ends_at and self._process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        end = "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"a server gave no answer; the end of its log:\n{end}")

    def cpu_s(self) -> float:
        return sum(psutil.Process(self._process.pid).cpu_times()[:2])

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def chat_body(number: int, options: argparse.Namespace) -> bytes:
    """One streaming chat completion, as clients send it: nothing in it names a program."""
    return json.dumps(
        {
            "model": "default",
            "messages": [{"role": "user", "content": f"{number % 90 + 10}+{number % 7 + 11}"}],
            "max_tokens": options.tokens,
            "temperature": options.temperature,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()


async def stream_one(port: int, body: bytes) -> int:
    """Send one request and read its stream to the end; returns the number of chunks.

    On a bare socket: a client library would use more processor time than the server.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = await reader.read(-1)
    writer.close()
    if b" 200 " not in answer.split(b"\r\n", 1)[0] or b"data: [DONE]" not in answer:
        raise RuntimeError(f"not a whole stream: {answer[:300]!r}")
    return answer.count(b"data: ") - 1


async def run_round(port: int, options: argparse.Namespace) -> None:
    places = asyncio.Semaphore(options.batch)

    async def one(number: int) -> int:
        async with places:
            return await stream_one(port, chat_body(number, options))

    await asyncio.gather(*(one(number) for number in range(options.batch * WAVES)))


def timed_round(server: Server, options: argparse.Namespace) -> Round:
    started, busy = time.perf_counter(), server.cpu_s()
    asyncio.run(run_round(server.port, options))
    return time.perf_counter() - started, server.cpu_s() - busy


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[Round]]:
    """Every round of both arms, over `--starts` fresh pairs of servers."""
    source = random.Random(options.seed)
    rounds: dict[str, list[Round]] = {arm: [] for arm in ARMS}
    for _ in range(options.starts):
        servers: dict[str, Server] = {}
        try:
            for arm in ARMS:  # one after the other: two starts at once starve a small machine
                servers[arm] = Server(arm == "on", options, folder / f"{arm}.log")
                servers[arm].wait_ready()
            take_turns(servers, options, source, rounds)
        finally:
            for server in servers.values():
                server.stop()
    return rounds


def take_turns(
    servers: dict[str, Server],
    options: argparse.Namespace,
    source: random.Random,
    rounds: dict[str, list[Round]],
) -> None:
    for server in servers.values():  # fills the caches: thrown away
        timed_round(server, options)
    done, until = 0, time.monotonic() + options.seconds
    while done < options.rounds or time.monotonic() < until:
        for arm in source.sample(ARMS, len(ARMS)):
            rounds[arm].append(timed_round(servers[arm], options))
        done += 1


def summarise(
    rounds: dict[str, list[Round]],
    options: argparse.Namespace,
    interval: Callable[[list[float], int], tuple[float, float, float]],
) -> list[dict[str, Any]]:
    """One row per arm; a ratio above 1 is faster, or takes less processor time, than plugin off."""
    requests = options.batch * WAVES
    rows = []
    for arm in ARMS:
        row: dict[str, Any] = {
            "arm": arm,
            "batch": options.batch,
            "rounds_run": len(rounds[arm]),
            "requests_per_second": requests / statistics.median(wall for wall, _ in rounds[arm]),
            "main_ms_per_request": 1000 * statistics.median(b for _, b in rounds[arm]) / requests,
        }
        for which, prefix in enumerate(("", "cpu_")):
            pairs = zip(rounds["off"], rounds[arm], strict=True)
            middle, low, high = interval([off[which] / own[which] for off, own in pairs], 0)
            row |= {f"{prefix}ratio": middle, f"{prefix}low": low, f"{prefix}high": high}
        rows.append({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})
    return rows
