"""The ordinary engine, whose scheduler notes how long its passes take while it serves.

A pass lasts from its launch to the next one's, so that what the scheduler does in between counts;
the last one before a pause, to the end of its processing. When requests come to the scheduler and
when the last of their tokens leaves it is noted too: what lies between it and the client.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from altered_engine import AlteredEngine

FEWEST_STEPS = 20  # of one point of a table, but for its last
BIN_WIDTH = 1.3  # of the sizes in one point, at least, where they are few


@dataclass(frozen=True, slots=True)
class Recording:
    """What `recorded` has read: passes by kind (size, milliseconds, begin), and when requests came
    and went, by their ids; moments in seconds of the monotonic clock.

    The size of a decode pass is its number of requests, that of a prefill its new tokens.
    """

    steps: dict[str, list[tuple[int, float, float]]]
    came: dict[str, float]
    went: dict[str, float]


class StepLog:
    """In the scheduler's process: lines of JSON, written while nothing runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[str] = []
        self._launched: tuple[float, str, int] | None = None
        self._processed = 0.0

    def launch(self, batch: Any) -> None:
        now = time.perf_counter()
        self._end_pass(now)
        decode = batch.forward_mode.is_decode()
        size = len(batch.reqs) if decode else sum(batch.extend_lens)
        self._launched = now, "decode" if decode else "prefill", size

    def process(self, ended: Iterable[Any]) -> None:
        self._processed = time.perf_counter()
        for req in ended:
            self._note("went", req.rid, self._processed)

    def come(self, rid: str) -> None:
        self._note("came", rid, time.perf_counter())

    def idle(self) -> None:
        self._end_pass(self._processed)
        if self._lines:
            with self._path.open("a") as file:
                file.write("".join(self._lines))
            self._lines.clear()

    def _end_pass(self, at: float) -> None:
        if self._launched is not None:
            since, kind, size = self._launched
            self._note(kind, size, round(1000 * (at - since), 4), since)
        self._launched = None

    def _note(self, *fields: Any) -> None:
        self._lines.append(json.dumps(fields) + "\n")


def note_steps(path: Path, scheduler: Any) -> None:
    """Let a scheduler class write a `StepLog`."""
    log = StepLog(path)
    run, process = scheduler.run_batch, scheduler.process_batch_result
    take, rest = scheduler.handle_generate_request, scheduler.on_idle

    def run_batch(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        log.launch(batch)
        return run(self, batch, *args, **kwargs)

    def process_batch_result(self: Any, batch: Any, result: Any) -> None:
        running = [req for req in batch.reqs if not req.finished()]
        process(self, batch, result)
        log.process(req for req in running if req.finished())

    def handle_generate_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        log.come(request.rid)
        take(self, request, *args, **kwargs)

    def on_idle(self: Any) -> None:
        log.idle()
        rest(self)

    scheduler.run_batch, scheduler.process_batch_result = run_batch, process_batch_result
    scheduler.handle_generate_request, scheduler.on_idle = handle_generate_request, on_idle


class RecordedEngine(AlteredEngine):
    """`DynasorEngine` that appends to the file `log` whenever it has nothing to do."""

    def __init__(self, *, log: Path, **kwargs: Any) -> None:
        super().__init__(alter=partial(note_steps, log), **kwargs)


def recorded(log: Path) -> Recording:
    """What has been written so far; the file is emptied."""
    steps: dict[str, list[tuple[int, float, float]]] = {"decode": [], "prefill": []}
    came: dict[str, float] = {}
    went: dict[str, float] = {}
    for line in log.read_text().splitlines():
        kind, what, *values = json.loads(line)
        if kind in steps:
            steps[kind].append((what, *values))
        else:
            (came if kind == "came" else went)[what] = values[0]
    log.write_text("")
    return Recording(steps, came, went)


def table(steps: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
    """Points of mean size and mean milliseconds over neighbouring sizes, of passes (size, ms, ...).

    Means, not medians: what is to be predicted is how long many passes take together.
    """
    points: list[tuple[float, float]] = []
    sizes: list[float] = []
    times: list[float] = []
    for size, ms, *_ in sorted(steps):
        if len(sizes) >= FEWEST_STEPS and size > sizes[0] * BIN_WIDTH and size > sizes[-1]:
            points.append((statistics.fmean(sizes), statistics.fmean(times)))
            sizes, times = [], []
        sizes.append(size)
        times.append(ms)
    return [*points, (statistics.fmean(sizes), statistics.fmean(times))]
