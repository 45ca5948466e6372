"""The live engine as a node client: each node is an ordinary upstream request.

Upstream: `sglang/srt/managers/tokenizer_manager.py`. A request waits there while the engine is
paused or its weights are updated; until it is sent the scheduler knows nothing of it.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from fastapi import HTTPException
from sglang.srt.managers.io_struct import BaseReq, GenerateReqInput

from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.certaindex import TokenCertainty
from sglang_dynasor.managers.certainty_report import SUMMARY
from sglang_dynasor.managers.node_paths import NodePaths, Tokens
from sglang_dynasor.managers.program_messages import (
    CANCELLED_MESSAGE,
    BranchParams,
    CancelNodesReqInput,
    DemandReqInput,
    EndProgramReqInput,
    ProbedReqOutput,
    WatchReqInput,
    stop_reason_of,
)
from sglang_dynasor.managers.request_fields import NODE_MARK, as_list, with_carrier
from sglang_dynasor.programs.client import (
    ClientGone,
    Generated,
    Judgement,
    NodeError,
    Probe,
    ProgramAborted,
)
from sglang_dynasor.programs.protocol import Start, Watch
from sglang_dynasor.scheduling import ProgramKey

# Exact counts of what an ended program cost are worth this wait, and no more.
END_LIMIT_S = 2.0
DEADLINE_GRACE_S = 0.12


def node_seed(seed: int, node: str) -> int:
    """A sampling seed of its own for every node; the same for the same (seed, node)."""
    digest = hashlib.blake2b(f"{seed}:{node}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 33  # 31 bits: safe in any integer type downstream


def program_and_node(rid: str) -> tuple[str, str]:
    """Of a node's request id its program and name; a client's own is node 0 of its own id."""
    if not rid.startswith(NODE_MARK):
        return rid, "0"
    path, _, place = rid.removeprefix(NODE_MARK).rpartition("::")
    return path.partition("/")[2], place.split(".")[2]  # as `_request` has put them there


class NodeEngine(Protocol):
    """What the nodes of a program need of the tokenizer manager."""

    unsent_nodes: dict[str, Node]

    @property
    def is_pause(self) -> bool: ...

    def generate_node(self, obj: GenerateReqInput) -> AsyncIterator[dict[str, Any]]: ...

    @property
    def streams_increments(self) -> bool: ...

    def seen(self, rid: str) -> tuple[str, int]: ...

    def send(self, message: BaseReq) -> None: ...

    def ask_to_end(self, key: ProgramKey, rank: int) -> asyncio.Future[dict[str, int]]: ...

    async def score(self, ids: list[int], prompt_tokens: int, text: str) -> Judgement: ...


@dataclass(slots=True, eq=False)
class Node:
    """A node on its way; `sent` once the scheduler was told of it."""

    name: str
    rid: str
    result: asyncio.Future[Generated]
    on_sent: Callable[[Node], None]
    stop: str = ""  # the text that ends it as a step
    sent: bool = False
    task: asyncio.Task[Generated] | None = None


@dataclass(frozen=True, slots=True)
class ProgramRequest:
    """A client's request as a program runs it.

    `template` is the request, `input_ids` its prompt, tokenised once, `kind` the class of nodes
    whose lengths are learnt together, `rank` the replica it lives on. `params_of` says what the
    scheduler is told about a node. `on_text` is given each node's output as it comes, with the text
    of its whole path; None: nobody wants it before its end. `deadline_at` is of the event loop's
    clock.
    """

    template: GenerateReqInput
    input_ids: list[int]
    key: ProgramKey
    kind: str
    rank: int
    seed: int
    params_of: Callable[[str], BranchParams]
    tokens: Tokens
    on_text: Callable[[dict[str, Any]], None] | None = None
    deadline_at: float | None = None


class EngineNodes:
    """Generates the nodes of one program through upstream's own request path."""

    def __init__(self, engine: NodeEngine, program: ProgramRequest) -> None:
        self.paths = NodePaths(program.input_ids, program.tokens)
        self.start_drawn: Callable[[int], None] | None = None
        self.unwanted: ClientGone | ProgramAborted | None = None
        self._engine = engine
        self._program = program
        # The random part: a program id may be used again while old rows drain.
        instance = secrets.token_hex(4)
        tenant, program_id = program.key
        self._rid_prefix = f"{NODE_MARK}{tenant}/{program_id}::{instance}"
        self._watches: dict[str, Watch] = {}
        self._take_probe: Callable[[Probe], None] | None = None
        self._live: dict[str, Node] = {}  # by rid
        self._sent = 0
        self._over = False

    @property
    def prompt_tokens(self) -> int:
        return len(self._program.input_ids)

    async def generate(self, start: Start) -> Generated:
        if self._over or self.unwanted is not None:
            return Generated("", 0, self._cut_reason)
        request = self._request(start)
        if request is None:
            return Generated(self.paths.end_without_room(start), 0, "length")
        future: asyncio.Future[Generated] = asyncio.get_running_loop().create_future()
        node = Node(start.node, request.rid, future, self._tell_watch, start.stop)
        self._live[node.rid] = self._engine.unsent_nodes[node.rid] = node
        node.task = asyncio.ensure_future(self._run(node, request))
        node.task.add_done_callback(partial(self._settle, node))
        try:
            return await node.result
        except asyncio.CancelledError:
            node.task.cancel()
            raise

    def demand(self, demand: Demand, draws_seen: int) -> None:
        self._send(
            DemandReqInput,
            kind=self._program.kind,
            prompt_tokens=self.prompt_tokens,
            certaindex=demand.certaindex,
            worth=demand.worth,
            work=demand.work,
            needed=demand.needed,
            values=list(demand.values),
            draws_seen=draws_seen,
        )

    def on_draw(self, start: Callable[[int], None]) -> None:
        self.start_drawn = start

    def watch(self, watch: Watch) -> None:
        self._watches[watch.node] = watch
        for node in self._live.values():
            if node.name == watch.node and node.sent:
                self._tell_watch(node)

    def _tell_watch(self, node: Node) -> None:
        watch = self._watches.get(node.name)
        if watch is not None:
            self._send(
                WatchReqInput,
                rid=node.rid,
                every=watch.every,
                input_ids=self._program.tokens.encode(watch.text),
                max_tokens=watch.max_tokens,
                measured=watch.measured,
                after=watch.after,
            )

    def on_probe(self, take: Callable[[Probe], None]) -> None:
        self._take_probe = take

    def probed(self, answer: ProbedReqOutput) -> None:
        """A probe of one of the nodes has ended."""
        _, name = program_and_node(answer.rid)
        watch = self._watches.get(name)
        if not answer.rid.startswith(self._rid_prefix) or watch is None:
            return  # of an earlier program with the same id
        if self._take_probe is not None:
            self._take_probe(
                Probe(
                    name,
                    answer.at,
                    "" if answer.is_own else watch.text,
                    answer.text,
                    answer.n_tokens,
                    answer.is_whole,
                    answer.confidence,
                )
            )

    async def score(self, node: str) -> Judgement:
        ids, text = self.paths.finished(node)
        return await self._engine.score(ids, self.prompt_tokens, text)

    def cancel(self, nodes: Sequence[str], keep_kv: bool = False) -> None:
        named = [node for node in self._live.values() if node.name in nodes]
        if not keep_kv:
            self._cut_unsent(named)
        if rids := [node.rid for node in named if node.sent]:
            self._send(CancelNodesReqInput, rids=rids, keep_kv=keep_kv)

    async def end(self) -> dict[str, int]:
        self._over = True
        live = list(self._live.values())
        self._cut_unsent(live)
        sent = [node for node in live if node.sent]
        if not sent:
            self.close()
            return {}
        tokens: dict[str, int] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(self._end_limit_s):
                tokens = await self._engine.ask_to_end(self._program.key, self._program.rank)
                if not self._engine.is_pause:
                    await asyncio.wait([node.result for node in sent])  # their last words
        for node in sent:
            self._cut(node)
        return {node.name: tokens[node.rid] for node in sent if node.rid in tokens}

    def close(self) -> None:
        self._send(EndProgramReqInput, message_id="")

    async def check_wanted(self) -> None:
        if self.unwanted is not None:
            raise self.unwanted

    def abort(self, reason: ClientGone | ProgramAborted) -> None:
        """Have the program end at whatever stage it is; `check_wanted` raises `reason`."""
        if self._over or self.unwanted is not None:
            return
        self.unwanted = reason
        self._cut_unsent(list(self._live.values()))
        self.close()

    @property
    def _cut_reason(self) -> Any:
        return "cancelled" if self.unwanted is None else "aborted"

    @property
    def _end_limit_s(self) -> float:
        if self._program.deadline_at is None:
            return END_LIMIT_S
        remaining = self._program.deadline_at - asyncio.get_running_loop().time()
        return min(END_LIMIT_S, max(0.0, remaining) + DEADLINE_GRACE_S)

    def _send(self, message: type[BaseReq], **fields: Any) -> None:
        tenant, program_id = self._program.key
        rank = self._program.rank
        self._engine.send(
            message(tenant=tenant, program_id=program_id, routed_dp_rank=rank, **fields)
        )

    async def _run(self, node: Node, request: GenerateReqInput) -> Generated:
        output: dict[str, Any] = {}
        try:
            async for item in self._engine.generate_node(request):
                output = self._collected(output, item, request)
                if self._program.on_text is not None:
                    self._program.on_text(self.paths.whole(node.name, output))
        except (HTTPException, ValueError) as error:
            return self._refused(node, error)
        finally:
            self._engine.unsent_nodes.pop(node.rid, None)
        meta = output["meta_info"]
        stop_reason = stop_reason_of(meta["finish_reason"])
        if stop_reason == "aborted" and self.unwanted is None:
            message = meta["finish_reason"].get("message") or "aborted by the engine"
            raise NodeError(message, status_code=503)
        if stop_reason == "cut" and self.paths.ends_by_itself(output):
            stop_reason = "completed"
        matched = meta["finish_reason"].get("matched")
        own_stops = as_list((self._program.template.sampling_params or {}).get("stop") or [])
        if node.stop and matched in own_stops:
            # The client's own, which ends the path; upstream was not to trim it.
            output = {**output, "text": output["text"].rpartition(matched)[0]}
            matched = None
        self.paths.outputs[node.name] = output
        summary = meta.get(SUMMARY)
        return Generated(
            text=self.paths.text(node.name, output.get("text")),
            n_tokens=meta.get("completion_tokens", 0),
            stop_reason=self._cut_reason if stop_reason == "cancelled" else stop_reason,
            certainty=None if summary is None else TokenCertainty(**summary),
            matched_stop=matched if isinstance(matched, str) else "",
        )

    def _collected(
        self, before: dict[str, Any], item: dict[str, Any], request: GenerateReqInput
    ) -> dict[str, Any]:
        """An output with all that the node has generated, also where the engine sends pieces."""
        if not (request.stream and self._engine.streams_increments and before):
            return item
        text = before["text"] + item["text"]
        return {**item, "text": text, "output_ids": [*before["output_ids"], *item["output_ids"]]}

    def _refused(self, node: Node, error: HTTPException | ValueError) -> Generated:
        message = str(error.detail if isinstance(error, HTTPException) else error)
        if message == CANCELLED_MESSAGE:  # before its grammar was ready
            return Generated("", 0, self._cut_reason)
        status_code: int = getattr(error, "status_code", 400)
        raise NodeError(message, getattr(error, "param", None), status_code) from error

    def _settle(self, node: Node, task: asyncio.Task[Generated]) -> None:
        """Hand over how a node's task ended, unless nobody waits for it any more."""
        del self._live[node.rid]
        error = None if task.cancelled() else task.exception()
        if node.result.done():
            return
        if task.cancelled():
            node.result.set_result(Generated("", 0, self._cut_reason))
        elif error is not None:
            node.result.set_exception(error)
        else:
            node.result.set_result(task.result())

    def _cut_unsent(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            if not node.sent:
                self._cut(node)

    def _cut(self, node: Node) -> None:
        """End a node here and now; one that was sent is aborted by upstream as its task ends."""
        if node.task is None or node.task.done():
            return
        if not node.result.done():
            text, n_tokens = self._engine.seen(node.rid)
            text = self.paths.text(node.name, text)
            node.result.set_result(Generated(text, n_tokens, self._cut_reason))
        node.task.cancel()

    def _request(self, start: Start) -> GenerateReqInput | None:
        """A node's request: the client's own, with the tokens the node continues.

        None where its path has used up what the client's request allows.
        """
        program = self._program
        request = copy.copy(program.template)
        before = self.paths.begin(start)
        params = dict(program.template.sampling_params or {})
        # Anything but a number is upstream's to refuse, with its own message.
        own = params.get("max_new_tokens")
        if isinstance(own, int):
            own -= len(before)
            if own <= 0 and before:
                return None
            params["max_new_tokens"] = own
        if start.max_tokens is not None and (own is None or isinstance(own, int)):
            params["max_new_tokens"] = min(start.max_tokens, own or start.max_tokens)
        if start.stop:
            # The text that ends a step belongs to it, for the next one continues it.
            params["stop"] = [*as_list(params.get("stop") or []), start.stop]
            params["no_stop_trim"] = True
        self._sent += 1
        request.text = None
        request.input_ids = self.paths.input_ids(start.node)
        request.rid = f"{self._rid_prefix}.{self._sent}.{start.node}."
        request.routed_dp_rank = program.rank
        request.stream = program.on_text is not None
        params["sampling_seed"] = node_seed(program.seed, start.node)
        fields = program.params_of(start.node).to_custom_params()
        request.sampling_params = with_carrier(params, fields)
        return request
