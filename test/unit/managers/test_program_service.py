"""Where programs' requests go, and how those of client-driven programs are aborted."""

from __future__ import annotations

import asyncio
import copy
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import AbortReq, GenerateReqInput

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.program_messages import (
    BranchParams,
    DrawReqOutput,
    EndProgramReqInput,
    EndProgramReqOutput,
)
from sglang_dynasor.managers.program_service import ProgramService
from sglang_dynasor.managers.request_fields import stamp, stamp_of, with_carrier
from sglang_dynasor.scheduling import ProgramKey

KEY = ProgramKey("t", "p")
PARAMS = BranchParams(*KEY).to_custom_params()


class FakeManager:
    """What the service needs of upstream's manager."""

    def __init__(self, replicas: int = 1, requests: tuple[int, ...] = ()) -> None:
        self.rid_to_state: dict[str, Any] = {}
        self.messages: list[Any] = []
        self.elastic_worker_count = replicas
        loads = [
            SimpleNamespace(dp_rank=rank, num_running_reqs=count, num_waiting_reqs=0)
            for rank, count in enumerate(requests)
        ]
        self.load_snapshot_reader = SimpleNamespace(read_all=lambda: loads)

    def _dispatch_to_scheduler(self, message: Any) -> None:
        self.messages.append(message)

    def add(self, rid: str, dispatched: bool, params: dict[str, Any] | None = PARAMS) -> None:
        sampling = {} if params is None else with_carrier(None, params)
        obj = GenerateReqInput(text="1+1", rid=rid, sampling_params=sampling)
        self.rid_to_state[rid] = SimpleNamespace(obj=obj, dispatched=dispatched)


def service(manager: FakeManager) -> ProgramService:
    return ProgramService(manager, DynasorConfig())


def request(rid: str = "r", **fields: Any) -> GenerateReqInput:
    return GenerateReqInput(text="1+1", rid=rid, **fields)


def tokenized(params: Any = PARAMS, rank: int | None = None) -> Any:
    custom = None if params is None else {"dynasor": params}
    return SimpleNamespace(
        sampling_params=SimpleNamespace(custom_params=custom), routed_dp_rank=rank
    )


def placed(programs: ProgramService, sent: Any) -> int | None:
    programs.place(sent)
    rank: int | None = sent.routed_dp_rank
    return rank


def test_all_requests_of_a_program_go_to_one_replica() -> None:
    programs = service(FakeManager(4, (0, 0, 0, 0)))
    ranks = set()
    for number in range(64):
        key = ProgramKey("t", f"p{number}")
        with programs.members([key], request()):
            params = BranchParams(*key).to_custom_params()
            first, second = (placed(programs, tokenized(params)) for _ in range(2))
            assert first == second
            ranks.add(first)
    assert ranks == {0, 1, 2, 3}


def test_an_overloaded_replica_takes_no_new_program_and_a_dead_one_none() -> None:
    programs = service(FakeManager(3, (90, 10, 10)))
    programs.rank_status = [True, False, True]
    for number in range(20):
        key = ProgramKey("t", f"p{number}")
        with programs.members([key], request()):
            assert placed(programs, tokenized(BranchParams(*key).to_custom_params())) == 2


def test_a_plain_request_is_placed_by_upstream() -> None:
    programs = service(FakeManager(2, (0, 0)))
    assert placed(programs, tokenized(None)) is None


@pytest.mark.parametrize("name", ["routed_dp_rank", "data_parallel_rank"])
def test_the_replica_a_request_names_is_where_its_program_lives(name: str) -> None:
    manager = FakeManager(3, (0, 0, 0))
    programs = service(manager)
    for rank in (0, 1, 2):
        with programs.members([KEY], request(**{name: rank})):
            assert placed(programs, tokenized()) == rank
            programs.abort("p", "t")
    assert [message.routed_dp_rank for message in manager.messages] == [0, 1, 2]
    with (
        pytest.raises(RequestError, match="routed_dp_rank: must be one of 0, 1, 2"),
        programs.members([KEY], request(**{name: 3})),
    ):
        raise AssertionError("ran")


@pytest.mark.parametrize(
    "forged", [PARAMS, {"algorithm": "self_consistency"}, {"tenant": "t"}, "text", [1], {"a": {}}]
)
def test_no_road_leads_past_the_check_of_program_fields(forged: Any) -> None:
    with pytest.raises(RequestError, match="no program fields"):
        service(FakeManager()).place(tokenized(forged))


