"""How a node becomes an upstream request, how programs end, and that nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.io_struct import GenerateReqInput

from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.engine_nodes import (
    EngineNodes,
    Node,
    ProgramRequest,
    node_seed,
)
from sglang_dynasor.managers.node_paths import Tokens
from sglang_dynasor.managers.program_messages import (
    CANCELLED_MESSAGE,
    BranchParams,
    CancelNodesReqInput,
    DemandReqInput,
    EndProgramReqInput,
)
from sglang_dynasor.managers.request_fields import NODE_MARK
from sglang_dynasor.programs.client import (
    ClientGone,
    Generated,
    Judgement,
    NodeError,
    ProgramAborted,
)
from sglang_dynasor.programs.protocol import Start
from sglang_dynasor.scheduling import ProgramKey

PROMPT = [5, 6, 7]
LETTERS = " abcd"  # by token id
CANCELLED = {"type": "abort", "message": CANCELLED_MESSAGE}


class FakeEngine:
    """Upstream's request path: requests wait while it is paused, then run until told to stop."""

    def __init__(self, paused: bool = False, finish: dict[str, Any] | None = None) -> None:
        self.is_pause = paused
        self.unsent_nodes: dict[str, Node] = {}
        self.requests: list[GenerateReqInput] = []
        self.messages: list[Any] = []
        self.aborted: list[str] = []
        self.error: Exception | None = None
        self.deaf = False
        self.streams_increments = False
        self._finish = finish
        self._stops: dict[str, asyncio.Future[dict[str, Any]]] = {}

    async def generate_node(self, obj: GenerateReqInput) -> AsyncIterator[dict[str, Any]]:
        self.requests.append(obj)
        while self.is_pause:
            await asyncio.sleep(0.001)
        node = self.unsent_nodes.pop(obj.rid)
        node.sent = True
        node.on_sent(node)
        if self.error is not None:
            raise self.error
        stop = self._stops[obj.rid] = asyncio.get_running_loop().create_future()
        if self._finish is not None:
            stop.set_result(self._finish)
        yield {"text": "ab", "meta_info": {"completion_tokens": 2, "finish_reason": None}}
        try:
            finish = await stop
        except asyncio.CancelledError:
            self.aborted.append(obj.rid)
            raise
        meta = {"completion_tokens": 4, "finish_reason": finish}
        yield {"text": "abcd", "output_ids": [1, 2, 3, 4], "meta_info": meta}

    def seen(self, rid: str) -> tuple[str, int]:
        return ("ab", 2) if rid in self._stops else ("", 0)

    def send(self, message: Any) -> None:
        self.messages.append(message)
        if self.deaf:
            return
        if isinstance(message, CancelNodesReqInput):
            self._stop(message.rids)
        if isinstance(message, EndProgramReqInput):
            self._stop(self._stops)

    def ask_to_end(self, key: ProgramKey, rank: int) -> asyncio.Future[dict[str, int]]:
        assert (key, rank) == (ProgramKey("t", "p"), 1)
        answered = self.answered = asyncio.get_running_loop().create_future()
        if not self.deaf:
            if not self.is_pause:
                self._stop(self._stops)
            answered.set_result(dict.fromkeys(self._stops, 6))
        return answered

    def finish(self, index: int) -> None:
        self._stops[self.requests[index].rid].set_result({"type": "stop"})

    def _stop(self, rids: Any) -> None:
        for rid in rids:
            if not self._stops[rid].done():
                self._stops[rid].set_result(CANCELLED)


def program(**fields: Any) -> ProgramRequest:
    given = {
        "template": GenerateReqInput(text="1+1", sampling_params={}, rid="own"),
        "input_ids": PROMPT,
        "key": ProgramKey("t", "p"),
        "kind": "self_consistency",
        "rank": 1,
        "seed": 1,
        "params_of": lambda node: BranchParams("t", "p"),
        "tokens": Tokens(
            encode=lambda text: [ord(letter) for letter in text],
            decode=lambda ids: "".join(LETTERS[number] for number in ids),
        ),
    }
    return ProgramRequest(**{**given, **fields})


