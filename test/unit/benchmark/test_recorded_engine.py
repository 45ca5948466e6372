"""What a recorded engine notes of its passes, and the table made of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import recorded_engine
from recorded_engine import FEWEST_STEPS, note_steps, recorded, table


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Req:
    def __init__(self, rid: str, tokens: int) -> None:
        self.rid = rid
        self._left = tokens

    def finished(self) -> bool:
        return self._left <= 0

    def take(self) -> None:
        self._left -= 1


def scheduler_class(clock: Clock, pass_s: float, processing_s: float) -> Any:
    class Scheduler:
        def run_batch(self, batch: Any) -> None:
            clock.now += pass_s

        def process_batch_result(self, batch: Any, result: Any) -> None:
            clock.now += processing_s
            for req in batch.reqs:
                req.take()

        def handle_generate_request(self, request: Any) -> None: ...

        def on_idle(self) -> None: ...

    return Scheduler


def batch_of(*reqs: Req, extend_lens: list[int] | None = None) -> Any:
    mode = SimpleNamespace(is_decode=lambda: extend_lens is None)
    return SimpleNamespace(reqs=reqs, forward_mode=mode, extend_lens=extend_lens)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recorded_engine, "time", clock)
    return clock


def test_a_pass_lasts_to_the_next_launch_and_the_last_to_its_processing(
    clock: Clock, tmp_path: Path
) -> None:
    log = tmp_path / "steps.jsonl"
    scheduler = scheduler_class(clock, pass_s=0.01, processing_s=0.002)
    note_steps(log, scheduler)
    engine, req = scheduler(), Req("r", 2)
    engine.handle_generate_request(req)
    for batch in (batch_of(req, extend_lens=[7]), batch_of(req)):
        engine.run_batch(batch)
        engine.process_batch_result(batch, None)
    assert not log.exists()  # nothing is written while passes run
    clock.now += 5.0
    engine.on_idle()
    found = recorded(log)
    assert found.steps["prefill"] == [(7, pytest.approx(12.0), 0.0)]
    assert found.steps["decode"] == [(1, pytest.approx(12.0), pytest.approx(0.012))]
    assert found.came == {"r": 0.0}
    assert found.went == {"r": pytest.approx(0.024)}
    assert recorded(log).steps == {"decode": [], "prefill": []}


def test_a_request_goes_once(clock: Clock, tmp_path: Path) -> None:
    log = tmp_path / "steps.jsonl"
    scheduler = scheduler_class(clock, pass_s=0.01, processing_s=0.0)
    note_steps(log, scheduler)
    engine, short, long = scheduler(), Req("short", 1), Req("long", 3)
    for _ in range(3):
        batch = batch_of(short, long)
        engine.run_batch(batch)
        engine.process_batch_result(batch, None)
    engine.on_idle()
    found = recorded(log)
    assert found.went == {"short": pytest.approx(0.01), "long": pytest.approx(0.03)}
    assert [size for size, *_ in found.steps["decode"]] == [2, 2, 2]


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1, 50)), min_size=1, max_size=300))
def test_a_table_is_sorted_and_its_points_are_means_over_all_steps(
    steps: list[tuple[int, float]],
) -> None:
    points = table(steps)
    sizes = [size for size, _ in points]
    assert sizes == sorted(set(sizes))
    assert min(ms for _, ms in points) >= min(ms for _, ms in steps) - 1e-9
    assert max(ms for _, ms in points) <= max(ms for _, ms in steps) + 1e-9
    assert len(points) <= 1 + len(steps) // FEWEST_STEPS


def test_sizes_that_are_seen_often_have_a_point_each() -> None:
    assert table([(1, 4.0)] * 30 + [(2, 6.0)] * 30) == [(1.0, 4.0), (2.0, 6.0)]
    few = [(size, 5.0) for size in range(40, 60)]
    assert table(few) == [(49.5, 5.0)]