def test_an_abort_ends_all_requests_of_a_program_its_client_drives() -> None:
    manager = FakeManager()
    programs = service(manager)
    manager.add("sent", dispatched=True)
    manager.add("waits", dispatched=False)
    manager.add("other", dispatched=False, params=BranchParams("t", "q").to_custom_params())
    manager.add("plain", dispatched=False, params=None)
    with programs.members([KEY], manager.rid_to_state["waits"].obj):
        programs.abort("p", "other tenant")
        assert not manager.messages
        programs.abort("p", "t")
        (end,) = manager.messages
        assert isinstance(end, EndProgramReqInput)
        assert (end.tenant, end.program_id) == KEY
        # What waits for a paused engine is unknown to the scheduler until it is sent.
        for rid in ("waits", "other", "plain"):
            programs.sent(rid)
        (abort,) = manager.messages[1:]
        assert isinstance(abort, AbortReq) and abort.rid == "waits"


def test_an_abort_does_not_outlive_the_request_it_was_meant_for() -> None:
    manager = FakeManager()
    programs = service(manager)
    manager.add("r", dispatched=False)
    with programs.members([KEY], manager.rid_to_state["r"].obj):
        programs.abort("p", "t")
    programs.sent("r")
    manager.add("again", dispatched=False)
    with programs.members([KEY], manager.rid_to_state["again"].obj):
        programs.sent("again")
    assert [type(message) for message in manager.messages] == [EndProgramReqInput]


def test_an_abort_ends_the_samples_of_a_prompt_that_is_still_prefilled() -> None:
    """Upstream makes them of the request once its prompt is in the cache, with ids of their own."""
    manager = FakeManager()
    programs = service(manager)
    manager.add("r", dispatched=False)
    obj = manager.rid_to_state.pop("r").obj
    with programs.members([KEY], obj):
        programs.abort("p", "t")
        for rid in ("sample 0", "sample 1"):
            manager.rid_to_state[rid] = SimpleNamespace(obj=copy.copy(obj))
            programs.sent(rid)
    assert [message.rid for message in manager.messages[1:]] == ["sample 0", "sample 1"]


@pytest.mark.parametrize("many", [False, True])
def test_what_a_call_sends_after_its_abort_carries_the_aborted_stamp(many: bool) -> None:
    obj = GenerateReqInput(text=["1", "2"] if many else "1", sampling_params={"n": 2})
    stamp(obj, [BranchParams(*KEY)])
    carried = stamp_of(obj.sampling_params)
    obj.normalize_batch_and_arguments()
    assert all(stamp_of(obj[index].sampling_params) is carried for index in range(obj.batch_size))


def test_an_abort_of_what_is_not_there_does_nothing() -> None:
    manager = FakeManager()
    programs = service(manager)
    with programs.members([KEY], request()):
        pass
    programs.abort("p", "t")
    programs.abort("", None)
    programs.abort_all()
    assert not manager.messages


def answer_to(end: Any) -> EndProgramReqOutput:
    return EndProgramReqOutput(message_id=end.message_id, tokens={"r": 3}, tokens_at_end={})


def test_the_end_of_a_program_is_answered_by_the_replica_it_lives_on() -> None:
    manager = FakeManager(2, (0, 0))
    programs = service(manager)

    async def scenario() -> dict[str, int]:
        with programs.members([KEY], request(routed_dp_rank=1)):
            ending = asyncio.ensure_future(programs.end(KEY))
            await asyncio.sleep(0)
            (end,) = manager.messages
            assert (end.tenant, end.program_id, end.routed_dp_rank) == (*KEY, 1)
            programs.handle_end(answer_to(end))
            return await ending

    assert asyncio.run(scenario()) == {"r": 3}


def test_messages_for_what_has_ended_are_passed_over() -> None:
    manager = FakeManager()
    programs = service(manager)
    programs.handle_draw(DrawReqOutput(tenant="t", program_id="p", count=1))

    async def answered_late() -> None:
        programs.ask_to_end(KEY, 0).cancel()
        await asyncio.sleep(0)
        programs.handle_end(answer_to(manager.messages[0]))

    asyncio.run(answered_late())


def test_what_was_seen_of_a_request_that_is_unknown_is_nothing() -> None:
    manager = FakeManager()
    manager.rid_to_state["r"] = SimpleNamespace(get_text=lambda: "ab", output_ids=[1, 2])
    assert service(manager).seen("r") == ("ab", 2)
    assert service(manager).seen("x") == ("", 0)