def with_params(params: dict[str, Any] | None) -> ProgramRequest:
    return program(template=GenerateReqInput(text="1+1", sampling_params=params))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def started(nodes: EngineNodes, *names: str) -> list[asyncio.Task[Generated]]:
    tasks = [asyncio.ensure_future(nodes.generate(Start(name))) for name in names]
    await settle()
    return tasks


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(20):
            return await scenario()

    return asyncio.run(bounded())


def request_of(start: Start, params: dict[str, Any] | None = None) -> GenerateReqInput:
    engine = FakeEngine(finish={"type": "stop"})
    run(lambda: EngineNodes(engine, with_params(params)).generate(start))
    (request,) = engine.requests
    return request


def test_a_node_is_the_clients_request_with_the_prompt_tokenised_once() -> None:
    request = request_of(Start("2"), {"temperature": 0.5, "custom_params": {"own": 1}})
    assert (request.text, request.input_ids) == (None, PROMPT)
    assert request.routed_dp_rank == 1
    params = request.sampling_params
    assert params["temperature"] == 0.5
    assert params["custom_params"] == {"own": 1, "dynasor": {"tenant": "t", "program_id": "p"}}


@pytest.mark.parametrize(
    ("own", "granted", "sent"),
    [(None, None, None), (9, None, 9), (None, 5, 5), (9, 5, 5), (3, 5, 3)],
)
def test_a_program_only_lowers_the_token_limit(
    own: int | None, granted: int | None, sent: int | None
) -> None:
    params = {} if own is None else {"max_new_tokens": own}
    request = request_of(Start("0", max_tokens=granted), params)
    assert request.sampling_params.get("max_new_tokens") == sent


def test_a_token_limit_of_a_wrong_type_is_left_for_upstream_to_refuse() -> None:
    request = request_of(Start("0", max_tokens=5), {"max_new_tokens": "9"})
    assert request.sampling_params["max_new_tokens"] == "9"


def test_a_child_continues_its_parents_tokens_and_a_grandchild_those_of_both() -> None:
    engine = FakeEngine(finish={"type": "stop"})

    async def scenario() -> None:
        nodes = EngineNodes(engine, program())
        await nodes.generate(Start("a"))
        await nodes.generate(Start("b", parent="a", keep=2, suffix="!"))
        await nodes.generate(Start("c", parent="b"))

    run(scenario)
    inputs = [request.input_ids for request in engine.requests]
    assert inputs == [
        PROMPT,
        [*PROMPT, 1, 2, ord("!")],
        [*PROMPT, 1, 2, ord("!"), 1, 2, 3, 4],
    ]


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        ({"type": "stop"}, "completed"),
        ({"type": "length"}, "length"),
        (CANCELLED, "cancelled"),
        ({"type": "abort", "message": "branch pruned"}, "pruned"),
    ],
)
def test_the_last_output_of_a_node_is_what_counts(finish: dict[str, Any], expected: Any) -> None:
    nodes = EngineNodes(FakeEngine(finish=finish), program())
    assert run(lambda: nodes.generate(Start("3"))) == Generated("abcd", 4, expected)
    assert nodes.paths.outputs["3"]["text"] == "abcd"


@pytest.mark.parametrize("own", ["\n", ["\n"], None])
def test_the_text_that_ends_a_step_is_asked_for_beside_the_clients_own(own: Any) -> None:
    request = request_of(Start("0", stop=";"), {"stop": own})
    assert request.sampling_params["stop"] == (["\n", ";"] if own else [";"])
    assert request.sampling_params["no_stop_trim"]
    assert "no_stop_trim" not in request_of(Start("0"), {"stop": own}).sampling_params


