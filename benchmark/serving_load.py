"""Pure parts of the serving benchmark: arrivals, figures of a run, intervals, the highest rate.

Nothing here knows an engine. Times are seconds, rates programs a second.
"""

from __future__ import annotations

import csv
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

DISCARDED_SHARE = 0.1  # of the programs, the first to arrive: the queue is still empty then
TARGET_ATTAINMENT = 0.9
RATE_TOLERANCE = 0.05
_RATE_STEP = 1.5  # while the highest rate is not bracketed yet
_FARTHEST_UP = 16
_FARTHEST_DOWN = 4  # slow rates take long
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one program.

    `latency_s` runs from the scheduled arrival; of an unfinished program, to the end of the run: a
    lower bound. `tokens` are all generated ones, `idle_tokens` those of them that were spent only
    because the machine had room.
    """

    finished: bool
    latency_s: float
    tokens: int
    idle_tokens: int
    answer: str


@dataclass(frozen=True, slots=True)
class Counted:
    """A program that counts, with its deadline (seconds) and whether its answer was right."""

    outcome: Outcome
    deadline_s: float
    right: bool
    kind: str = "vote"


@dataclass(frozen=True, slots=True)
class Run:
    """One open-loop run; `load` is None where a search for the highest rate chose the rate."""

    system: str
    load: float | None
    rate: float
    seed: int
    programs: list[Counted]
    worst_lag_s: float
    client_cpu: float


@dataclass(slots=True)
class Measurements:
    """All that was measured in one invocation."""

    capacity: float = 0.0
    unloaded_s: dict[str, float] = field(default_factory=dict)  # by difficulty
    runs: list[Run] = field(default_factory=list)
    highest_rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def of(self, system: str, load: float) -> list[Run]:
        return [run for run in self.runs if run.system == system and run.load == load]

    def counted(self, system: str, load: float) -> list[Counted]:
        return [program for run in self.of(system, load) for program in run.programs]


def poisson_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds of `count` arrivals. At another rate the same seed gives the same pattern, scaled."""
    rng = random.Random(f"arrivals:{seed}")
    times, now = [], 0.0
    for _ in range(count):
        now += rng.expovariate(1.0)
        times.append(now / rate)
    return times


