"""What happens to a request in upstream's scheduler is told once, and what follows is done.

No engine: upstream's part is replaced by the least that keeps its contract.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH

from sglang_dynasor.managers.branch_certainty import BranchCertainty
from sglang_dynasor.managers.probes import EngineProbes
from sglang_dynasor.managers.program_messages import (
    CANCELLED_MESSAGE,
    BranchParams,
    CancelNodesReqInput,
    DemandReqInput,
    DrawReqOutput,
    EndProgramReqInput,
    EndProgramReqOutput,
    StopBranchesReqInput,
    stop_reason_of,
)
from sglang_dynasor.managers.scheduler import DynasorScheduler
from sglang_dynasor.scheduling import ProgramScheduler

PROGRAM = {"tenant": "t", "program_id": "p"}


def upstream() -> type:
    """Upstream's class: a name bound to it would be rebound to ours once plugins are loaded."""
    return DynasorScheduler.__mro__[1]


class FakeReq:
    """A request as far as the scheduler looks at it."""

    def __init__(self, rid: str, params: BranchParams | None = None) -> None:
        self.rid = rid
        custom = {"dynasor": params.to_custom_params()} if params else None
        self.sampling_params = SimpleNamespace(custom_params=custom, stop_regex_strs=[])
        self.origin_input_ids = [1] * 8
        self.output_ids: list[int] = []
        self.kv = SimpleNamespace(holds_mamba=False)
        self.grammar: Any = None
        self.finished_reason: Any = None
        self.to_finish: Any = None
        self.skip_radix_cache_insert = False
        self.discard_output_reason: Any = None

    def finished(self) -> bool:
        return self.finished_reason is not None


def node(rid: str, measured: bool = False) -> FakeReq:
    return FakeReq(rid, BranchParams("t", "p", measured=measured))


class FakeScheduler(DynasorScheduler):
    """Ours above an upstream that queues what it does not refuse and says what it sends."""

    sent: deque[Any]  # messages and abort outputs, oldest first

    def answers(self) -> list[EndProgramReqOutput]:
        return [item for item in self.sent if isinstance(item, EndProgramReqOutput)]

    def aborted(self) -> list[str]:
        return [item.rid for item in self.sent if isinstance(item, AbortReq)]


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> FakeScheduler:
    def add(self: Any, req: FakeReq, is_retracted: bool = False) -> None:
        if len(self.waiting_queue) < self.max_queued_requests:
            self.waiting_queue.append(req)
        else:
            self.send_abort_output(AbortReq(rid=req.rid), req)

    def handle(self: Any, recv_req: Any) -> None:
        if recv_req.compiles:
            self.grammar_manager.grammar_queue.append(recv_req.req)
        elif not recv_req.is_refused:
            self._add_request_to_queue(recv_req.req)

    def collect(self: Any) -> set[FakeReq]:
        return set(self.running_batch.reqs)

    upstreams = {
        "_add_request_to_queue": add,
        "handle_generate_request": handle,
        "send_abort_output": lambda self, output, req: self.sent.append(output),
        "send_control_output": lambda self, output, recv_req: self.sent.append(output),
        "collect_inflight_reqs": collect,
        "process_batch_result": lambda self, batch, result: None,
        "get_new_batch_prefill": lambda self, running_batch: self.plan,
        "run_batch": lambda self, batch: self.certainty_observer.active,
        "pause_generation": lambda self, recv_req: None,
        "_release_aborted_request": lambda self, req: None,
        "_poll_timeout_aborts": lambda self: ["upstream's"],
    }
    for name, method in upstreams.items():
        monkeypatch.setattr(upstream(), name, method)
    scheduler = object.__new__(FakeScheduler)
    scheduler.sent = deque()
    scheduler.programs = ProgramScheduler("gang-sjf", speculative_places=8)
    scheduler.probes = EngineProbes(scheduler)
    scheduler.certainty = BranchCertainty()
    scheduler.certainty_observer = SimpleNamespace(active=False)  # type: ignore[assignment]
    scheduler.tp_size = 1
    scheduler.waiting_queue = []
    scheduler.running_batch = batch()
    scheduler.chunked_req = None
    scheduler.max_queued_requests = 9
    scheduler._engine_paused = False
    scheduler.grammar_manager = SimpleNamespace(grammar_queue=[])
    scheduler.token_to_kv_pool_allocator = SimpleNamespace(available_size=lambda: 1000)
    scheduler.tree_cache = SimpleNamespace(evictable_size=lambda: 1000)
    return scheduler


def batch(*reqs: FakeReq, extend: bool = False, is_full: bool = False) -> Any:
    mode = SimpleNamespace(is_extend=lambda: extend)
    return SimpleNamespace(
        reqs=list(reqs),
        forward_mode=mode,
        extend_num_tokens=8 * len(reqs),
        batch_size=lambda: len(reqs),
        batch_is_full=is_full,
    )


