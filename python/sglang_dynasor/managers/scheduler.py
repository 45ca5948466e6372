"""The scheduler that knows programs: upstream's, translated to and from `ProgramScheduler`.

Upstream: `sglang/srt/managers/scheduler.py`. Class replacement rebinds the imported base name in
this module too, so upstream is only ever called through zero-argument `super()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from sglang.srt.managers.io_struct import (
    AbortReq,
    GetInternalStateReq,
    PauseGenerationReqInput,
    TokenizedGenerateReqInput,
)
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.runtime_context import get_parallel
from sglang.utils import TypeBasedDispatcher

from sglang_dynasor.config import UPSTREAM_POLICIES, DynasorConfig
from sglang_dynasor.handshake import handshake_info
from sglang_dynasor.managers.branch_certainty import BranchCertainty, DynasorOutputStreamer
from sglang_dynasor.managers.certainty_observer import CertaintyObserver
from sglang_dynasor.managers.probes import EngineProbes
from sglang_dynasor.managers.program_messages import (
    CANCELLED_MESSAGE,
    CUT_MESSAGE,
    STOP_MESSAGES,
    BranchParams,
    CancelNodesReqInput,
    DemandReqInput,
    DrawReqOutput,
    EndProgramReqInput,
    EndProgramReqOutput,
    StopBranchesReqInput,
    WatchReqInput,
)
from sglang_dynasor.managers.schedule_policy import DynasorSchedulePolicy
from sglang_dynasor.managers.stop_patterns import limit_stop_patterns
from sglang_dynasor.scheduling import Directives, Load, ProgramKey, ProgramScheduler


class DynasorScheduler(Scheduler):
    """Tells `ProgramScheduler` what happens to each request and does what follows; it measures.

    It decides nothing.
    """

    # Upstream's.
    waiting_queue: list[Req]
    # Ours.
    programs: ProgramScheduler
    certainty: BranchCertainty
    certainty_observer: CertaintyObserver | None
    probes: EngineProbes

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.dynasor_config = DynasorConfig.from_environment()
        super().__init__(*args, **kwargs)

    def init_model_worker(self) -> None:
        super().init_model_worker()
        self.certainty = BranchCertainty(self.dynasor_config.certainty_group_tokens)
        self.probes = EngineProbes(self)
        self.certainty_observer = None
        runner = self.tp_worker.model_runner
        parallel = get_parallel()
        streams = parallel.attn_tp_rank == 0 and parallel.attn_cp_rank == 0
        if streams and runner.supports_sampling_observer():
            self.certainty_observer = CertaintyObserver(self.certainty.consume)
            runner.sampling_observer = self.certainty_observer

    def init_output_streamer(self) -> None:
        super().init_output_streamer()
        self.output_streamer.certainty = self.certainty
        self.output_streamer.probes = self.probes

    def get_output_streamer_class(self) -> type[SchedulerOutputStreamer]:
        return DynasorOutputStreamer

    def init_schedule_policy(self) -> None:
        policy = self.dynasor_config.policy
        if policy in UPSTREAM_POLICIES:
            self.schedule_policy = policy
        super().init_schedule_policy()
        self.programs = self._new_programs(None if policy in UPSTREAM_POLICIES else policy)
        self.policy = DynasorSchedulePolicy(
            self.programs,
            self.probes,
            self.schedule_policy,
            self.tree_cache,
            self.enable_hierarchical_cache,
            self.enable_priority_scheduling,
            self.schedule_low_priority_values_first,
        )

    def _new_programs(self, policy: str | None) -> ProgramScheduler:
        config = self.dynasor_config
        return ProgramScheduler(
            policy,
            starvation_factor=config.starvation_factor,
            speculative_places=int(config.speculative_share * self.max_running_requests),
            max_offered=config.max_offered,
            hold_tokens=config.prefix_hold_tokens,
            page_size=self.page_size,
            places=self.max_running_requests,
        )

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        messages: list[tuple[type, Callable[[Any], None]]] = [
            (DemandReqInput, self.take_demand),
            (CancelNodesReqInput, self.cancel_nodes),
            (EndProgramReqInput, self.end_program),
            (StopBranchesReqInput, self.stop_branches),
            (WatchReqInput, self.watch),
        ]
        self._request_dispatcher += TypeBasedDispatcher(messages)

    def get_init_info(self) -> dict[str, Any]:
        report = {**handshake_info(), "max_running_requests": self.max_running_requests}
        return {**super().get_init_info(), "dynasor": report}

    def get_internal_state(self, recv_req: GetInternalStateReq) -> Any:
        # The pool figures let a caller check that an ended program left nothing behind.
        reply = super().get_internal_state(recv_req)
        reply.internal_state["measured_requests"] = len(self.certainty)
        reply.internal_state["dynasor"] = {
            "programs": len(self.programs.table),
            "requests": self.programs.table.num_requests,
            "offered": self.programs.offered,
            "available_tokens": self.token_to_kv_pool_allocator.available_size(),
            "evictable_tokens": self.tree_cache.evictable_size(),
            "protected_tokens": self.tree_cache.protected_size(),
        }
        return reply

    # The life of a request: it has arrived once upstream has put it into a queue.

    def handle_generate_request(self, recv_req: TokenizedGenerateReqInput, **kwargs: Any) -> None:
        super().handle_generate_request(recv_req, **kwargs)
        compiling = self.grammar_manager.grammar_queue
        if compiling and compiling[-1].rid == recv_req.rid:
            self._note_arrival(compiling[-1])

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        super()._add_request_to_queue(req, is_retracted)
        if self.waiting_queue and self.waiting_queue[-1] is req:  # else it was refused
            self._note_arrival(req)
            self.programs.queued(req)

    def _note_arrival(self, req: Req) -> None:
        if req in self.programs:
            return
        if self.tp_size == 1:  # each rank would stop searching at a moment of its own
            limit_stop_patterns(req)
        params = BranchParams.of(req.sampling_params.custom_params)
        if params is None:
            self.programs.arrived(req, None)
            return
        self.programs.arrived(req, params.key, params.expected)
        if params.measured and self.certainty_observer is not None:
            self.certainty.open(req.rid, params.rule, params.token_values)

    def get_next_batch_to_run(self, running_batch: ScheduleBatch, last_batch: Any) -> Any:
        forked = self.probes.fork_due(running_batch, last_batch)
        plan = super().get_next_batch_to_run(running_batch, last_batch)
        self.probes.drop_unplaced(forked)
        return plan

    def get_num_allocatable_reqs(self, *args: Any, **kwargs: Any) -> int:
        free: int = super().get_num_allocatable_reqs(*args, **kwargs)
        return free - self.programs.probes.reserved

    def get_new_batch_prefill(self, running_batch: ScheduleBatch) -> Any:
        plan = super().get_new_batch_prefill(running_batch)
        self.programs.release(self.waiting_queue)
        if plan.batch_to_run is not None:
            self.programs.admitted(plan.batch_to_run.reqs)
        if self.programs:
            self._follow(
                self.programs.after_pass(self.load_of(plan.running_batch, plan.batch_to_run))
            )
        return plan

    def run_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
        if self.certainty_observer is not None:
            # A delayed sampling step of this batch still runs before the next batch.
            self.certainty_observer.active = self.certainty.any_of(batch.reqs)
        return super().run_batch(batch, *args, **kwargs)

    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None:
        super().process_batch_result(batch, result)
        is_extend = batch.forward_mode.is_extend()
        self.programs.advance(batch.extend_num_tokens if is_extend else len(batch.reqs))
        for req in batch.reqs:
            if req.finished():
                self._note_end(req)
            elif req in self.probes:
                self.probes.end_if_answered(req)
            elif is_extend and req.output_ids:
                self.programs.prefilled(req)
            elif len(self.programs.probes):
                self.probes.read_own_answer(req)
        self._answer_ended_programs()

    def _note_end(self, req: Req) -> None:
        if req in self.probes:
            self.probes.take(req)
            return
        completed = not isinstance(req.finished_reason, FINISH_ABORT)
        self.programs.finished(req, completed)
        self._cancel(self.probes.of([req]))

    def send_abort_output(self, abort_req: AbortReq, req: Req) -> None:
        # Upstream reports here every request that leaves a queue outside the output stream.
        super().send_abort_output(abort_req, req)
        self.programs.gone(req)
        self.probes.drop(req)
        self.certainty.close(req.rid, "aborted")
        self._answer_ended_programs()

    def abort_request(self, recv_req: AbortReq) -> None:
        if recv_req.abort_all:
            self.programs.withdraw_offers()
        super().abort_request(recv_req)

    def pause_generation(self, recv_req: PauseGenerationReqInput) -> None:
        super().pause_generation(recv_req)
        self.programs.paused()
        self._answer_ended_programs()

    # The messages of programs.

    def take_demand(self, recv_req: DemandReqInput) -> None:
        """Take what a program needs now."""
        self.programs.demand(
            ProgramKey(recv_req.tenant, recv_req.program_id),
            recv_req.demand,
            kind=recv_req.kind,
            prompt_tokens=recv_req.prompt_tokens,
            draws_seen=recv_req.draws_seen,
        )

    def cancel_nodes(self, recv_req: CancelNodesReqInput) -> None:
        """End some requests of a program, or cut them, to be continued."""
        key = ProgramKey(recv_req.tenant, recv_req.program_id)
        if not recv_req.keep_kv:
            self._cancel(self.programs.cancel(key, recv_req.rids))
            return
        for req in self.programs.named(key, recv_req.rids):
            if not req.finished() and req.to_finish is None:
                req.to_finish = FINISH_ABORT(CUT_MESSAGE)

    def watch(self, recv_req: WatchReqInput) -> None:
        """Probe a request of a program from now on, or no more."""
        key = ProgramKey(recv_req.tenant, recv_req.program_id)
        tokens = len(recv_req.input_ids) + recv_req.max_tokens
        for req in self.programs.named(key, [recv_req.rid]):
            self.programs.probes.watch(req, recv_req.every, tokens, recv_req, recv_req.after)

    def end_program(self, recv_req: EndProgramReqInput) -> None:
        """End every request of a program; the answer follows when the last one has drained."""
        key = ProgramKey(recv_req.tenant, recv_req.program_id)
        self._cancel(self.programs.end(key, recv_req.message_id, self._engine_paused))
        self._answer_ended_programs()

    def _poll_timeout_aborts(self) -> list[Any]:
        # Runs once per step on the rank that measures. A message may be dropped on its way, so it
        # is repeated until the branch has ended; the second one changes nothing.
        messages: list[Any] = super()._poll_timeout_aborts()
        if self.certainty.stops:
            messages.append(StopBranchesReqInput(stops=dict(self.certainty.stops)))
        return messages

    def stop_branches(self, recv_req: StopBranchesReqInput) -> None:
        """End the named branches at their next token; runs on every rank alike."""
        for req in [*self.waiting_queue, *self.collect_inflight_reqs()]:  # queued: retracted
            reason = recv_req.stops.get(req.rid)
            if reason is not None and not req.finished() and req.to_finish is None:
                _end_at_next_token(req, STOP_MESSAGES[reason])

    # What follows.

    def load_of(self, running_batch: ScheduleBatch, new_batch: ScheduleBatch | None) -> Load:
        """How full the engine is with these two batches."""
        running = running_batch.batch_size()
        if new_batch is not None:
            running += new_batch.batch_size()
        kv = self.token_to_kv_pool_allocator.available_size() + self.tree_cache.evictable_size()
        return Load(running, len(self.waiting_queue), running_batch.batch_is_full, kv)

    def _follow(self, directives: Directives) -> None:
        self._cancel(directives.cancel)
        for key, count in directives.draws:
            answer = DrawReqOutput(tenant=key.tenant, program_id=key.program_id, count=count)
            self.send_control_output(answer, answer)

    def _cancel(self, reqs: Sequence[Req]) -> None:
        """End requests: queued ones at once, running ones commit what is launched already.

        Their KV does not enter the tree: what is private to them is free with them.
        """
        if not reqs:
            return
        reqs = [*reqs, *self.probes.of(reqs)]
        for req in self.taken_from_queues(set(reqs)):
            self._release_aborted_request(req)
            if req.kv.holds_mamba:
                release_kv_cache(req, self.tree_cache, checkpoint=False)
            reason = {"type": "abort", "message": CANCELLED_MESSAGE}
            self.send_abort_output(AbortReq(rid=req.rid, finished_reason=reason), req)
        for req in reqs:
            if (req in self.programs or req in self.probes) and not req.finished():
                _end_at_next_token(req, CANCELLED_MESSAGE)
                if req is self.chunked_req:
                    req.discard_output_reason = req.to_finish  # what its client is told
                    self._pending_chunked_abort_req = req

    def taken_from_queues(self, reqs: set[Req]) -> list[Req]:
        """Take these requests out of upstream's queues of a place and of a grammar."""
        grammars = self.grammar_manager
        taken = [req for req in (*self.waiting_queue, *grammars.grammar_queue) if req in reqs]
        if taken:
            self.waiting_queue = [req for req in self.waiting_queue if req not in reqs]
            grammars.grammar_queue = [req for req in grammars.grammar_queue if req not in reqs]
        for req in taken:
            if isinstance(req.grammar, Future):
                req.grammar.cancel()
        return taken

    def _answer_ended_programs(self) -> None:
        for ended in self.programs.answers():
            answer = EndProgramReqOutput(
                message_id=ended.message_id,
                tokens=ended.tokens,
                tokens_at_end=ended.tokens_at_end,
            )
            self.send_control_output(answer, answer)


def _end_at_next_token(req: Req, message: str) -> None:
    req.skip_radix_cache_insert = True
    req.to_finish = FINISH_ABORT(message)
