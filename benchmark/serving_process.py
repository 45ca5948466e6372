"""The worker process of one system, as the serving benchmark sees it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from serving_systems import SYSTEMS

SCRIPT = Path(__file__).with_name("serving_worker.py")
START_LIMIT_S = 300.0


class Worker:
    """The process with one system's engine."""

    def __init__(self, process: subprocess.Popen[str], log: Path, system: str) -> None:
        self._process = process
        self._log = log
        self._system = system

    def ask(self, command: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Send a command and return the reply. Raises RuntimeError with the log's end without."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("has ended") from None
        return self.reply(limit_s)

    def reply(self, limit_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise self._failure("has ended" if ready else f"gave no answer in {limit_s:.0f} s")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _failure(self, what: str) -> RuntimeError:
        log = "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])
        return RuntimeError(f"the engine of {self._system} {what}; the end of its log:\n{log}")


@contextmanager
def started_worker(system: str, spec: dict[str, Any]) -> Iterator[Worker]:
    """A worker with a warm engine; whatever happens, its processes end."""
    ours = SYSTEMS[system].client == "program"
    environment = {"SGLANG_DYNASOR": "1" if ours else "0"}
    with started(SCRIPT, system, spec, environment) as worker:
        yield worker


@contextmanager
def started(
    script: Path, system: str, spec: dict[str, Any], environment: dict[str, str]
) -> Iterator[Worker]:
    """A process of `script` that has said it is ready; it ends with all its children."""
    environment = {**os.environ, **environment}
    environment.setdefault("OMP_NUM_THREADS", "1")  # the load generator needs a core of its own
    environment.pop("SGLANG_DYNASOR_CONFIG", None)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "engine.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, str(script), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,
            )
        worker = Worker(process, log, system)
        try:
            worker.reply(START_LIMIT_S)
            yield worker
            process.stdin.close()  # type: ignore[union-attr]
            process.wait(timeout=60)
        finally:
            with suppress(ProcessLookupError):  # it and all its children have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
