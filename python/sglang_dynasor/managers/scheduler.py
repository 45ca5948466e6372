"""The scheduler that knows programs: a thin adapter over the program table.

Upstream: `sglang/srt/managers/scheduler.py`. Class replacement rebinds the imported base name in
this module too, so upstream is only ever called through zero-argument `super()`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from itertools import islice
from typing import Any

from sglang.srt.managers.io_struct import AbortReq, GetInternalStateReq, TokenizedGenerateReqInput
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.utils import TypeBasedDispatcher

from sglang_dynasor.config import UPSTREAM_POLICIES, DynasorConfig
from sglang_dynasor.handshake import handshake_info
from sglang_dynasor.managers.branch_certainty import CertaintyScheduler
from sglang_dynasor.managers.program_messages import (
    SURPLUS_MESSAGE,
    BranchParams,
    DrawBranchesReqOutput,
    EndProgramReqInput,
    EndProgramReqOutput,
    ReportProgramReqInput,
)
from sglang_dynasor.managers.schedule_policy import DynasorSchedulePolicy
from sglang_dynasor.scheduling import (
    ProgramKey,
    ProgramOrder,
    ProgramTable,
    draw,
    surplus_running,
)

CANCELLED_MESSAGE = "program ended"
CLIENT_CLASS = "client"  # programs whose requests the client sends


class DynasorScheduler(CertaintyScheduler):
    """Tracks the requests of each program, orders them, and ends them together."""

    waiting_queue: list[Req]  # upstream's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.dynasor_config = DynasorConfig.from_environment()
        config = self.dynasor_config
        self.program_table = ProgramTable(config.max_offered, config.prefix_hold_tokens)
        super().__init__(*args, **kwargs)

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        messages: list[tuple[type, Callable[[Any], None]]] = [
            (EndProgramReqInput, self.end_program),
            (ReportProgramReqInput, self.report_program),
        ]
        self._request_dispatcher += TypeBasedDispatcher(messages)

    def init_schedule_policy(self) -> None:
        policy = self.dynasor_config.policy
        if policy in UPSTREAM_POLICIES:
            self.schedule_policy = policy
            super().init_schedule_policy()
            return
        super().init_schedule_policy()
        factor = self.dynasor_config.starvation_factor
        self.policy = DynasorSchedulePolicy(
            self.program_table,
            ProgramOrder(self.program_table, policy, factor),
            self.schedule_policy,
            self.tree_cache,
            self.enable_hierarchical_cache,
            self.enable_priority_scheduling,
            self.schedule_low_priority_values_first,
        )

    def get_init_info(self) -> dict[str, Any]:
        report = {**handshake_info(), "max_running_requests": self.max_running_requests}
        return {**super().get_init_info(), "dynasor": report}

    def get_internal_state(self, recv_req: GetInternalStateReq) -> Any:
        # The pool figures let a caller check that an ended program left nothing behind.
        reply = super().get_internal_state(recv_req)
        reply.internal_state["dynasor"] = {
            "programs": len(self.program_table),
            "requests": self.program_table.num_requests,
            "offered": self.program_table.offered,
            "available_tokens": self.token_to_kv_pool_allocator.available_size(),
            "evictable_tokens": self.tree_cache.evictable_size(),
            "protected_tokens": self.tree_cache.protected_size(),
        }
        return reply

    def _create_generation_req(
        self, recv_req: TokenizedGenerateReqInput, *args: Any, **kwargs: Any
    ) -> Req:
        req = super()._create_generation_req(recv_req, *args, **kwargs)
        params = BranchParams.of(recv_req.sampling_params.custom_params)
        if params is not None:
            self.program_table.add(
                params.key,
                req.rid,
                branch_class=CLIENT_CLASS,
                prompt_ids=req.origin_input_ids,
                max_branches=params.max_branches,
            )
        return req

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        super()._add_request_to_queue(req, is_retracted)
        if not is_retracted:
            req.arrival = self.program_table.next_arrival()
        if self.program_table:
            self.program_table.enqueue(req)

    def get_new_batch_prefill(self, running_batch: ScheduleBatch) -> Any:
        if not self.program_table:
            return super().get_new_batch_prefill(running_batch)
        # Siblings of a long prompt wait for the branch that prefills it, then hit the tree. They
        # leave waiting_queue for the length of this call only: aborts and idle checks see them.
        rids = self.program_table.held()
        held = [req for req in self.waiting_queue if req.rid in rids] if rids else []
        if held:
            self.waiting_queue = [req for req in self.waiting_queue if req.rid not in rids]
        plan = super().get_new_batch_prefill(running_batch)
        self.waiting_queue.extend(held)
        if plan.batch_to_run is not None:
            for req in plan.batch_to_run.reqs:
                self.program_table.admit(req.rid)
        if self.waiting_queue:
            self._make_room()
        else:
            self._draw_offers(plan)
        return plan

    def _make_room(self) -> None:
        """Cancel running branches that are not needed while needed requests wait."""
        table = self.program_table
        if not table.with_surplus():
            return
        running = [req for req in self.collect_inflight_reqs() if not req.finished()]
        needed = (req for req in self.waiting_queue if not table.is_late(req.rid))
        wait = sum(1 for _ in islice(needed, len(running)))  # not the whole of a long queue
        wait -= sum(req.to_finish is not None for req in running)  # these make room in a moment
        rids = set(surplus_running(table, wait))
        for req in running:
            if req.rid in rids:
                req.skip_radix_cache_insert = True
                req.to_finish = FINISH_ABORT(SURPLUS_MESSAGE)
                table.give_up(req.rid)

    def _draw_offers(self, plan: Any) -> None:
        """Ask for offered branches while nothing waits and there is room for more."""
        if not self.program_table.offering():
            return
        running = plan.running_batch.batch_size()
        if plan.batch_to_run is not None:
            running += plan.batch_to_run.batch_size()
        batch = int(self.dynasor_config.speculative_share * self.max_running_requests)
        for key, count in draw(self.program_table, batch - running):
            answer = DrawBranchesReqOutput(
                tenant=key.tenant, program_id=key.program_id, count=count
            )
            self.send_control_output(answer, answer)

    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None:
        super().process_batch_result(batch, result)
        is_extend = batch.forward_mode.is_extend()
        self.program_table.advance(batch.extend_num_tokens if is_extend else len(batch.reqs))
        if self.program_table:
            self._follow_branches(batch.reqs, is_extend)

    def on_idle(self) -> None:
        super().on_idle()
        # Requests upstream refused without telling anyone: none is alive in an idle engine.
        if self.program_table and self.is_fully_idle():
            for rid in self.program_table.all_rids():
                self.program_table.retire(rid, 0)
            self._answer_ended_programs()

    def _follow_branches(self, reqs: list[Req], is_extend: bool) -> None:
        for req in reqs:
            if req.finished():
                self._follow_finished(req)
            elif is_extend and req.output_ids:
                self.program_table.cache_prompt(req.rid)
        self._answer_ended_programs()

    def _follow_finished(self, req: Req) -> None:
        if req.rid in self.program_table:
            completed = not isinstance(req.finished_reason, FINISH_ABORT)
            self.program_table.retire(req.rid, len(req.output_ids), completed)
        else:
            self.program_table.learn_plain(len(req.origin_input_ids), len(req.output_ids))

    def send_abort_output(self, abort_req: AbortReq, req: Req) -> None:
        # Upstream reports here every request that leaves outside the output stream.
        super().send_abort_output(abort_req, req)
        if self.program_table:
            self.program_table.retire(req.rid, len(req.output_ids))
            self._answer_ended_programs()

    def abort_request(self, recv_req: AbortReq) -> None:
        if recv_req.abort_all:
            self.program_table.withdraw_offers()
        super().abort_request(recv_req)

    def report_program(self, recv_req: ReportProgramReqInput) -> None:
        """Take what a program needs now; its first report announces it."""
        table = self.program_table
        key = ProgramKey(recv_req.tenant, recv_req.program_id)
        table.open(key, recv_req.branch_class, recv_req.prompt_tokens, recv_req.max_branches)
        table.report(
            key,
            certaindex=recv_req.certaindex,
            needed=recv_req.needed,
            worth=recv_req.worth,
            values=recv_req.values,
            draws_seen=recv_req.draws_seen,
        )

    def end_program(self, recv_req: EndProgramReqInput) -> None:
        """End every request of a program; the answer follows when the last one has drained.

        Queued requests go at once. Running ones commit at most the tokens already launched, their
        KV does not enter the tree: what is private to them is free immediately.
        """
        key = ProgramKey(recv_req.tenant, recv_req.program_id)
        rids = self.program_table.rids(key)
        live = {req.rid: req for req in self._live_reqs() if req.rid in rids}
        self.program_table.end(
            key, recv_req.message_id, {rid: len(req.output_ids) for rid, req in live.items()}
        )
        for req in [req for req in self.waiting_queue if req.rid in rids]:
            self.waiting_queue.remove(req)
            self._release_aborted_request(req)
            if req.kv.holds_mamba:
                release_kv_cache(req, self.tree_cache, checkpoint=False)
            self.send_abort_output(
                AbortReq(
                    rid=req.rid, finished_reason={"type": "abort", "message": CANCELLED_MESSAGE}
                ),
                req,
            )
        for req in self.grammar_manager.grammar_queue:
            if req.rid in rids:
                if isinstance(req.grammar, Future):
                    req.grammar.cancel()
                req.skip_radix_cache_insert = True
                req.set_finish_with_abort(CANCELLED_MESSAGE)
        for req in self._live_reqs():
            if req.rid in rids and not req.finished():
                req.skip_radix_cache_insert = True
                req.to_finish = FINISH_ABORT(CANCELLED_MESSAGE)
        if self.chunked_req is not None and self.chunked_req.rid in rids:
            self._pending_chunked_abort_req = self.chunked_req
        self._answer_ended_programs()

    def _live_reqs(self) -> list[Req]:
        """Queued, prefilling and decoding requests."""
        chunked = [self.chunked_req] if self.chunked_req is not None else []
        return list(dict.fromkeys([*self.waiting_queue, *self.collect_inflight_reqs(), *chunked]))

    def _answer_ended_programs(self) -> None:
        for ended in self.program_table.pop_ended():
            answer = EndProgramReqOutput(
                message_id=ended.message_id,
                tokens=ended.tokens,
                tokens_at_end=ended.tokens_at_end,
            )
            self.send_control_output(answer, answer)
