"""How a branch becomes an upstream request, and the messages of programs on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.io_struct import GenerateReqInput

from sglang_dynasor.managers.engine_branches import (
    ClientGone,
    EngineBranches,
    branch_rid,
    branch_seed,
)
from sglang_dynasor.managers.program_messages import BranchParams
from sglang_dynasor.programs import FinishedBranch, Step
from sglang_dynasor.scheduling import ProgramKey

PROMPT = [5, 6, 7]


class FakeUpstream:
    """Records branch requests and answers each at once."""

    def __init__(self, finish: str = "stop") -> None:
        self.requests: list[GenerateReqInput] = []
        self._finish = finish

    async def generate(self, obj: GenerateReqInput) -> AsyncIterator[dict[str, Any]]:
        self.requests.append(obj)
        meta = {"completion_tokens": 4, "finish_reason": {"type": self._finish}}
        yield {"text": "ab", "meta_info": {**meta, "completion_tokens": 2}}
        yield {"text": "abcd", "meta_info": meta}

    def report(self, step: Step, draws_seen: int) -> None: ...

    def on_draw(self, start: Callable[[int], None]) -> None: ...

    async def end(self) -> dict[str, int]:
        key = ProgramKey("t", "p")
        return {branch_rid(key, 3): 9, branch_rid(key, 11): 2}

    def close(self) -> None: ...


class Disconnected:
    async def is_disconnected(self) -> bool:
        return True


def branches(
    upstream: FakeUpstream, params: dict[str, Any] | None = None, request: Any = None
) -> EngineBranches:
    return EngineBranches(
        template=GenerateReqInput(text="1+1", sampling_params=params, rid="own"),
        input_ids=PROMPT,
        key=ProgramKey("t", "p"),
        params_of=lambda index: BranchParams("t", "p"),
        seed=1,
        generate=upstream.generate,
        link=upstream,
        request=request,
    )


def request_of(index: int, params: dict[str, Any] | None, limit: int | None) -> GenerateReqInput:
    upstream = FakeUpstream()
    asyncio.run(branches(upstream, params).run_branch(index, limit))
    (request,) = upstream.requests
    return request


def test_a_branch_is_the_clients_request_with_the_prompt_tokenised_once() -> None:
    request = request_of(2, {"temperature": 0.5, "custom_params": {"own": 1}}, None)
    assert (request.text, request.input_ids) == (None, PROMPT)
    assert request.rid == "t/p::2"
    params = request.sampling_params
    assert params["temperature"] == 0.5
    assert params["custom_params"] == {
        "own": 1,
        "dynasor": {"tenant": "t", "program_id": "p"},
    }


@pytest.mark.parametrize(
    ("own", "granted", "sent"),
    [(None, None, None), (9, None, 9), (None, 5, 5), (9, 5, 5), (3, 5, 3)],
)
def test_a_grant_only_lowers_the_token_limit(
    own: int | None, granted: int | None, sent: int | None
) -> None:
    params = {} if own is None else {"max_new_tokens": own}
    assert request_of(0, params, granted).sampling_params.get("max_new_tokens") == sent


def test_a_token_limit_of_a_wrong_type_is_left_for_upstream_to_refuse() -> None:
    assert request_of(0, {"max_new_tokens": "9"}, 5).sampling_params["max_new_tokens"] == "9"


@pytest.mark.parametrize(
    ("finish", "expected"), [("stop", "completed"), ("length", "length"), ("abort", "aborted")]
)
def test_the_last_output_of_a_branch_is_what_counts(finish: str, expected: str) -> None:
    client = branches(FakeUpstream(finish))
    branch = asyncio.run(client.run_branch(3, None))
    assert branch == FinishedBranch(3, "abcd", 4, expected)  # type: ignore[arg-type]
    assert client.outputs[3]["text"] == "abcd"


def test_counts_of_an_ended_program_come_by_branch() -> None:
    assert asyncio.run(branches(FakeUpstream()).end_program()) == {3: 9, 11: 2}


def test_a_disconnected_client_is_noticed() -> None:
    with pytest.raises(ClientGone, match="program p"):
        asyncio.run(branches(FakeUpstream(), request=Disconnected()).check_wanted())
    asyncio.run(branches(FakeUpstream()).check_wanted())


@given(st.integers(0, 2**31 - 1), st.integers(0, 511))
def test_a_branch_seed_fits_31_bits_and_repeats(seed: int, index: int) -> None:
    assert 0 <= branch_seed(seed, index) < 2**31
    assert branch_seed(seed, index) == branch_seed(seed, index)


def test_branch_seeds_differ() -> None:
    assert len({branch_seed(seed, index) for seed in range(20) for index in range(50)}) == 1000


def test_branch_ids_differ_between_tenants() -> None:
    ids = {branch_rid(ProgramKey(tenant, "p"), 0) for tenant in ("", "a", "b")}
    assert len(ids) == 3


def test_branch_params_survive_custom_params() -> None:
    params = BranchParams("t", "p")
    assert BranchParams.of({"own": 1, "dynasor": params.to_custom_params()}) == params
    assert BranchParams.of({"own": 1}) is None
    assert BranchParams.of(None) is None
    assert all(isinstance(value, str | int) for value in params.to_custom_params().values())
