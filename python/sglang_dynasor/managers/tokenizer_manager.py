"""The tokenizer manager that knows programs: one interception point for every surface.

Upstream: `sglang/srt/managers/tokenizer_manager.py`, `generate_request`. Chat, completions,
/generate, the offline engine and sgl.lang all pass through it. It translates and decides nothing.
"""

from __future__ import annotations

import copy
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch
from fastapi import Request
from sglang.srt.managers.io_struct import ActiveRanksOutput, GenerateReqInput
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.managers.utils import is_health_check_generate_req
from sglang.utils import TypeBasedDispatcher

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.certainty_report import SUMMARY, VALUES, note_streamed
from sglang_dynasor.managers.edge_checks import (
    check_embeddings,
    check_samples,
    check_tokenized,
    names_program,
)
from sglang_dynasor.managers.program_messages import (
    CARRIER,
    CERTAINTY,
    DrawReqOutput,
    EndProgramReqOutput,
    ProbedReqOutput,
)
from sglang_dynasor.managers.program_output import (
    add_certainty,
    add_member_report,
    add_reuse,
    program_output,
)
from sglang_dynasor.managers.program_service import ProgramService
from sglang_dynasor.managers.program_stream import ProgramStream
from sglang_dynasor.managers.request_fields import (
    DEFAULT_TENANT,
    check_member_samples,
    check_request_ids,
    is_constrained,
    is_greedy,
    member_params,
    model_of,
    read_program_fields,
    single_request,
    stamp,
    take_server_defaults,
    tenant_of,
    without_stamp,
)
from sglang_dynasor.managers.rewards import Rewards
from sglang_dynasor.managers.stop_patterns import check_short_search
from sglang_dynasor.programs.params import RequestTraits
from sglang_dynasor.programs.result import build_report
from sglang_dynasor.programs.server_defaults import ServerDefaults
from sglang_dynasor.programs.spec import ProgramSpec, ResolvedProgram
from sglang_dynasor.scheduling import ProgramKey

_THOUGHT_TAIL = 8  # tokens of a prompt that tell whether it opens a thought