def arrive(scheduler: FakeScheduler, req: FakeReq, **how: bool) -> FakeReq:
    fate = {"compiles": False, "is_refused": False} | how
    scheduler.handle_generate_request(SimpleNamespace(rid=req.rid, req=req, **fate))
    return req


def run(scheduler: FakeScheduler, *reqs: FakeReq, is_full: bool = False) -> None:
    """An admission pass that takes these requests into the running batch."""
    scheduler.waiting_queue = [req for req in scheduler.waiting_queue if req not in reqs]
    before = scheduler.running_batch.reqs
    scheduler.plan = SimpleNamespace(
        batch_to_run=batch(*reqs, extend=True) if reqs else None,
        running_batch=batch(*before, is_full=is_full),
    )
    scheduler.get_new_batch_prefill(scheduler.running_batch)
    scheduler.running_batch = batch(*before, *reqs)


def end(scheduler: FakeScheduler) -> None:
    scheduler.end_program(EndProgramReqInput(**PROGRAM, message_id="m"))


def demand(scheduler: FakeScheduler, needed: int, values: list[float]) -> None:
    scheduler.take_demand(
        DemandReqInput(
            **PROGRAM,
            kind="branch",
            prompt_tokens=8,
            certaindex=0.0,
            worth=1.0,
            work=0.0,
            needed=needed,
            values=values,
            draws_seen=0,
        )
    )


def test_a_program_whose_request_was_refused_at_the_door_ends_at_once(
    scheduler: FakeScheduler,
) -> None:
    """Upstream answers some through its output stream, where the scheduler hears nothing of it."""
    req = arrive(scheduler, node("a", measured=True), is_refused=True)
    assert req not in scheduler.programs and len(scheduler.certainty) == 0
    end(scheduler)
    assert [answer.tokens for answer in scheduler.answers()] == [{}]


def test_a_request_that_a_full_queue_refused_was_never_there(scheduler: FakeScheduler) -> None:
    scheduler.max_queued_requests = 1
    first, second = (arrive(scheduler, node(rid, measured=True)) for rid in "ab")
    assert first in scheduler.programs and second not in scheduler.programs
    assert scheduler.programs.table.num_requests == len(scheduler.certainty) == 1


def test_a_request_that_upstream_throws_out_of_the_queue_is_gone(
    scheduler: FakeScheduler,
) -> None:
    req = arrive(scheduler, node("a", measured=True))
    end(scheduler)
    late = arrive(scheduler, node("b", measured=True))
    scheduler.waiting_queue.remove(late)
    scheduler.send_abort_output(AbortReq(rid="b"), late)  # type: ignore[arg-type]
    assert req not in scheduler.programs and not scheduler.programs
    assert len(scheduler.certainty) == 0


def test_a_request_whose_grammar_compiles_belongs_to_its_program_and_ends_with_it(
    scheduler: FakeScheduler,
) -> None:
    req, other = arrive(scheduler, node("a"), compiles=True), FakeReq("other")
    scheduler.grammar_manager.grammar_queue.append(other)
    req.grammar = Future()
    assert scheduler.programs.table.num_requests == 1
    end(scheduler)
    assert scheduler.grammar_manager.grammar_queue == [other]
    assert req.grammar.cancelled()
    assert [answer.tokens for answer in scheduler.answers()] == [{"a": 0}]
    (reason,) = [
        item.finished_reason for item in scheduler.sent if hasattr(item, "finished_reason")
    ]
    assert reason == {"type": "abort", "message": CANCELLED_MESSAGE}  # no status: not an error


def test_a_compiled_request_is_the_one_that_arrived(scheduler: FakeScheduler) -> None:
    req = arrive(scheduler, node("a", measured=True), compiles=True)
    scheduler.grammar_manager.grammar_queue.clear()
    scheduler._add_request_to_queue(req)  # type: ignore[arg-type]
    scheduler._add_request_to_queue(req, is_retracted=True)  # type: ignore[arg-type]
    assert scheduler.programs.table.num_requests == len(scheduler.certainty) == 1


def test_the_end_of_a_program_takes_what_waits_and_stops_what_runs(
    scheduler: FakeScheduler,
) -> None:
    arrive(scheduler, node("waits"))
    runs, done = (arrive(scheduler, node(rid)) for rid in ("runs", "done"))
    plain = arrive(scheduler, FakeReq("plain"))
    run(scheduler, runs, done)
    runs.output_ids, done.output_ids = [7] * 3, [7] * 5
    done.finished_reason = FINISH_LENGTH(5)  # its result is not processed yet
    end(scheduler)
    assert scheduler.waiting_queue == [plain] and scheduler.aborted() == ["waits"]
    assert stop_reason_of(runs.to_finish.to_json()) == "cancelled"
    assert runs.skip_radix_cache_insert and done.to_finish is None and plain.to_finish is None
    assert scheduler.answers() == []
    runs.output_ids.append(7)
    runs.finished_reason = runs.to_finish
    scheduler.process_batch_result(batch(runs, done), None)
    (answer,) = scheduler.answers()
    assert answer.tokens == {"waits": 0, "runs": 4, "done": 5}
    assert answer.tokens_at_end == {"waits": 0, "runs": 3, "done": 5}
    scheduler.process_batch_result(batch(runs, done), None)  # the rows show up once more
    assert scheduler.programs.table.num_requests == 0 and len(scheduler.answers()) == 1