@pytest.mark.parametrize(
    ("own", "matched", "text", "told"),
    [
        (["c"], "d", "abcd", "d"),
        (["c"], "c", "ab", ""),
        (["d"], "d", "abc", ""),  # the client's stop wins
        (None, 2, "abcd", ""),
    ],
)
def test_a_steps_end_belongs_to_it_and_a_clients_own_stop_ends_the_path(
    own: Any, matched: Any, text: str, told: str
) -> None:
    engine = FakeEngine(finish={"type": "stop", "matched": matched})
    nodes = EngineNodes(engine, with_params({"stop": own}))
    generated = run(lambda: nodes.generate(Start("0", stop="d")))
    assert generated.text == nodes.paths.outputs["0"]["text"] == text
    assert generated.matched_stop == told


def test_log_probabilities_are_those_of_the_whole_path() -> None:
    engine = FakeEngine(finish={"type": "stop"})

    async def scenario() -> Any:
        nodes = EngineNodes(engine, program())
        await nodes.generate(Start("a"))
        await nodes.generate(Start("b", parent="a", keep=2, suffix="!"))
        for name in ("a", "b"):
            entries = [(-1.0, number, name) for number in (1, 2, 3, 4)]
            nodes.paths.outputs[name]["meta_info"]["output_token_logprobs"] = entries
        return nodes.paths.closed("b", "")

    entries = run(scenario)["meta_info"]["output_token_logprobs"]
    assert [name for *_, name in entries] == [*"aa", *"bbbb"]


def test_a_node_without_room_repeats_no_log_probabilities() -> None:
    engine = FakeEngine(finish={"type": "stop"})

    async def scenario() -> Any:
        nodes = EngineNodes(engine, with_params({"max_new_tokens": 4}))
        await nodes.generate(Start("a"))
        entries = [(-1.0, number, "a") for number in (1, 2, 3, 4)]
        nodes.paths.outputs["a"]["meta_info"]["output_token_logprobs"] = entries
        assert (await nodes.generate(Start("b", parent="a"))).stop_reason == "length"
        return nodes.paths.closed("b", "")

    assert len(run(scenario)["meta_info"]["output_token_logprobs"]) == 4


def test_a_path_is_judged_without_the_end_of_its_text() -> None:
    asked: list[Any] = []

    class Judging(FakeEngine):
        async def score(self, ids: list[int], prompt_tokens: int, text: str) -> Judgement:
            asked.append((ids, prompt_tokens, text))
            return Judgement(0.5, 9)

    async def scenario() -> Judgement:
        given = program()
        nodes = EngineNodes(
            Judging(finish={"type": "stop"}),
            replace(given, tokens=replace(given.tokens, eos_ids=frozenset({4}))),
        )
        await nodes.generate(Start("a"))
        await nodes.generate(Start("b", parent="a"))
        return await nodes.score("b")

    assert run(scenario) == Judgement(0.5, 9)
    assert asked == [([*PROMPT, 1, 2, 3, 1, 2, 3], 3, "abcdabcd")]


@pytest.mark.parametrize(
    ("error", "status_code"),
    [
        (HTTPException(503, "queue is full"), 503),
        (ValueError("too long"), 400),
        (RequestError("in use", status_code=409), 409),
    ],
)
def test_a_node_that_upstream_refuses_is_an_error_with_its_status(
    error: Exception, status_code: int
) -> None:
    engine = FakeEngine()
    engine.error = error
    with pytest.raises(NodeError, match=r"queue is full|too long|in use") as raised:
        run(lambda: EngineNodes(engine, program()).generate(Start("0")))
    assert raised.value.status_code == status_code


def test_a_node_the_engine_gave_up_by_itself_is_an_error() -> None:
    engine = FakeEngine(finish={"type": "abort", "message": "out of luck"})
    with pytest.raises(NodeError, match="out of luck"):
        run(lambda: EngineNodes(engine, program()).generate(Start("0")))


