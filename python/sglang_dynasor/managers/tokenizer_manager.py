"""The tokenizer manager that runs programs: one interception point for every surface.

Upstream: `sglang/srt/managers/tokenizer_manager.py`, `generate_request`. Chat, completions,
/generate, the offline engine and sgl.lang all pass through it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.runtime_context import get_parallel
from sglang.utils import TypeBasedDispatcher

from sglang_dynasor.certaindex import MathEquality
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.managers.certainty_report import SUMMARY, VALUES, note_streamed
from sglang_dynasor.managers.engine_branches import EngineBranches
from sglang_dynasor.managers.program_messages import (
    CERTAINTY,
    DrawBranchesReqOutput,
    EndProgramReqInput,
    EndProgramReqOutput,
    ReportProgramReqInput,
)
from sglang_dynasor.managers.program_output import (
    add_certainty,
    add_member_report,
    program_output,
)
from sglang_dynasor.managers.request_fields import (
    branch_params,
    read_program_fields,
    refuse_unsupported_request,
    stamp,
    tenant_of,
)
from sglang_dynasor.programs import (
    Offer,
    ProgramSpec,
    Step,
    build_report,
    grouping_of,
    run_program,
    self_consistency,
    with_answer,
)
from sglang_dynasor.scheduling import ProgramKey


@dataclass(slots=True)
class _PendingEnd:
    """An end-program message that not every data-parallel rank has answered yet."""

    answered: asyncio.Future[dict[str, int]]
    ranks_missing: int
    tokens: dict[str, int]


class _SchedulerLink:
    """One running program's line to the scheduler; while it is open, draws reach the program."""

    def __init__(
        self,
        manager: DynasorTokenizerManager,
        key: ProgramKey,
        spec: ProgramSpec,
        prompt_tokens: int,
    ) -> None:
        assert spec.max_branches is not None, "resolve() first"
        self._manager = manager
        self._key = key
        self._branch_class = spec.algorithm
        self._prompt_tokens = prompt_tokens
        self._max_branches = spec.max_branches

    def report(self, step: Step, draws_seen: int) -> None:
        offer = step if isinstance(step, Offer) else None
        self._manager._dispatch_to_scheduler(
            ReportProgramReqInput(
                tenant=self._key.tenant,
                program_id=self._key.program_id,
                branch_class=self._branch_class,
                prompt_tokens=self._prompt_tokens,
                max_branches=self._max_branches,
                certaindex=step.certaindex,
                needed=offer.needed if offer else None,
                worth=offer.worth if offer else 1.0,
                values=list(offer.values) if offer else [],
                draws_seen=draws_seen,
            )
        )

    def on_draw(self, start: Callable[[int], None]) -> None:
        self._manager._draw_handlers[self._key] = start

    async def end(self) -> dict[str, int]:
        return await self._manager.end_program(self._key)

    def close(self) -> None:
        self._manager._dispatch_end(self._key, message_id="")