def test_a_prefill_that_is_cancelled_between_two_chunks_ends_as_cancelled(
    scheduler: FakeScheduler,
) -> None:
    req = arrive(scheduler, node("a"))
    run(scheduler, req)
    scheduler.chunked_req = req
    end(scheduler)
    assert scheduler._pending_chunked_abort_req is req
    assert stop_reason_of(req.discard_output_reason.to_json()) == "cancelled"


def test_a_paused_engine_answers_the_end_of_a_program_at_once(scheduler: FakeScheduler) -> None:
    req = arrive(scheduler, node("a"))
    run(scheduler, req)
    req.output_ids = [7] * 3
    scheduler._engine_paused = True
    end(scheduler)
    assert [answer.tokens for answer in scheduler.answers()] == [{"a": 3}]
    assert req.to_finish is not None  # it ends when the engine goes on
    req.finished_reason = req.to_finish
    scheduler.process_batch_result(batch(req), None)
    assert not scheduler.programs and len(scheduler.answers()) == 1


def test_a_pause_answers_the_ends_that_are_underway(scheduler: FakeScheduler) -> None:
    req = arrive(scheduler, node("a"))
    run(scheduler, req)
    end(scheduler)
    assert scheduler.answers() == []
    scheduler.pause_generation(None)  # type: ignore[arg-type]
    assert [answer.tokens for answer in scheduler.answers()] == [{"a": 0}]


def test_nodes_are_cancelled_by_name(scheduler: FakeScheduler) -> None:
    first, second = (arrive(scheduler, node(rid)) for rid in "ab")
    run(scheduler, second)
    message = CancelNodesReqInput(**PROGRAM, rids=["a", "b", "unknown"])
    scheduler.cancel_nodes(message)
    assert scheduler.aborted() == ["a"] and first not in scheduler.programs
    assert stop_reason_of(second.to_finish.to_json()) == "cancelled"


def test_room_is_made_only_where_upstream_says_that_it_is_full(scheduler: FakeScheduler) -> None:
    demand(scheduler, 1, [])
    nodes = [arrive(scheduler, node(rid)) for rid in "abc"]
    run(scheduler, *nodes)
    arrive(scheduler, FakeReq("plain"))
    run(scheduler)
    assert [req.to_finish for req in nodes] == [None] * 3
    run(scheduler, is_full=True)
    assert [req.to_finish is not None for req in nodes] == [False, False, True]


def test_offers_are_drawn_by_message(scheduler: FakeScheduler) -> None:
    demand(scheduler, 0, [0.5, 0.4])
    run(scheduler)
    (draw,) = scheduler.sent
    assert isinstance(draw, DrawReqOutput)
    assert (draw.tenant, draw.program_id, draw.count) == ("t", "p", 2)


def test_stops_travel_with_the_next_requests_and_are_applied_once(
    scheduler: FakeScheduler,
) -> None:
    reqs = [FakeReq("a"), FakeReq("b"), FakeReq("c"), FakeReq("d")]
    reqs[1].finished_reason = FINISH_LENGTH(1)
    reqs[2].to_finish = FINISH_ABORT("client gone")
    scheduler.waiting_queue, scheduler.running_batch = reqs[:1], batch(*reqs[1:])
    assert scheduler._poll_timeout_aborts() == ["upstream's"]
    scheduler.certainty.stops = {"a": "pruned", "b": "loop", "c": "certain", "gone": "loop"}
    for _ in range(2):
        _, message = scheduler._poll_timeout_aborts()
        assert isinstance(message, StopBranchesReqInput)
        scheduler.stop_branches(message)
    ended = reqs[0].to_finish.to_json()
    assert (ended["type"], ended["status_code"]) == ("abort", None)
    assert stop_reason_of(ended) == "pruned"
    assert reqs[0].skip_radix_cache_insert
    assert reqs[1].to_finish is None
    assert reqs[2].to_finish.message == "client gone"
    assert reqs[3].to_finish is None


def test_the_observer_is_switched_for_every_batch(scheduler: FakeScheduler) -> None:
    scheduler.certainty.open("p::0", None, keeps_values=False)
    batches = [batch(FakeReq(rid)) for rid in ("p::0", "plain", "p::0")]
    assert [scheduler.run_batch(item) for item in batches] == [True, False, True]