def test_a_node_cancelled_before_its_grammar_was_ready_is_no_error() -> None:
    engine = FakeEngine()
    engine.error = ValueError(CANCELLED_MESSAGE)
    generated = run(lambda: EngineNodes(engine, program()).generate(Start("0")))
    assert generated == Generated("", 0, "cancelled")


def test_ending_a_program_returns_the_schedulers_counts_by_node() -> None:
    async def scenario() -> tuple[dict[str, int], list[Generated]]:
        nodes = EngineNodes(FakeEngine(), program())
        tasks = await started(nodes, "0", "11")
        return await nodes.end(), await asyncio.gather(*tasks)

    tokens, parts = run(scenario)
    assert tokens == {"0": 6, "11": 6}
    assert parts == [Generated("abcd", 4, "cancelled")] * 2


def test_a_finished_node_is_not_lost_to_the_end() -> None:
    engine = FakeEngine()

    async def scenario() -> list[Generated]:
        nodes = EngineNodes(engine, program())
        tasks = await started(nodes, "0", "1")
        engine.finish(0)
        await nodes.end()
        return list(await asyncio.gather(*tasks))

    assert [part.stop_reason for part in run(scenario)] == ["completed", "cancelled"]


def test_nodes_that_wait_for_a_paused_engine_end_at_once() -> None:
    engine = FakeEngine(paused=True)

    async def scenario() -> tuple[dict[str, int], list[Generated]]:
        nodes = EngineNodes(engine, program())
        tasks = await started(nodes, "0", "1")
        async with asyncio.timeout(0.1):
            return await nodes.end(), await asyncio.gather(*tasks)

    tokens, parts = run(scenario)
    assert tokens == {}
    assert parts == [Generated("", 0, "cancelled")] * 2
    # Nothing was sent, so nothing has to be asked; the announcement is taken back.
    assert [type(message) for message in engine.messages] == [EndProgramReqInput]


def test_nodes_a_paused_engine_holds_end_with_what_was_seen_and_are_aborted() -> None:
    engine = FakeEngine()

    async def scenario() -> tuple[dict[str, int], list[Generated]]:
        nodes = EngineNodes(engine, program())
        tasks = await started(nodes, "0")
        engine.is_pause = True
        async with asyncio.timeout(0.1):
            ended = await nodes.end(), await asyncio.gather(*tasks)
        await settle()
        return ended

    tokens, parts = run(scenario)
    assert tokens == {"0": 6}
    assert parts == [Generated("ab", 2, "cancelled")]
    assert engine.aborted == [engine.requests[0].rid]


def test_an_engine_that_never_answers_holds_nobody_beyond_the_deadline() -> None:
    engine = FakeEngine()
    engine.deaf = True

    async def scenario() -> tuple[float, dict[str, int], list[Generated]]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 0.05
        nodes = EngineNodes(engine, program(deadline_at=deadline))
        tasks = await started(nodes, "0")
        tokens = await nodes.end()
        parts = await asyncio.gather(*tasks)
        return loop.time() - deadline, tokens, list(parts)

    late, tokens, parts = run(scenario)
    assert 0 < late < 0.2
    assert (tokens, parts) == ({}, [Generated("ab", 2, "cancelled")])
    assert engine.answered.cancelled()


def test_a_node_that_is_asked_for_after_the_end_does_not_start() -> None:
    engine = FakeEngine()

    async def scenario() -> Generated:
        nodes = EngineNodes(engine, program())
        await nodes.end()
        return await nodes.generate(Start("0"))

    assert run(scenario) == Generated("", 0, "cancelled")
    assert not engine.requests


def test_cancelled_nodes_end_and_their_siblings_go_on() -> None:
    engine = FakeEngine()

    async def scenario() -> list[Generated]:
        nodes = EngineNodes(engine, program())
        tasks = await started(nodes, "0", "1", "2")
        nodes.cancel(["0", "2"])
        await settle()
        assert not tasks[1].done()
        engine.finish(1)
        return list(await asyncio.gather(*tasks))

    reasons = [part.stop_reason for part in run(scenario)]
    assert reasons == ["cancelled", "completed", "cancelled"]
    (message,) = engine.messages
    assert message.rids == [engine.requests[0].rid, engine.requests[2].rid]