class DynasorTokenizerManager(TokenizerManager):
    """Runs programs on the server and stamps the requests of client-driven ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.dynasor_config = DynasorConfig.from_environment()
        self.branches_in_flight = 0
        limit_ms = self.dynasor_config.equality_time_limit_ms
        self._equality = MathEquality(limit_ms / 1000) if limit_ms else None
        self._active_programs: set[ProgramKey] = set()
        self._draw_handlers: dict[ProgramKey, Callable[[int], None]] = {}
        self._pending_ends: dict[str, _PendingEnd] = {}
        super().__init__(*args, **kwargs)
        # Its sampling path has no place for an observer.
        speculative = self.server_args.speculative_algorithm is not None
        self._unmeasured = "not measured with speculative decoding" if speculative else None
        if self._equality is not None:
            self._equality.start_soon()

    @property
    def serving_chat_class(self) -> type:
        from sglang_dynasor.serving.openai import DynasorServingChat

        return DynasorServingChat

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        answers: list[tuple[type, Callable[[Any], None]]] = [
            (EndProgramReqOutput, self._handle_program_ended),
            (DrawBranchesReqOutput, self._handle_draw),
        ]
        self._result_dispatcher += TypeBasedDispatcher(answers)

    async def generate_request(
        self, obj: Any, request: Request | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        if not isinstance(obj, GenerateReqInput):
            async for output in super().generate_request(obj, request):
                yield output
            return
        # Upstream's abort task of a stream reads this even after a refusal.
        obj.is_single = not isinstance(obj.rid, list)
        specs = await read_program_fields(obj, request)
        tenant = tenant_of(request)
        if any(spec is not None and spec.runs_in_engine for spec in specs):
            yield await self._run_program(obj, specs, tenant, request)
            return
        members = [
            spec.resolve(self.dynasor_config) if spec is not None and spec.mode != "off" else None
            for spec in specs
        ]
        if any(members):
            stamp(
                obj,
                [
                    _member_params(spec, given, tenant)
                    for spec, given in zip(members, specs, strict=True)
                ],
            )
        async for output in super().generate_request(obj, request):
            if any(members):
                add_member_report(output, members, self._unmeasured)
                if obj.stream:
                    note_streamed(obj, output, self.incremental_streaming_output)
            yield output

    def update_request_meta_info(
        self,
        meta_info: dict[str, Any],
        state: Any,
        customized_info: dict[str, list[Any]],
        index: int,
        finish_reason: dict[str, Any] | None,
    ) -> None:
        # Ours has nothing for most requests; upstream would give each of them an empty list.
        others = {key: value for key, value in customized_info.items() if key != CERTAINTY}
        super().update_request_meta_info(meta_info, state, others, index, finish_reason)
        payload = customized_info[CERTAINTY][index] if CERTAINTY in customized_info else None
        if payload is None:
            return
        if "values" in payload:
            self._accumulate_request_meta_info(meta_info, state, VALUES, payload["values"])
        if "summary" in payload:
            meta_info[SUMMARY] = payload["summary"]

    async def generate_branch(self, obj: GenerateReqInput) -> AsyncIterator[dict[str, Any]]:
        """One branch through upstream's own path."""
        self.branches_in_flight += 1
        try:
            async for output in super().generate_request(obj, None):
                yield output
        finally:
            self.branches_in_flight -= 1

    async def _run_program(
        self,
        obj: GenerateReqInput,
        specs: list[ProgramSpec | None],
        tenant: str,
        request: Request | None,
    ) -> dict[str, Any]:
        self.auto_create_handle_loop()
        refuse_unsupported_request(obj, specs)
        assert specs[0] is not None
        spec = specs[0].resolve(self.dynasor_config)
        assert spec.program_id is not None
        key = ProgramKey(tenant, spec.program_id)
        if key in self._active_programs:
            raise ValueError(f"program_id: {spec.program_id} is already running")
        started = time.perf_counter()
        input_ids = obj.input_ids or (await self._tokenize_texts(obj.text))[0]
        params = obj.sampling_params or {}
        seed = params.get("sampling_seed")
        client = EngineBranches(
            template=obj,
            input_ids=list(input_ids),
            key=key,
            params_of=partial(branch_params, spec, tenant),
            seed=secrets.randbits(31) if seed is None else seed,
            generate=self.generate_branch,
            link=_SchedulerLink(self, key, spec, len(input_ids)),
            request=request,
        )
        limit_s = self.dynasor_config.pattern_time_limit_ms / 1000
        grouping = grouping_of(spec.answer_format, self.dynasor_config, self._equality)
        self._active_programs.add(key)
        try:
            run = await run_program(
                self_consistency(spec, limit_s, grouping),
                client,
                None if spec.deadline_ms is None else spec.deadline_ms / 1000,
                partial(with_answer, spec=spec, pattern_time_limit_s=limit_s, grouping=grouping),
            )
        finally:
            self._active_programs.discard(key)
            self._draw_handlers.pop(key, None)
        seconds = time.perf_counter() - started
        report = build_report(spec, run, len(input_ids), seconds)
        add_certainty(report, spec, client, run)
        if spec.wants_certainty and self._unmeasured:
            report["inactive"] = {**report["inactive"], VALUES: self._unmeasured}
        return program_output(client, run, report, self.config_value("weight_version"))

    async def end_program(self, key: ProgramKey) -> dict[str, int]:
        """End a program in the scheduler; returns the tokens of its live requests by rid."""
        self.auto_create_handle_loop()
        message_id = uuid.uuid4().hex
        pending = _PendingEnd(
            asyncio.get_running_loop().create_future(), get_parallel().num_dp_ranks, {}
        )
        self._pending_ends[message_id] = pending
        try:
            self._dispatch_end(key, message_id)
            return await pending.answered
        finally:
            del self._pending_ends[message_id]

    def _dispatch_end(self, key: ProgramKey, message_id: str) -> None:
        self._dispatch_to_scheduler(
            EndProgramReqInput(tenant=key.tenant, program_id=key.program_id, message_id=message_id)
        )

    def _handle_program_ended(self, answer: EndProgramReqOutput) -> None:
        pending = self._pending_ends.get(answer.message_id)
        if pending is None:
            return  # an abort, which nobody waits for
        pending.tokens.update(answer.tokens)
        pending.ranks_missing -= 1
        if pending.ranks_missing == 0 and not pending.answered.done():
            pending.answered.set_result(pending.tokens)

    def _handle_draw(self, answer: DrawBranchesReqOutput) -> None:
        start = self._draw_handlers.get(ProgramKey(answer.tenant, answer.program_id))
        if start is not None:  # otherwise the program has ended meanwhile
            start(answer.count)

    def close_equality(self) -> None:
        """End the algebra workers; programs must be over."""
        if self._equality is not None:
            self._equality.close()

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        # A program's id is no request's id: upstream would drop the abort.
        for key in self._active_programs:
            if key.program_id == rid:
                self._dispatch_end(key, message_id="")
        super().abort_request(rid, abort_all)


def _member_params(
    spec: ProgramSpec | None, given: ProgramSpec | None, tenant: str
) -> dict[str, Any] | None:
    if spec is None or given is None or spec.program_id is None:
        return None
    # The server's default says nothing of how many requests this client will send.
    expected = given.max_branches or 0
    return branch_params(spec, tenant, 0)._replace(max_branches=expected).to_custom_params()
