"""The offline engine's own part: what it takes, and what an interrupt leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from jinja2 import UndefinedError
from sglang.srt.entrypoints.engine import Engine

from sglang_dynasor import Program
from sglang_dynasor.engine import DynasorEngine
from sglang_dynasor.managers.program_service import TOKEN_BUDGET

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


@pytest.mark.parametrize("error", [TypeError("no such name"), UndefinedError("no content")])
def test_a_malformed_program_costs_the_others_nothing(
    engine: DynasorEngine, error: Exception
) -> None:
    manager = engine.tokenizer_manager
    manager.outputs["b"] = output("B", None)

    def refuse_the_first() -> None:
        if len(manager.started) == 1:
            raise error

    manager.on_start = refuse_the_first
    bad, good = run_batch(engine, "a", "b")
    assert (bad.error, bad.report, good.text) == (str(error), {}, "B")


@pytest.mark.parametrize("name", ["sampling_params", "dynasor", "chat_template_kwargs"])
def test_fields_of_a_program_are_dicts(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a dict, not list"):
        Program(prompt="a", **{name: [1]})


def test_an_unexpected_error_ends_the_other_programs(engine: DynasorEngine) -> None:
    manager = engine.tokenizer_manager
    manager.outputs["b"] = {}
    with pytest.raises(KeyError):
        run_batch(engine, "a", "b")
    assert sorted(manager.ended) == ["a", "b"]


def budget_of(obj: Any) -> Any:
    return vars(obj)[TOKEN_BUDGET]


def test_a_total_gives_each_program_a_share_and_what_one_saves_to_the_others(
    engine: DynasorEngine,
) -> None:
    caps: dict[str, Any] = {}

    async def generate(obj: Any, request: Any) -> AsyncIterator[dict[str, Any]]:
        cap = obj.sampling_params["custom_params"]["dynasor"]["max_total_tokens"]
        spent = 10
        if obj.text == "hard":
            cap += await budget_of(obj).more(1000, 0.5)
            spent = cap
        caps[obj.text] = cap
        yield output(obj.text, {"tokens": {"prompt": 5, "total": 5 + spent}})

    engine.tokenizer_manager.generate_request = generate
    programs = [Program(prompt=name, dynasor=FIELDS) for name in ("hard", "easy", "easier")]
    # One branch in flight at a time: the program that waits must not keep the others from starting.
    engine.tokenizer_manager.branches_in_flight = 1
    results = engine.run_batch(programs, branches_in_flight=2, total_tokens=90)
    assert caps == {"hard": 70, "easy": 30, "easier": 30}
    assert sum(result.completion_tokens for result in results) == 90
    assert programs[0].dynasor == FIELDS  # the caller's own stays as it was


def test_a_program_that_waits_for_tokens_leaves_its_place_to_others(
    engine: DynasorEngine,
) -> None:
    manager = engine.tokenizer_manager

    async def generate(obj: Any, request: Any) -> AsyncIterator[dict[str, Any]]:
        manager.branches_in_flight += 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        manager.branches_in_flight -= 1
        if obj.text == "hard":
            await budget_of(obj).more(1000, 0.5)
        yield output(obj.text, {"tokens": {"prompt": 5, "total": 15}})

    manager.generate_request = generate
    programs = [Program(prompt=name, dynasor=FIELDS) for name in ("hard", "easy")]
    results = engine.run_batch(programs, branches_in_flight=1, total_tokens=40)
    assert [result.text for result in results] == ["hard", "easy"]


def test_a_refused_program_leaves_its_share_to_the_others(engine: DynasorEngine) -> None:
    async def generate(obj: Any, request: Any) -> AsyncIterator[dict[str, Any]]:
        if obj.text == "bad":
            raise ValueError("no")
        more = await budget_of(obj).more(1000, 0.5)
        yield output(str(more), {"tokens": {"prompt": 0, "total": 20}})

    engine.tokenizer_manager.generate_request = generate
    programs = [Program(prompt=name, dynasor=FIELDS) for name in ("bad", "good")]
    bad, good = engine.run_batch(programs, branches_in_flight=8, total_tokens=40)
    assert (bad.error, good.text) == ("no", "20")


@pytest.mark.parametrize(
    ("named", "total", "fields"),
    [("at least 2", 1, FIELDS), (r"programs\[0\]", 100, {**FIELDS, "max_total_tokens": 9})],
)
def test_a_total_that_cannot_be_shared_is_refused_before_any_starts(
    engine: DynasorEngine, named: str, total: int, fields: dict[str, Any]
) -> None:
    programs = [Program(prompt="a", dynasor=fields)] * 2
    with pytest.raises(ValueError, match=f"total_tokens: .*{named}"):
        engine.run_batch(programs, branches_in_flight=8, total_tokens=total)
    assert engine.tokenizer_manager.started == []


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
