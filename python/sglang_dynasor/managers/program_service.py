"""Runs programs inside the tokenizer manager's process, and knows where each one lives."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from fastapi import Request
from sglang.srt.managers.io_struct import AbortReq, BaseReq, GenerateReqInput

from sglang_dynasor.certaindex import MathEquality
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.engine_nodes import EngineNodes, Node, ProgramRequest
from sglang_dynasor.managers.node_paths import Tokens
from sglang_dynasor.managers.program_messages import (
    CARRIER,
    BranchParams,
    DrawReqOutput,
    EndProgramReqInput,
    EndProgramReqOutput,
    ProbedReqOutput,
)
from sglang_dynasor.managers.program_news import ToldProgram
from sglang_dynasor.managers.replicas import replica_loads
from sglang_dynasor.managers.request_fields import as_list, node_params, stamp_of
from sglang_dynasor.managers.reward_homes import rewards_of
from sglang_dynasor.managers.rewards import JudgedPath, Rewards
from sglang_dynasor.managers.running_programs import RunningPrograms
from sglang_dynasor.programs.answers import Answers
from sglang_dynasor.programs.client import ClientGone, Judgement, ProgramAborted, RewardError
from sglang_dynasor.programs.grouping import grouping_of
from sglang_dynasor.programs.program_run import ProgramRun
from sglang_dynasor.programs.runner import run_program
from sglang_dynasor.programs.spec import ResolvedProgram
from sglang_dynasor.scheduling import ProgramKey
from sglang_dynasor.scheduling.affinity import Residences

# Attribute of a request of the engine's own process: the Budget of the batch it belongs to.
TOKEN_BUDGET = "dynasor_token_budget"


class ProgramService:
    """The programs of one tokenizer manager: those it runs, and those of its clients.

    It is the engine of `EngineNodes`.
    """

    def __init__(self, manager: Any, config: DynasorConfig) -> None:
        self.unsent_nodes: dict[str, Node] = {}
        self.rank_status: list[bool] | None = None
        self._manager = manager
        self._config = config
        limit_ms = config.equality_time_limit_ms
        self._equality = MathEquality(limit_ms / 1000) if limit_ms else None
        self._rewards: Rewards | None = None
        self._running = RunningPrograms()
        self._residences = Residences()
        self._pending_ends: dict[str, asyncio.Future[dict[str, int]]] = {}
        # What the requests of a call carry, by identity: copies of them carry the very same.
        self._stamps: dict[int, ProgramKey] = {}
        self._aborted_stamps: set[int] = set()

    async def run(
        self,
        program: ResolvedProgram,
        tenant: str,
        obj: GenerateReqInput,
        request: Request | None,
        on_text: Callable[[dict[str, Any]], None] | None = None,
    ) -> tuple[ProgramRun, EngineNodes]:
        """Run a program to its outcome; also returns its nodes.

        `on_text` is given what its nodes generate as it comes. Raises RequestError where its ids
        are in use or nothing could answer.
        """
        loop = asyncio.get_running_loop()
        expires_at = None if program.deadline_s is None else loop.time() + program.deadline_s
        key = ProgramKey(tenant, program.program_id)
        watched = None if obj.background else request
        async with self._running.run(key, obj.rid, watched) as running:
            with self._at_home([key], obj):
                nodes = await self._nodes(program, key, obj, expires_at, on_text)
                running.attach(nodes)
                try:
                    made = program.build()
                    run = await run_program(
                        ToldProgram(made, obj) if obj.stream else made,
                        nodes,
                        self._answers(program),
                        None if expires_at is None else expires_at - loop.time(),
                        vars(obj).get(TOKEN_BUDGET),
                    )
                except ClientGone as error:
                    raise RequestError(str(error)) from error
        return run, nodes

    async def _nodes(
        self,
        program: ResolvedProgram,
        key: ProgramKey,
        obj: GenerateReqInput,
        expires_at: float | None,
        on_text: Callable[[dict[str, Any]], None] | None,
    ) -> EngineNodes:
        input_ids = obj.input_ids or (await self._manager._tokenize_texts(obj.text))[0]
        seed = (obj.sampling_params or {}).get("sampling_seed")
        tokenizer = self._manager.tokenizer
        return EngineNodes(
            self,
            ProgramRequest(
                template=obj,
                input_ids=list(input_ids),
                key=key,
                kind=program.algorithm,
                rank=self._residences.rank(key),
                seed=secrets.randbits(31) if seed is None else seed,
                params_of=partial(node_params, program, key.tenant),
                tokens=Tokens(
                    encode=partial(tokenizer.encode, add_special_tokens=False),
                    decode=partial(tokenizer.decode, skip_special_tokens=True),
                    eos_ids=frozenset(self._manager.model_config.hf_eos_token_id or ()),
                ),
                on_text=on_text,
                deadline_at=expires_at,
            ),
        )

    def start_soon(self) -> None:
        """Begin to start the workers of the algebra and who judges, without waiting for them."""
        if self._equality is not None:
            self._equality.start_soon()
        self._rewards = rewards_of(self._config)

    def judge_with(self, rewards: Rewards) -> None:
        """Have another judge than the settings'."""
        if self._rewards is not None:
            self._rewards.close()
        self._rewards = rewards

    def wait(self) -> None:
        """Wait until what was started answers. Raises ValueError where it can't start."""
        if self._rewards is not None:
            self._rewards.wait()

    def close(self) -> None:
        """End what was started for programs: the workers of the algebra, and who judges."""
        if self._equality is not None:
            self._equality.close()
        if self._rewards is not None:
            self._rewards.close()

    async def score(self, ids: list[int], prompt_tokens: int, text: str) -> Judgement:
        """Have a path judged, whose prompt has so many tokens. Raises RewardError."""
        if self._rewards is None:
            raise RewardError("there is no reward model")
        prompt = ""
        if self._config.reward_verifier or self._config.reward_input == "text":
            prompt = self._manager.tokenizer.decode(ids[:prompt_tokens])
        return await self._rewards.score(JudgedPath(ids, prompt, text))

    def _answers(self, program: ResolvedProgram) -> Answers:
        answer_format = program.settings.answer_format
        grouping = grouping_of(answer_format.name, self._config, self._equality)
        return Answers(answer_format, grouping, self._config.pattern_time_limit_ms / 1000)

    @contextmanager
    def members(self, keys: list[ProgramKey], obj: GenerateReqInput) -> Iterator[None]:
        """Requests of programs that their client drives, while they are served."""
        stamps = [stamp for item in as_list(obj.sampling_params) if (stamp := stamp_of(item))]
        for stamp in stamps:
            self._stamps[id(stamp)] = ProgramKey(stamp["tenant"], stamp["program_id"])
        with self._at_home(keys, obj):
            try:
                yield
            finally:
                for stamp in stamps:
                    self._stamps.pop(id(stamp), None)
                    self._aborted_stamps.discard(id(stamp))

    @contextmanager
    def _at_home(self, keys: list[ProgramKey], obj: GenerateReqInput) -> Iterator[None]:
        """Keep these programs on their replicas, or the one the request names, while this lasts."""
        loads = replica_loads(self._manager, self.rank_status)
        named = obj.data_parallel_rank if obj.routed_dp_rank is None else obj.routed_dp_rank
        if named is not None:
            if named not in loads:
                message = f"routed_dp_rank: must be one of {', '.join(map(str, loads))}"
                raise RequestError(message, "routed_dp_rank")
            loads = {named: 0.0}
        for key in keys:
            self._residences.enter(key, loads)
        try:
            yield
        finally:
            for key in keys:
                self._residences.leave(key)

    def place(self, tokenized: Any) -> None:
        """Send a request of a program to its replica. Raises RequestError for a forged stamp."""
        stamped = (tokenized.sampling_params.custom_params or {}).get(CARRIER)
        if stamped is None:
            return
        params = BranchParams.of(tokenized.sampling_params.custom_params)
        if params is None or params.key not in self._residences:
            raise RequestError(f"{CARRIER}: these are no program fields of a request", CARRIER)
        if tokenized.routed_dp_rank is None:
            tokenized.routed_dp_rank = self._residences.rank(params.key)

    def abort_all(self) -> None:
        """End every program the engine runs; the requests of the others are upstream's to end."""
        self._running.abort_all()

    def abort(self, name: str, tenant: str | None) -> None:
        """End the programs of a tenant (None: of any) with this program id or request id."""
        for program in self._running.named(name, tenant):
            program.abort(ProgramAborted(f"program {program.key.program_id} was aborted"))
        for key in self._residences.named(name, tenant):
            if self._running.get(key) is None:
                self._abort_members(key)

    def _abort_members(self, key: ProgramKey) -> None:
        """End every request of a program its client drives, also what is yet to be sent."""
        self._send_end(key, self._residences.rank(key))
        self._aborted_stamps.update(stamp for stamp, of in self._stamps.items() if of == key)

    def sent(self, rid: str) -> None:
        """The scheduler has been told of a request."""
        node = self.unsent_nodes.pop(rid, None)
        if node is not None:
            node.sent = True
            node.on_sent(node)
        if self._aborted_stamps and (state := self._manager.rid_to_state.get(rid)) is not None:
            stamp = stamp_of(getattr(state.obj, "sampling_params", None))
            if id(stamp) in self._aborted_stamps:
                self.send(AbortReq(rid=rid))

    async def end(self, key: ProgramKey) -> dict[str, int]:
        """End a program, whoever drives it; returns the tokens of its live requests by rid."""
        answered = self.ask_to_end(
            key, self._residences.rank(key) if key in self._residences else 0
        )
        for program in self._running.named(key.program_id, key.tenant):
            program.abort(ProgramAborted(f"program {key.program_id} was ended"))
        return await answered

    def ask_to_end(self, key: ProgramKey, rank: int) -> asyncio.Future[dict[str, int]]:
        """Have the scheduler end a program; gives the tokens of each request it had, by rid."""
        answered: asyncio.Future[dict[str, int]] = asyncio.get_running_loop().create_future()
        message_id = uuid.uuid4().hex
        self._pending_ends[message_id] = answered
        answered.add_done_callback(lambda _: self._pending_ends.pop(message_id))
        self._send_end(key, rank, message_id)
        return answered

    def _send_end(self, key: ProgramKey, rank: int, message_id: str = "") -> None:
        self.send(EndProgramReqInput(**key._asdict(), routed_dp_rank=rank, message_id=message_id))

    def handle_end(self, answer: EndProgramReqOutput) -> None:
        pending = self._pending_ends.get(answer.message_id)
        if pending is not None and not pending.done():  # nobody waits for an abort
            pending.set_result(answer.tokens)

    def handle_draw(self, answer: DrawReqOutput) -> None:
        program = self._running.get(ProgramKey(answer.tenant, answer.program_id))
        if program is not None:  # otherwise it has ended meanwhile
            program.draw(answer.count)

    def handle_probed(self, answer: ProbedReqOutput) -> None:
        program = self._running.get(ProgramKey(answer.tenant, answer.program_id))
        if program is not None:
            program.probed(answer)

    @property
    def streams_increments(self) -> bool:
        return bool(self._manager.incremental_streaming_output)

    @property
    def is_pause(self) -> bool:
        return bool(self._manager.is_pause)

    def generate_node(self, obj: GenerateReqInput) -> AsyncIterator[dict[str, Any]]:
        outputs: AsyncIterator[dict[str, Any]] = self._manager.generate_node(obj)
        return outputs

    def seen(self, rid: str) -> tuple[str, int]:
        """Text and number of tokens of a request so far, as far as they have come here."""
        state = self._manager.rid_to_state.get(rid)
        return ("", 0) if state is None else (state.get_text(), len(state.output_ids))

    def send(self, message: BaseReq) -> None:
        self._manager._dispatch_to_scheduler(message)
