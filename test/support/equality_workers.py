"""Workers of MathEquality that do what a test asks of them, without any algebra."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sglang_dynasor.certaindex import MathEquality, equality

_SCRIPT = """
import json, os, signal, socket
channel = socket.socket(fileno=0)
{start}
channel.sendall(b"ready\\n")
for line in channel.makefile("rb"):
    text = json.loads(line)
    if text == "hang":
        signal.pause()
    if text == "die":
        os._exit(1)
    channel.sendall(json.dumps([text.split()[-1], None]).encode() + b"\\n")
"""


def use_fake_workers(monkeypatch: pytest.MonkeyPatch, folder: Path, start: str = "") -> None:
    """From now on a worker says that an answer is its last word; "hang" and "die" do so.

    `start` is Python that it executes before it is ready; `folder` is its working directory.
    """
    script = folder / "fake_worker.py"
    script.write_text(_SCRIPT.format(start=f"os.chdir({str(folder)!r})\n{start}"))
    monkeypatch.setattr(equality, "_WORKER", script)


def worker_pids(maths: MathEquality) -> list[int]:
    """Process ids of the workers that are ready."""
    return [seat.worker.process.pid for seat in maths._pool._seats if seat.ready and seat.worker]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
