"""The offline engine's own part: what it takes, and what an interrupt leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sglang.srt.entrypoints.engine import Engine

from sglang_dynasor import Program
from sglang_dynasor.engine import DynasorEngine

FIELDS = {"algorithm": "self_consistency"}


class Manager:
    """A tokenizer manager whose programs say when they start and how they end."""

    def __init__(self) -> None:
        self.branches_in_flight = 0
        self.started: list[str] = []
        self.ended: list[str] = []
        self.outputs: dict[str, dict[str, Any]] = {}
        self.on_start = lambda: None

    async def generate_request(self, obj: Any, request: Any) -> AsyncIterator[dict[str, Any]]:
        self.started.append(obj.text)
        self.on_start()
        try:
            if obj.text not in self.outputs:
                await asyncio.Event().wait()  # until it is cancelled
            yield self.outputs[obj.text]
        finally:
            self.ended.append(obj.text)


def output(text: str, report: dict[str, Any] | None, end: str = "stop") -> dict[str, Any]:
    meta: dict[str, Any] = {
        "finish_reason": {"type": end},
        "prompt_tokens": 5,
        "completion_tokens": 8,
    }
    return {"text": text, "meta_info": meta if report is None else {**meta, "dynasor": report}}


@pytest.fixture
def engine() -> Iterator[DynasorEngine]:
    made = DynasorEngine.__new__(DynasorEngine)
    made.loop = asyncio.new_event_loop()
    made.tokenizer_manager = Manager()
    yield made
    made.loop.close()


@pytest.fixture(autouse=True)
def python_handles_interrupts() -> Iterator[None]:
    """As in a terminal; a job in the background starts with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run_batch(engine: DynasorEngine, *prompts: str) -> Any:
    programs = [Program(prompt=prompt, dynasor=FIELDS) for prompt in prompts]
    return engine.run_batch(programs, branches_in_flight=8)


def test_results_come_in_the_order_given(engine: DynasorEngine) -> None:
    for name in "abc":
        engine.tokenizer_manager.outputs[name] = output(name.upper(), {"tokens": {"total": 9}})
    assert [result.text for result in run_batch(engine, *"abc")] == ["A", "B", "C"]


@pytest.mark.parametrize("wrong", [{"prompt": "1+1"}, "1+1", None])
def test_what_is_no_program_is_refused_before_any_starts(engine: DynasorEngine, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"programs\[1\] must be a Program, not .*: Program\("):
        engine.run_batch([Program(prompt="a"), wrong], branches_in_flight=8)
    with pytest.raises(TypeError, match="must be a Program"):
        engine.run(wrong)
    assert engine.tokenizer_manager.started == []


@pytest.mark.parametrize(("end", "stop_reason"), [("length", "completed"), ("abort", "aborted")])
@pytest.mark.parametrize("report", [None, {"program_id": "p", "algorithm": "none"}])
def test_an_ordinary_request_has_its_true_text_end_and_counts(
    engine: DynasorEngine, report: dict[str, Any] | None, end: str, stop_reason: str
) -> None:
    engine.tokenizer_manager.outputs["a"] = output("=46", report, end)
    (result,) = run_batch(engine, "a")
    assert (result.text, result.stop_reason, result.completion_tokens) == ("=46", stop_reason, 8)
    assert result.report.items() >= (report or {}).items()


def test_an_interrupt_ends_every_running_program_and_the_next_batch_runs(
    engine: DynasorEngine,
) -> None:
    manager = engine.tokenizer_manager

    def interrupt_the_third() -> None:
        if len(manager.started) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    manager.on_start = interrupt_the_third
    with pytest.raises(KeyboardInterrupt):
        run_batch(engine, *"abc")
    assert sorted(manager.ended) == ["a", "b", "c"]
    assert asyncio.all_tasks(engine.loop) == set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    manager.outputs["d"] = output("D", None)
    assert run_batch(engine, "d")[0].text == "D"


def test_an_interrupt_ends_a_single_program_too(engine: DynasorEngine) -> None:
    manager = engine.tokenizer_manager
    manager.on_start = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        engine.run(Program(prompt="a", dynasor=FIELDS))
    assert manager.ended == ["a"]


def test_an_unexpected_error_ends_the_other_programs(engine: DynasorEngine) -> None:
    manager = engine.tokenizer_manager
    manager.outputs["b"] = {}
    with pytest.raises(KeyError):
        run_batch(engine, "a", "b")
    assert sorted(manager.ended) == ["a", "b"]


def test_a_handler_of_the_callers_own_stays_in_force(engine: DynasorEngine) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        manager = engine.tokenizer_manager
        manager.outputs["a"] = output("A", None)
        manager.on_start = lambda: os.kill(os.getpid(), signal.SIGINT)
        assert run_batch(engine, "a")[0].text == "A"
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


@pytest.mark.parametrize("params", [{"temperature": 1.0}, [{"temperature": 1.0}], None])
@pytest.mark.parametrize("by_position", [True, False])
def test_sampling_parameters_may_come_by_position(
    engine: DynasorEngine, monkeypatch: pytest.MonkeyPatch, params: Any, by_position: bool
) -> None:
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(Engine, "generate", lambda self, *args, **kw: calls.append((args, kw)))
    if by_position:
        engine.generate("1+1", params, None, program=FIELDS)
        ((prompt, stamped, input_ids), rest) = calls[0]
        assert (prompt, input_ids, rest) == ("1+1", None, {})
    else:
        engine.generate("1+1", sampling_params=params, program=FIELDS)
        ((prompt,), rest) = calls[0]
        stamped = rest.pop("sampling_params")
        assert (prompt, rest) == ("1+1", {})
    for item, given in zip(
        stamped if isinstance(params, list) else [stamped],
        params if isinstance(params, list) else [params],
        strict=True,
    ):
        assert item == {**(given or {}), "custom_params": {"dynasor": FIELDS}}


def test_without_a_program_the_arguments_are_upstreams(
    engine: DynasorEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(Engine, "generate", lambda self, *args, **kw: calls.append((args, kw)))
    engine.generate("1+1", {"n": 2}, stream=True)
    assert calls == [(("1+1", {"n": 2}), {"stream": True})]
