"""Whole programs over upstream's request path, without an engine: refusals, deadlines, aborts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from sglang.srt.managers.io_struct import GenerateReqInput

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.program_messages import (
    CANCELLED_MESSAGE,
    EndProgramReqInput,
    EndProgramReqOutput,
)
from sglang_dynasor.managers.program_service import ProgramService
from sglang_dynasor.programs.nodes import ProgramRun
from sglang_dynasor.programs.spec import ProgramSpec
from sglang_dynasor.scheduling import ProgramKey

CONFIG = DynasorConfig(equality_time_limit_ms=0)


class FakeManager:
    """Upstream's manager and its scheduler: each node does what `behave` says of its number."""

    elastic_worker_count = 1
    is_pause = False
    incremental_streaming_output = False

    def __init__(self, behave: Callable[[int], Any]) -> None:
        self.service = ProgramService(self, CONFIG)
        self.rid_to_state: dict[str, Any] = {}
        self.tokenizer = SimpleNamespace(
            encode=lambda text, add_special_tokens: [1],
            decode=lambda ids, skip_special_tokens: "x" * len(ids),
        )
        self.model_config = SimpleNamespace(hf_eos_token_id={0})
        self.started: list[str] = []
        self.messages: list[Any] = []
        self._behave = behave
        self._stops: dict[str, asyncio.Event] = {}

    async def generate_node(self, obj: GenerateReqInput) -> AsyncIterator[dict[str, Any]]:
        self.started.append(obj.rid)
        wanted = self._behave(len(self.started) - 1)
        if wanted == "wait":  # for an engine that is paused: it is not sent
            await asyncio.Event().wait()
        self.service.sent(obj.rid)
        if isinstance(wanted, Exception):
            raise wanted
        stop = self._stops[obj.rid] = asyncio.Event()
        finish: dict[str, Any] = {"type": "stop"}
        if wanted == "run":
            await stop.wait()
            finish = {"type": "abort", "message": CANCELLED_MESSAGE}
        meta = {"completion_tokens": 3, "finish_reason": finish}
        yield {"text": f"\\boxed{{{wanted}}}", "output_ids": [1, 2, 3], "meta_info": meta}

    def _dispatch_to_scheduler(self, message: Any) -> None:
        self.messages.append(message)
        if isinstance(message, EndProgramReqInput):
            tokens = dict.fromkeys(
                [rid for rid, stop in self._stops.items() if not stop.is_set()], 3
            )
            for stop in self._stops.values():
                stop.set()
            self.service.handle_end(
                EndProgramReqOutput(
                    message_id=message.message_id, tokens=tokens, tokens_at_end=tokens
                )
            )

    async def run(self, request: Any = None, rid: str | None = None, **fields: Any) -> ProgramRun:
        given = {"algorithm": "self_consistency", "program_id": "p", "max_branches": 4, **fields}
        program = ProgramSpec.parse(given).resolve(CONFIG)
        obj = GenerateReqInput(input_ids=[5], sampling_params={}, rid=rid)
        run, nodes = await self.service.run(program, "t", obj, request)
        assert nodes.prompt_tokens == 1
        return run


def run(manager: FakeManager, **fields: Any) -> ProgramRun:
    async def bounded() -> ProgramRun:
        async with asyncio.timeout(20):
            return await manager.run(**fields)

    return asyncio.run(bounded())


def refused() -> HTTPException:
    return HTTPException(503, "The request queue is full.")


def test_a_program_is_answered_by_its_branches() -> None:
    result = run(FakeManager(lambda number: 7))
    assert (result.outcome.answer, result.outcome.stop_reason) == ("7", "decided")


def test_a_refused_branch_costs_one_branch() -> None:
    result = run(FakeManager(lambda number: refused() if number == 1 else 7))
    assert result.outcome.answer == "7"
    assert list(result.failed.values()) == ["The request queue is full."]


def test_a_program_of_which_nothing_was_accepted_is_refused_as_its_branches_were() -> None:
    manager = FakeManager(lambda number: refused())
    with pytest.raises(RequestError, match="queue is full") as raised:
        run(manager)
    assert raised.value.status_code == 503
    assert isinstance(manager.messages[-1], EndProgramReqInput)
    assert not manager.service.unsent_nodes


def test_what_is_settled_is_not_lost_to_a_branch_that_is_refused() -> None:
    result = run(FakeManager(lambda number: 7 if number < 3 else refused()), grants="4")
    assert (result.outcome.answer, len(result.finished), len(result.failed)) == ("7", 3, 1)


@pytest.mark.parametrize("behaviour", ["wait", "run"])
def test_a_deadline_is_kept_whether_branches_wait_or_run(behaviour: str) -> None:
    async def scenario() -> tuple[ProgramRun, float]:
        manager = FakeManager(lambda number: 7 if number == 0 else behaviour)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        result = await manager.run(deadline_ms=50, min_branches=4)
        return result, loop.time() - begun

    result, seconds = asyncio.run(scenario())
    assert (result.outcome.stop_reason, result.outcome.answer) == ("deadline", "7")
    assert seconds < 0.05 + 0.2
    expected = 3 if behaviour == "run" else 0
    assert {part.n_tokens for part in result.cancelled.values()} == {expected}


@pytest.mark.parametrize("behaviour", ["wait", "run"])
@pytest.mark.parametrize("name", ["p", "r"])
def test_an_abort_by_either_id_is_answered_with_what_there_is(behaviour: str, name: str) -> None:
    async def scenario() -> ProgramRun:
        manager = FakeManager(lambda number: 7 if number == 0 else behaviour)
        task = asyncio.ensure_future(manager.run(rid="r", min_branches=4))
        while len(manager.started) < 4:
            await asyncio.sleep(0)
        manager.service.abort(name, "other tenant")
        manager.service.abort("other", "t")
        await asyncio.sleep(0.01)
        assert not task.done()
        manager.service.abort(name, "t")
        async with asyncio.timeout(0.4):  # sooner than anybody polls
            return await task

    result = asyncio.run(scenario())
    assert (result.outcome.stop_reason, result.outcome.answer) == ("aborted", "7")


def test_ending_a_program_by_its_key_ends_its_run() -> None:
    async def scenario() -> tuple[dict[str, int], ProgramRun]:
        manager = FakeManager(lambda number: "run")
        task = asyncio.ensure_future(manager.run(grants="4"))
        while len(manager.started) < 4:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await manager.service.end(ProgramKey("t", "p")), await task

    tokens, result = asyncio.run(scenario())
    assert list(tokens.values()) == [3] * 4
    assert result.outcome.stop_reason == "aborted"
    assert len(result.cancelled) == 4


def test_a_client_that_goes_away_frees_its_ids_at_once() -> None:
    async def scenario() -> None:
        manager = FakeManager(lambda number: "run")
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        task = asyncio.ensure_future(manager.run(SimpleNamespace(receive=receive), rid="r"))
        while not manager.started:
            await asyncio.sleep(0)
        with pytest.raises(RequestError) as raised:
            await manager.run()
        assert raised.value.status_code == 409
        gone.set()
        async with asyncio.timeout(0.4):
            await asyncio.gather(task, return_exceptions=True)
        assert not manager.service.unsent_nodes
        retry = asyncio.ensure_future(manager.run(rid="r"))
        await asyncio.sleep(0.01)
        manager.service.abort_all()
        assert (await retry).outcome.stop_reason == "aborted"

    asyncio.run(scenario())
