"""A real server in a process group of its own, and the state of its pool."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from sglang_dynasor.models import default_model_path
from support.waiting import wait_until

START_DEADLINE_S = 300.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(log: Path, *flags: str) -> Iterator[str]:
    """Start `python -m sglang_dynasor.launch_server`; yields its URL, ends its process group."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "sglang_dynasor.launch_server"),
        *("--model-path", str(default_model_path()), "--host", "127.0.0.1", "--port", str(port)),
        *flags,
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_until(lambda: _is_ready(url, process, log), f"{url} answers", START_DEADLINE_S)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise AssertionError(f"server exited with {process.returncode}:\n{log.read_text()[-4000:]}")
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def server_state(url: str) -> dict[str, Any]:
    """What the server's scheduler says about its programs and its pool."""
    return httpx.get(f"{url}/server_info", timeout=30).json()["internal_states"][0]["dynasor"]