class DynasorTokenizerManager(TokenizerManager):
    """Has programs run on the server and stamps the requests of client-driven ones."""

    # Upstream's tests build managers without a call of __init__.
    _programs = ProgramService(None, DynasorConfig())
    _defaults = ServerDefaults()
    preferred_sampling_params: dict[str, Any]  # upstream's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.dynasor_config = DynasorConfig.from_environment()
        self.branches_in_flight = 0
        super().__init__(*args, **kwargs)
        self._programs = ProgramService(self, self.dynasor_config)
        self.preferred_sampling_params, self._defaults = take_server_defaults(
            self.preferred_sampling_params, self.dynasor_config
        )
        # Its sampling path has no place for an observer.
        speculative = self.server_args.speculative_algorithm is not None
        self._unmeasured = "not measured with speculative decoding" if speculative else None
        self._install_routes()
        self._programs.start_soon()

    @property
    def serving_chat_class(self) -> type:
        from sglang_dynasor.serving.openai import DynasorServingChat

        return DynasorServingChat

    def _install_routes(self) -> None:
        from sglang_dynasor.serving import abort_route

        abort_route.install()

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        answers: list[tuple[type, Callable[[Any], None]]] = [
            (EndProgramReqOutput, lambda answer: self._programs.handle_end(answer)),
            (DrawReqOutput, lambda answer: self._programs.handle_draw(answer)),
            (ProbedReqOutput, lambda answer: self._programs.handle_probed(answer)),
        ]
        self._result_dispatcher += TypeBasedDispatcher(answers)

    def generate_request(
        self, obj: Any, request: Request | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        # Upstream's abort task of a stream reads this even after a refusal.
        obj.is_single = not isinstance(obj.rid, list)
        if obj.rid is not None:
            check_request_ids(obj.rid)
        if not isinstance(obj, GenerateReqInput):
            return super().generate_request(obj, request)
        check_samples(obj)
        if not self._defaults and not names_program(obj, request):
            # No generator of ours around upstream's: that is what idle would cost.
            return super().generate_request(obj, request)
        return self._generate_named(obj, request)

    async def _generate_named(
        self, obj: GenerateReqInput, request: Request | None
    ) -> AsyncIterator[dict[str, Any]]:
        """A request that may name a program, or take the server's default."""
        specs = await self._program_fields(obj, request)
        tenant = tenant_of(request) if any(specs) else DEFAULT_TENANT
        ours = [spec for spec in specs if spec is not None and spec.runs_in_engine]
        if ours:
            async for output in self._run_program(obj, ours[0], tenant, request):
                yield output
            return
        members = [
            None if spec is None or spec.mode == "off" else spec.resolve(self.dynasor_config)
            for spec in specs
        ]
        if not any(members):
            async for output in super().generate_request(obj, request):
                yield output
            return
        check_member_samples(obj.sampling_params)
        stamp(
            obj,
            [None if member is None else member_params(member, tenant) for member in members],
        )
        keys = [ProgramKey(tenant, member.program_id) for member in members if member is not None]
        with self._programs.members(keys, obj):
            async for output in super().generate_request(obj, request):
                add_member_report(output, members, obj.parallel_sample_num, self._unmeasured)
                if obj.stream:
                    note_streamed(obj, output, self.incremental_streaming_output)
                yield output

    async def _program_fields(
        self, obj: GenerateReqInput, request: Request | None
    ) -> list[ProgramSpec | None]:
        """The program fields of each prompt, from the request or else the server's default."""
        specs: list[ProgramSpec | None] = []
        if names_program(obj, request):
            shared = self.preferred_sampling_params.get("custom_params")
            specs = await read_program_fields(obj, request, shared)
        if not self._defaults or any(specs):
            return specs
        try:
            single = single_request(copy.copy(obj))
        except RequestError:
            return specs  # what can't be a program stays the request it is
        if is_health_check_generate_req(single):
            return specs
        model = await model_of(request) if self._defaults.tells_models_apart else ""
        route = request.url.path if request is not None else ""
        spec = self._defaults.spec_of(route, model or self.served_model_name)
        return specs if spec is None else [spec]

    def update_request_meta_info(
        self,
        meta_info: dict[str, Any],
        state: Any,
        customized_info: dict[str, list[Any]],
        index: int,
        finish_reason: dict[str, Any] | None,
    ) -> None:
        if CERTAINTY not in customized_info:
            super().update_request_meta_info(
                meta_info, state, customized_info, index, finish_reason
            )
            return
        # Ours has nothing for most requests; upstream would give each of them an empty list.
        others = {key: value for key, value in customized_info.items() if key != CERTAINTY}
        super().update_request_meta_info(meta_info, state, others, index, finish_reason)
        payload = customized_info[CERTAINTY][index]
        if payload is None:
            return
        if "values" in payload:
            self._accumulate_request_meta_info(meta_info, state, VALUES, payload["values"])
        if "summary" in payload:
            meta_info[SUMMARY] = payload["summary"]

    async def generate_node(self, obj: GenerateReqInput) -> AsyncIterator[dict[str, Any]]:
        """One node of a program through upstream's own path."""
        self.branches_in_flight += 1
        try:
            async for output in super().generate_request(obj, None):
                yield output
        finally:
            self.branches_in_flight -= 1

    async def _run_program(
        self, given: GenerateReqInput, spec: ProgramSpec, tenant: str, request: Request | None
    ) -> AsyncIterator[Any]:
        """One output, or a stream of them; a program with several branches streams its last."""
        self.auto_create_handle_loop()
        obj = single_request(given)
        effective = {**self.preferred_sampling_params, **(obj.sampling_params or {})}
        traits = RequestTraits(
            is_greedy(effective),
            is_constrained(effective),
            self._opens_thought(obj),
        )
        program = spec.resolve(self.dynasor_config, traits)
        if not given.stream:
            output = await self._outcome_of(program, tenant, obj, request, None)
            yield output if obj is given else [output]
            return
        stream = ProgramStream(self.incremental_streaming_output)
        on_text = stream.put if program.settings.streams else None
        running = self._outcome_of(program, tenant, obj, request, on_text)
        async for output in stream.following(running):
            if CARRIER in output["meta_info"]:
                note_streamed(given, output, incremental=False)
            yield output

    async def _outcome_of(
        self,
        program: ResolvedProgram,
        tenant: str,
        obj: GenerateReqInput,
        request: Request | None,
        on_text: Callable[[dict[str, Any]], None] | None,
    ) -> dict[str, Any]:
        started = time.perf_counter()
        run, nodes = await self._programs.run(program, tenant, obj, request, on_text)
        seconds = time.perf_counter() - started
        report = build_report(program, run, nodes.prompt_tokens, seconds)
        add_certainty(report, program, nodes, run)
        add_reuse(report, nodes)
        if program.settings.measured and self._unmeasured:
            report["inactive"] = {**report["inactive"], VALUES: self._unmeasured}
        version = self.config_value("weight_version")
        return program_output(nodes, run, report, obj.rid or program.program_id, version)

    def _opens_thought(self, obj: GenerateReqInput) -> bool:
        """Whether the prompt ends inside a thought."""
        think_start = self.dynasor_config.think_end.replace("/", "", 1)
        if obj.text is not None:
            return str(obj.text).rstrip().endswith(think_start)
        tail = self.tokenizer.decode(list(obj.input_ids or ())[-_THOUGHT_TAIL:])
        return str(tail).rstrip().endswith(think_start)

    async def end_program(self, key: ProgramKey) -> dict[str, int]:
        """End a program, whoever drives it; returns the tokens of its live requests by rid."""
        self.auto_create_handle_loop()
        return await self._programs.end(key)

    def _create_tokenized_object(self, obj: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            tokenized = super()._create_tokenized_object(obj, *args, **kwargs)
        except OverflowError as error:  # as it packs the token ids
            raise RequestError(f"prompt: not a token id: {error}", "prompt") from error
        check_tokenized(tokenized, self.model_config.vocab_size)
        if self.server_args.tp_size > 1:
            check_short_search(tokenized.sampling_params.stop_regex_strs or ())
        takes_bfloat16 = self.model_config.dtype == torch.bfloat16
        check_embeddings(tokenized, self.model_config.hidden_size, takes_bfloat16)
        self._programs.place(tokenized)
        return tokenized

    async def _send_one_request(self, tokenized_obj: Any) -> None:
        # Upstream prefills the prompt of a request with n > 1 first: no branch of a program.
        if tokenized_obj.sampling_params.max_new_tokens == 0:
            without_stamp(tokenized_obj.sampling_params)
        await super()._send_one_request(tokenized_obj)

    def _mark_state_dispatched(self, rid: str) -> None:
        super()._mark_state_dispatched(rid)
        self._programs.sent(rid)

    def update_active_ranks(self, ranks: ActiveRanksOutput) -> None:
        super().update_active_ranks(ranks)
        self._programs.rank_status = list(ranks.status)

    def wait_for_programs(self) -> None:
        """Wait until all that programs need can answer. Raises ValueError where it can't start."""
        self._programs.wait()

    def judge_with(self, rewards: Rewards) -> None:
        """Have another judge than the settings'."""
        self._programs.judge_with(rewards)

    def close_programs(self) -> None:
        """End what was started for programs; they must be over."""
        self._programs.close()

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        """As upstream's; also ends programs, by their id or their client's request id."""
        if abort_all:
            self._programs.abort_all()
        elif rid not in self.rid_to_state:
            self._programs.abort(rid, DEFAULT_TENANT)
        super().abort_request(rid, abort_all)

    def abort_for_tenant(self, rid: str, tenant: str | None) -> None:
        """As `abort_request`, but of programs only this tenant's end; None: of any tenant."""
        self._programs.abort(rid, tenant)
        super().abort_request(rid)
