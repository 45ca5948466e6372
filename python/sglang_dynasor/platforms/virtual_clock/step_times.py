"""How long a forward pass takes on hardware that is not here."""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class StepTimes(Protocol):
    """Predicts the milliseconds of one forward pass."""

    def decode_ms(self, batch: int, mean_context: float) -> float:
        """One token for each of `batch` requests of so many tokens on average."""
        ...

    def prefill_ms(self, batch: int, mean_new: float, mean_past: float) -> float:
        """`mean_new` tokens each of `batch` requests, on `mean_past` that are in the cache."""
        ...


@dataclass(frozen=True, slots=True)
class LinearStepTimes:
    """A line: what a pass costs at least, per request, per token of context, per new token, ms."""

    base_ms: float
    per_request_ms: float
    per_context_token_ms: float
    per_new_token_ms: float

    def decode_ms(self, batch: int, mean_context: float) -> float:
        per_request = self.per_request_ms + mean_context * self.per_context_token_ms
        return self.base_ms + batch * per_request

    def prefill_ms(self, batch: int, mean_new: float, mean_past: float) -> float:
        context = mean_past + mean_new / 2
        new = mean_new * self.per_new_token_ms + context * self.per_context_token_ms
        return self.base_ms + batch * (self.per_request_ms + new)


class AIConfiguratorStepTimes:
    """Measured kernel tables of aiconfigurator-core 0.12; `extra_ms` on each pass.

    Its decode times are tabulated by batch and linear in context: two points of each batch that
    occurs are asked for, at most 1% off.
    """

    def __init__(self, model: str, hardware: str, tp: int = 1, extra_ms: float = 0.0) -> None:
        """Raises ImportError without it, ValueError for what it has no tables of."""
        try:
            from aiconfigurator_core.sdk.engine import EngineHandle
        except ImportError as error:
            raise ImportError(
                "step times of a GPU need pip install 'sglang-dynasor[simulate]'"
            ) from error
        self._handle = EngineHandle.compile(model, hardware, "sglang", tp_size=tp)
        self._extra_ms = extra_ms
        self._decode: dict[int, tuple[float, float]] = {}  # by batch: at no context, per token

    def decode_ms(self, batch: int, mean_context: float) -> float:
        if batch not in self._decode:
            near, far = 128, 4096
            low = self._handle.predict_decode_latency(batch, near)
            slope = (self._handle.predict_decode_latency(batch, far) - low) / (far - near)
            self._decode[batch] = (low - near * slope, slope)
        base, slope = self._decode[batch]
        return base + slope * mean_context + self._extra_ms

    def prefill_ms(self, batch: int, mean_new: float, mean_past: float) -> float:
        latency: float = self._handle.predict_prefill_latency(
            batch, round(mean_past + mean_new), round(mean_past)
        )
        return latency + self._extra_ms


@dataclass(frozen=True, slots=True)
class MeasuredStepTimes:
    """Measured steps, by batch; between two batches a line.

    A decode pass costs what its batch did, a prefill what its number of new tokens did.
    """

    decode: Sequence[tuple[float, float]]  # batch, ms
    prefill: Sequence[tuple[float, float]]  # new tokens, ms

    @classmethod
    def read(cls, path: Path) -> MeasuredStepTimes:
        """Read a CSV of `benchmark/step_times.py`: kind (decode or prefill), size, ms.

        Raises ValueError naming what is missing.
        """
        rows: dict[str, list[tuple[float, float]]] = {"decode": [], "prefill": []}
        with path.open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    rows[row["kind"]].append((float(row["size"]), float(row["ms"])))
                except (KeyError, ValueError) as error:
                    raise ValueError(f"{path}:{number}: needs kind, size and ms: {error}") from None
        if not (rows["decode"] and rows["prefill"]):
            raise ValueError(f"{path}: needs rows of decode and of prefill")
        return cls(sorted(rows["decode"]), sorted(rows["prefill"]))

    def decode_ms(self, batch: int, mean_context: float) -> float:
        return _between(self.decode, batch)

    def prefill_ms(self, batch: int, mean_new: float, mean_past: float) -> float:
        return _between(self.prefill, batch * mean_new)


def _between(points: Sequence[tuple[float, float]], size: float) -> float:
    """On the line between the neighbours; beyond the last two, on theirs unless it falls."""
    if size <= points[0][0] or len(points) == 1:
        return points[0][1]
    index = min(bisect_left(points, size, key=lambda point: point[0]), len(points) - 1)
    (low, low_ms), (high, high_ms) = points[index - 1], points[index]
    slope = (high_ms - low_ms) / (high - low)
    if size > high:
        return high_ms + max(0.0, slope) * (size - high)
    return low_ms + slope * (size - low)