def test_a_runner_that_gives_a_node_up_aborts_it_upstream() -> None:
    engine = FakeEngine()

    async def scenario() -> None:
        (task,) = await started(EngineNodes(engine, program()), "0")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await settle()

    run(scenario)
    assert engine.aborted == [engine.requests[0].rid]


@pytest.mark.parametrize("paused", [True, False])
@pytest.mark.parametrize("reason", [ClientGone("gone"), ProgramAborted("aborted")])
def test_an_abort_ends_every_node_and_is_told_to_the_runner(
    paused: bool, reason: ClientGone | ProgramAborted
) -> None:
    engine = FakeEngine(paused=paused)

    async def scenario() -> list[Generated]:
        nodes = EngineNodes(engine, program())
        await nodes.check_wanted()
        tasks = await started(nodes, "0", "1")
        nodes.abort(reason)
        parts = await asyncio.gather(*tasks)
        with pytest.raises(type(reason)):
            await nodes.check_wanted()
        return [*parts, await nodes.generate(Start("2"))]

    assert [part.stop_reason for part in run(scenario)] == ["aborted"] * 3
    assert [message.message_id for message in engine.messages] == [""]


def test_what_a_program_needs_goes_to_its_own_replica() -> None:
    engine = FakeEngine()
    nodes = EngineNodes(engine, program())
    nodes.demand(Demand(0.5, 0.25, 2.0, 3, (0.2, 0.1)), 4)
    (message,) = engine.messages
    assert isinstance(message, DemandReqInput)
    assert message.demand == Demand(0.5, 0.25, 2.0, 3, (0.2, 0.1))
    assert (message.tenant, message.program_id, message.routed_dp_rank) == ("t", "p", 1)
    assert (message.kind, message.prompt_tokens, message.draws_seen) == ("self_consistency", 3, 4)


def test_request_ids_are_unique_and_none_is_a_prefix_of_another_or_of_a_clients() -> None:
    engine = FakeEngine(finish={"type": "stop"})

    async def scenario() -> None:
        for key in (ProgramKey("", "p"), ProgramKey("", "p"), ProgramKey("a", "p")):
            nodes = EngineNodes(engine, program(key=key))
            for name in ("1", "11", "1", "111"):
                await nodes.generate(Start(name))

    run(scenario)
    rids = [request.rid for request in engine.requests]
    assert len(set(rids)) == 12
    assert not any(a.startswith(b) for a in rids for b in rids if a is not b)
    # What a client may call its own requests begins with another letter.
    assert all(rid.startswith(NODE_MARK) for rid in rids)


@given(st.integers(0, 2**31 - 1), st.integers(0, 511))
def test_a_node_seed_fits_31_bits_and_repeats(seed: int, index: int) -> None:
    assert 0 <= node_seed(seed, str(index)) < 2**31
    assert node_seed(seed, str(index)) == node_seed(seed, str(index))


def test_node_seeds_differ_and_are_those_of_earlier_releases() -> None:
    seeds = {node_seed(seed, str(index)) for seed in range(20) for index in range(50)}
    assert len(seeds) == 1000
    assert [node_seed(7, str(index)) for index in range(3)] == [
        1859307573,
        646525202,
        140523756,
    ]


def test_node_params_survive_custom_params() -> None:
    params = BranchParams("t", "p")
    assert BranchParams.of({"own": 1, "dynasor": params.to_custom_params()}) == params
    assert BranchParams.of({"own": 1}) is None
    assert BranchParams.of(None) is None
    for garbage in ({}, [1], "text", {"tenant": "t"}, {**params.to_custom_params(), "own": 1}):
        assert BranchParams.of({"dynasor": garbage}) is None
    assert all(isinstance(value, str | int) for value in params.to_custom_params().values())
