"""The process behind `equality.MathEquality`: it takes the fingerprint of one answer a line.

Run as `python -P equality_worker.py SECONDS MEMORY_BYTES`. Standard input is a socket, used both
ways: the worker sends one line when it is ready, then reads one JSON string a line and answers
with [value, name], or null where only the spelling decides. It ends with its parent, whose end of
the socket closes.
"""

from __future__ import annotations

import importlib
import json
import resource
import signal
import socket
import sys
from pathlib import Path
from types import ModuleType

# Builds what the first question, and the first with the gamma function, would have to wait for.
WARM_UP = r"\frac{\sqrt{8}+1}{2}x!"


def main(seconds: float, memory_bytes: int) -> None:
    """Answer questions until the parent closes its end.

    The parent kills a worker that is too slow. `seconds` is for the parent that died meanwhile:
    the default action of SIGALRM then ends the worker, even inside a long computation.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fingerprint = _fingerprint_module().fingerprint
    channel = socket.socket(fileno=sys.stdin.fileno())
    fingerprint(WARM_UP)
    channel.sendall(b"ready\n")
    for line in channel.makefile("rb"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        found = fingerprint(json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        answer = None if found is None else [found.value, found.name]
        channel.sendall(json.dumps(answer).encode() + b"\n")


def _fingerprint_module() -> ModuleType:
    """Import it past the `__init__` of its packages: what the server needs takes 0.3 s to load."""
    folder = Path(__file__).resolve().parent
    for name, path in (("sglang_dynasor", folder.parent), ("sglang_dynasor.certaindex", folder)):
        package = ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    return importlib.import_module("sglang_dynasor.certaindex.fingerprint")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