def trace_arrivals(path: Path, count: int, rate: float, seed: int) -> list[float]:
    """Seconds of `count` consecutive arrivals of a recorded trace, scaled to the mean `rate`.

    The file is CSV with a column TIMESTAMP, as the Azure LLM inference traces have; the seed picks
    where in it the stretch begins. Raises ValueError naming the file when it is too short.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "TIMESTAMP" not in (reader.fieldnames or ()):
            raise ValueError(f"--arrivals: {path} needs a column TIMESTAMP")
        # Seven digits of a second are one more than Python reads.
        stamps = sorted(datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in reader)
    if len(stamps) <= count:
        raise ValueError(f"--arrivals: {path} has {len(stamps)} rows, {count + 1} are needed")
    first = random.Random(f"trace:{seed}").randrange(len(stamps) - count)
    stretch = stamps[first : first + count + 1]
    span = (stretch[-1] - stretch[0]).total_seconds()
    if span <= 0:
        raise ValueError(f"--arrivals: {path} has {count + 1} rows of one moment at row {first}")
    scale = count / rate / span
    return [(stamp - stretch[0]).total_seconds() * scale for stamp in stretch[1:]]


def counted_from(count: int) -> int:
    """Index of the first program that counts."""
    return math.ceil(count * DISCARDED_SHARE)


def steady_rate(ended_s: Sequence[float], last_start_s: float) -> float:
    """Programs a second of a closed loop, from the sorted moments at which they ended.

    Only while all places were taken, that is until the last program started; the first tenth of the
    programs is left out, as all of them began together.
    """
    steady = [at for at in ended_s[counted_from(len(ended_s)) :] if at <= last_start_s]
    if len(steady) < 2:  # hardly more programs than places
        return len(ended_s) / ended_s[-1]
    return (len(steady) - 1) / (steady[-1] - steady[0])


def attainment(programs: Sequence[Counted], scale: float = 1.0) -> float:
    """Share of the programs that finished within `scale` times their deadline."""
    met = [p.outcome.finished and p.outcome.latency_s <= scale * p.deadline_s for p in programs]
    return sum(met) / len(met)


def latencies(programs: Sequence[Counted]) -> np.ndarray:
    return np.array([program.outcome.latency_s for program in programs])


def figures(programs: Sequence[Counted]) -> dict[str, float]:
    """The figures of one system at one load, in the names of the JSON.

    `accuracy` counts an unfinished program as wrong; `tokens` and `idle_tokens` are means per
    program. `fairness` is finish-time fairness: of the seconds a program took per token of its own
    output, the 95th percentile over the mean; 1 where all are treated alike.
    """
    seconds = latencies(programs)
    pace = np.array([p.outcome.latency_s / max(1, p.outcome.tokens) for p in programs])
    return {
        "mean_latency_s": float(seconds.mean()),
        **{f"p{q}_latency_s": float(np.percentile(seconds, q)) for q in (50, 90, 95, 99)},
        "attainment": attainment(programs),
        "accuracy": float(np.mean([p.outcome.finished and p.right for p in programs])),
        "tokens": float(np.mean([p.outcome.tokens for p in programs])),
        "idle_tokens": float(np.mean([p.outcome.idle_tokens for p in programs])),
        "fairness": float(np.percentile(pace, 95) / pace.mean()),
        "unfinished": sum(not p.outcome.finished for p in programs),
    }


def highest_rate(
    attainment_at: Callable[[float], float],
    points: dict[float, float],
    target: float = TARGET_ATTAINMENT,
    tolerance: float = RATE_TOLERANCE,
) -> float:
    """The highest rate with at least the target attainment, by bisection to the tolerance.

    `points` holds what is known (rate to attainment, at least one) and gains what is measured
    here. Returns the last rate that met the target: the truth is at most `tolerance` above it.
    Attainment is noisy: a miss below a rate that met the target is not believed. The search ends at
    16 times the known rates (then that is the answer) and at a quarter of them (then 0 is).
    """
    lowest, highest = min(points) / _FARTHEST_DOWN, max(points) * _FARTHEST_UP

    def met(rate: float) -> bool:
        if rate not in points:
            points[rate] = attainment_at(rate)
        return points[rate] >= target

    low = max((rate for rate in points if met(rate)), default=0.0)
    high = min((rate for rate in points if rate > low), default=math.inf)
    while math.isinf(high):
        if low >= highest:
            return low
        if met(low * _RATE_STEP):
            low *= _RATE_STEP
        else:
            high = low * _RATE_STEP
    while low == 0:
        if high / _RATE_STEP < lowest:
            return 0.0
        if met(high / _RATE_STEP):
            low = high / _RATE_STEP
        else:
            high /= _RATE_STEP
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        if met(middle):
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio with its 95% interval."""

    value: float
    low: float
    high: float


def ratio_of(
    ours: Sequence[np.ndarray],
    base: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], float],
    seed: int = 0,
) -> Ratio:
    """Ours over base of a statistic of latencies; one array per arrival seed, paired by program.

    The geometric mean over the seeds, with Student's interval of its logarithm. With one seed the
    interval is of a paired circular block bootstrap (blocks of a tenth of the programs: those that
    wait together are alike).
    """
    logs = [math.log(statistic(a) / statistic(b)) for a, b in zip(ours, base, strict=True)]
    if len(logs) > 1:
        return geometric_mean(logs)
    own, other = ours[0], base[0]
    rng = np.random.default_rng(seed)
    size = max(1, len(own) // 10)
    blocks = -(-len(own) // size)
    resampled = []
    for _ in range(_RESAMPLES):
        starts = rng.integers(0, len(own), blocks)
        rows = ((starts[:, None] + np.arange(size)) % len(own)).ravel()[: len(own)]
        resampled.append(statistic(own[rows]) / statistic(other[rows]))
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Ratio(math.exp(logs[0]), float(low), float(high))


def geometric_mean(logs: Sequence[float]) -> Ratio:
    """The geometric mean of the ratios with these logarithms; of one there is no interval (nan)."""
    from scipy.stats import t

    centre = float(np.mean(logs))
    if len(logs) == 1:
        return Ratio(math.exp(centre), math.nan, math.nan)
    spread = t.ppf(0.975, len(logs) - 1) * float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
    return Ratio(math.exp(centre), math.exp(centre - spread), math.exp(centre + spread))
