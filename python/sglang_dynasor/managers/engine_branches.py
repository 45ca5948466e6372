"""The live engine as a branch client: each branch is an ordinary upstream request."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from fastapi import Request
from sglang.srt.managers.io_struct import GenerateReqInput

from sglang_dynasor.certaindex import TokenCertainty
from sglang_dynasor.managers.certainty_report import SUMMARY
from sglang_dynasor.managers.program_messages import BranchParams, stop_reason_of
from sglang_dynasor.managers.request_fields import with_carrier
from sglang_dynasor.programs import FinishedBranch, Step
from sglang_dynasor.scheduling import ProgramKey


class ClientGone(ValueError):
    """The HTTP client closed its connection before the program had an answer."""


def branch_rid(key: ProgramKey, index: int) -> str:
    """Request id of a branch; tenants that use the same program id must not collide."""
    prefix = f"{key.tenant}/" if key.tenant else ""
    return f"{prefix}{key.program_id}::{index}"


def branch_seed(seed: int, index: int) -> int:
    """A sampling seed of its own for every branch; the same for the same (seed, index)."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 33  # 31 bits: safe in any integer type downstream


class ProgramLink(Protocol):
    """What a running program and the scheduler say to each other about it."""

    def report(self, step: Step, draws_seen: int) -> None: ...

    def on_draw(self, start: Callable[[int], None]) -> None: ...

    async def end(self) -> dict[str, int]: ...

    def close(self) -> None: ...


class EngineBranches:
    """Samples the branches of one program through `generate`, upstream's own request path.

    `template` is the client's request, `input_ids` its prompt, tokenised once; `params_of` says
    what the scheduler is told about a branch.
    """

    def __init__(
        self,
        template: GenerateReqInput,
        input_ids: list[int],
        key: ProgramKey,
        params_of: Callable[[int], BranchParams],
        seed: int,
        generate: Callable[[GenerateReqInput], AsyncIterator[dict[str, Any]]],
        link: ProgramLink,
        request: Request | None,
    ) -> None:
        self.outputs: dict[int, dict[str, Any]] = {}
        self._template = template
        self._input_ids = input_ids
        self._key = key
        self._params_of = params_of
        self._seed = seed
        self._generate = generate
        self._link = link
        self.report = link.report
        self.on_draw = link.on_draw
        self.close = link.close
        self._request = request

    async def run_branch(self, index: int, max_tokens: int | None) -> FinishedBranch:
        outputs = self._generate(self._branch_request(index, max_tokens))
        output = [item async for item in outputs][-1]
        self.outputs[index] = output
        meta = output["meta_info"]
        summary = meta.get(SUMMARY)
        return FinishedBranch(
            index=index,
            text=output.get("text") or "",
            n_tokens=meta.get("completion_tokens", 0),
            stop_reason=stop_reason_of(meta["finish_reason"]),
            certainty=None if summary is None else TokenCertainty(**summary),
        )

    async def end_program(self) -> dict[int, int]:
        tokens = await self._link.end()
        return {int(rid.rsplit("::", 1)[1]): count for rid, count in tokens.items()}

    async def check_wanted(self) -> None:
        if self._request is not None and await self._request.is_disconnected():
            raise ClientGone(f"client of program {self._key.program_id} disconnected")

    def _branch_request(self, index: int, max_tokens: int | None) -> GenerateReqInput:
        branch = copy.copy(self._template)
        branch.text = None
        branch.input_ids = self._input_ids
        branch.rid = branch_rid(self._key, index)
        params = dict(self._template.sampling_params or {})
        params["sampling_seed"] = branch_seed(self._seed, index)
        if max_tokens is not None:
            own = params.get("max_new_tokens")
            # Anything but a number is upstream's to refuse, with its own message.
            if own is None or isinstance(own, int):
                params["max_new_tokens"] = max_tokens if own is None else min(own, max_tokens)
        branch.sampling_params = with_carrier(params, self._params_of(index).to_custom_params())
        return branch
