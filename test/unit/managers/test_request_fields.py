"""Where program fields are found, and that nothing unchecked goes further."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest
from fastapi import Request
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.program_messages import BranchParams
from sglang_dynasor.managers.request_fields import (
    DEFAULT_TENANT,
    check_member_samples,
    check_request_ids,
    is_greedy,
    read_program_fields,
    single_request,
    stamp,
    take_server_defaults,
    tenant_of,
    with_carrier,
    without_stamp,
)
from sglang_dynasor.programs.spec import ProgramSpec

RUN = {"algorithm": "self_consistency"}


def http_request(body: bytes, method: str = "POST", **headers: str) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": method, "headers": raw}, receive)


def read(obj: GenerateReqInput, body: object = None, **headers: str) -> list[ProgramSpec | None]:
    request = None if body is None else http_request(json.dumps(body).encode(), **headers)
    return asyncio.run(read_program_fields(obj, request))


def offline(*custom: object) -> GenerateReqInput:
    params = [{"temperature": 1.0, "custom_params": item} for item in custom]
    if len(params) == 1:
        return GenerateReqInput(text="1+1", sampling_params=params[0])
    return GenerateReqInput(text=["1+1"] * len(params), sampling_params=params)


def test_a_request_without_program_fields_has_no_spec_and_stays_as_it_is() -> None:
    obj = GenerateReqInput(text="1+1", sampling_params={"temperature": 0.5})
    assert read(obj, {"text": "1+1"}) == [None]
    assert obj.sampling_params == {"temperature": 0.5}
    obj = GenerateReqInput(text="1+1")
    assert read(obj) == [None]
    assert obj.sampling_params is None


def test_fields_are_found_at_the_top_level_of_the_body() -> None:
    (spec,) = read(GenerateReqInput(text="1+1"), {"dynasor": RUN, "program_id": "p"})
    assert spec is not None
    assert (spec.algorithm, spec.program_id) == ("self_consistency", "p")


def test_a_program_id_alone_is_enough() -> None:
    (spec,) = read(GenerateReqInput(text="1+1"), {"program_id": "p"})
    assert spec is not None
    assert not spec.runs_in_engine and spec.program_id == "p"


def test_fields_in_custom_params_are_taken_out_and_the_rest_is_left() -> None:
    obj = offline({"dynasor": RUN, "own": 1})
    before = obj.sampling_params
    (spec,) = read(obj)
    assert spec is not None and spec.runs_in_engine
    assert obj.sampling_params == {"temperature": 1.0, "custom_params": {"own": 1}}
    assert before["custom_params"]["dynasor"] == RUN  # the caller's own dict is untouched


def test_every_prompt_of_a_batch_has_its_own_fields() -> None:
    specs = read(offline({"dynasor": {"program_id": "a"}}, {"own": 1}))
    assert [spec and spec.program_id for spec in specs] == ["a", None]


@pytest.mark.parametrize(
    ("body", "custom", "named"),
    [
        ({"dynasor": {"algorithm": "x"}}, None, "algorithm"),
        ({"dynasor": []}, None, "dynasor"),
        ({"dynasor": {}, "program_id": "a b"}, None, "program_id"),
        ({"program_id": 7}, None, "program_id"),
        ({"program_id": {"a": 1}}, None, "program_id"),
        ({"dynasor": {"program_id": "a"}, "program_id": "b"}, None, "program_id"),
        ({"dynasor": RUN}, {"dynasor": RUN}, "dynasor"),
        ({}, {"dynasor": [1]}, "dynasor"),
        ({}, {"dynasor": {"max_branches": 0}}, "max_branches"),
        ({}, [1], "custom_params"),
        ({}, "text", "custom_params"),
    ],
)
def test_malformed_fields_are_refused_by_name(
    body: dict[str, Any], custom: object, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        read(offline(custom), body)


def test_an_empty_list_of_parameters_loses_no_program() -> None:
    with pytest.raises(RequestError, match="sampling_params") as caught:
        read(GenerateReqInput(text="1+1", sampling_params=[]), {"dynasor": RUN})
    assert caught.value.param == "sampling_params"


@pytest.mark.parametrize("n", [0, -1, None, "2", 1.5])
def test_a_clients_program_asks_for_samples(n: object) -> None:
    for params in ({"n": n}, [{}, {"n": n}]):
        with pytest.raises(RequestError, match="n: must be an integer of at least 1"):
            check_member_samples(params)


@pytest.mark.parametrize("params", [None, {}, {"n": 1}, [{"n": 2}, {"n": 2}], [None]])
def test_samples_that_upstream_takes_pass(params: Any) -> None:
    check_member_samples(params)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[]", b"1", b"null"])
def test_a_body_without_fields_is_no_error_here(body: bytes) -> None:
    obj = GenerateReqInput(text="1+1")
    assert asyncio.run(read_program_fields(obj, http_request(body))) == [None]


def test_only_a_posted_json_body_is_read() -> None:
    body = json.dumps({"program_id": "p"}).encode()
    obj = GenerateReqInput(text="1+1")
    for request in (http_request(body, "GET"), http_request(body, content_type="audio/wav")):
        assert asyncio.run(read_program_fields(obj, request)) == [None]


def test_a_put_request_is_read_as_a_posted_one() -> None:
    body = json.dumps({"program_id": "p"}).encode()
    (spec,) = asyncio.run(
        read_program_fields(GenerateReqInput(text="1+1"), http_request(body, "PUT"))
    )
    assert spec is not None and spec.program_id == "p"


def test_the_stamp_reaches_every_prompt_that_has_a_program() -> None:
    obj = offline({"own": 1}, None)
    stamp(obj, [BranchParams("t", "a"), None])
    stamped = {"tenant": "t", "program_id": "a"}
    assert obj.sampling_params[0]["custom_params"] == {"own": 1, "dynasor": stamped}
    assert obj.sampling_params[1]["custom_params"] is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"dynasor": {"program_id": "a"}, "own": 1}, {"own": 1}),
        ({"dynasor": {"program_id": "a"}}, None),
        ({"own": 1}, {"own": 1}),
        (None, None),
    ],
)
def test_a_request_that_is_no_branch_loses_its_stamp(before: Any, after: Any) -> None:
    shared = SamplingParams(custom_params=before)
    own = copy.copy(shared)
    without_stamp(own)
    assert own.custom_params == after
    assert shared.custom_params == before


def test_custom_params_the_server_prefers_stay_beside_our_own() -> None:
    obj = GenerateReqInput(text="1+1", sampling_params={"temperature": 1.0})
    request = http_request(json.dumps({"program_id": "p"}).encode())
    asyncio.run(read_program_fields(obj, request, {"own": 1}))
    assert obj.sampling_params == {"temperature": 1.0, "custom_params": {"own": 1}}
    plain = GenerateReqInput(text="1+1", sampling_params={"temperature": 1.0})
    asyncio.run(read_program_fields(plain, http_request(b"{}"), {"own": 1}))
    assert plain.sampling_params == {"temperature": 1.0}  # upstream fills it in


def test_program_fields_the_server_prefers_are_checked_and_taken_out() -> None:
    preferred = {"temperature": 0.5, "custom_params": {"dynasor": RUN, "own": 1}}
    rest, defaults = take_server_defaults(preferred, DynasorConfig())
    assert rest == {"temperature": 0.5, "custom_params": {"own": 1}}
    spec = defaults.spec_of("/generate", "any")
    assert spec is not None and spec.runs_in_engine
    rest, defaults = take_server_defaults(None, DynasorConfig())
    assert rest == {} and not defaults
    twice = DynasorConfig(default='{"algorithm": "cot"}')
    assert take_server_defaults({}, twice)[1]
    with pytest.raises(ValueError, match="--dynasor-default"):
        take_server_defaults(preferred, twice)
    malformed = {"custom_params": {"dynasor": {"algorithm": "x"}}}
    with pytest.raises(ValueError, match=r"--preferred-sampling-params.*algorithm"):
        take_server_defaults(malformed, DynasorConfig())


@pytest.mark.parametrize(
    ("params", "greedy"),
    [
        ({}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 1e-9}, True),
        ({"temperature": 0.1}, False),
        ({"temperature": -1}, False),
        ({"temperature": "0"}, False),
        ({"temperature": 1.0, "top_k": 1}, True),
    ],
)
def test_temperature_zero_is_greedy(params: dict[str, Any], greedy: bool) -> None:
    assert is_greedy(params) == greedy


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ["1+1"]},
        {"text": ["1+1"], "sampling_params": {"top_k": 5}},
        {"text": ["1+1"], "sampling_params": [{"top_k": 5}], "rid": ["r"]},
        {"text": ["1+1"], "rid": "r"},
        {"input_ids": [[5, 6]]},
    ],
)
def test_a_list_of_one_prompt_is_that_prompt(fields: dict[str, Any]) -> None:
    obj = single_request(GenerateReqInput(**fields))
    expected = {name: value[0] for name, value in fields.items() if name in ("text", "input_ids")}
    assert {name: getattr(obj, name) for name in expected} == expected
    assert obj.rid == ("r" if "rid" in fields else None)
    if "sampling_params" in fields:
        assert obj.sampling_params == {"top_k": 5}


def test_a_single_prompt_is_left_as_it_is() -> None:
    for obj in (GenerateReqInput(text="1+1", rid="r"), GenerateReqInput(input_ids=[5, 6])):
        assert single_request(obj) is obj


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"text": ["1+1", "2+2"]}, "prompt"),
        ({"input_ids": [[5], [6]]}, "prompt"),
        ({"text": []}, "prompt"),
        ({"text": ""}, "prompt"),
        ({"input_ids": []}, "prompt"),
        ({}, "prompt"),
        ({"input_embeds": [[0.5]]}, "input"),
        ({"text": "1+1", "image_data": ["x"]}, "input"),
        ({"text": "1+1", "session_params": {"id": "s"}}, "session_params"),
        ({"text": "1+1", "rid": ["a", "b"]}, "rid"),
        ({"text": ["1+1"], "rid": ["a", "b"]}, "rid"),
        ({"text": "1+1", "sampling_params": {"n": 0}}, "n"),
        ({"text": "1+1", "sampling_params": {"n": 2}}, "n"),
        ({"text": "1+1", "sampling_params": {"n": None}}, "n"),
        ({"text": ["1+1"], "sampling_params": [{"n": 2}]}, "n"),
        ({"text": "1+1", "sampling_params": {"sampling_seed": 2**63}}, "seed"),
        ({"text": "1+1", "sampling_params": {"sampling_seed": -(2**63) - 1}}, "seed"),
        ({"text": "1+1", "sampling_params": {"sampling_seed": "7"}}, "seed"),
    ],
)
def test_what_no_program_can_take_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named) as raised:
        single_request(GenerateReqInput(**fields))
    if isinstance(raised.value, RequestError):
        assert (raised.value.param, raised.value.status_code) == (named, 400)


@pytest.mark.parametrize("rids", ["/", "/t/p::0", ["r", "/"]])
def test_a_request_id_that_could_be_the_beginning_of_a_nodes_is_refused(rids: Any) -> None:
    with pytest.raises(RequestError, match="rid: must not begin with /") as raised:
        check_request_ids(rids)
    assert raised.value.param == "rid"


@pytest.mark.parametrize("rids", ["", "r", "a/b", ["r", "victim::0"], None, 7])
def test_every_other_request_id_is_upstreams_to_judge(rids: Any) -> None:
    check_request_ids(rids)


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63), 0, None])
def test_every_seed_that_upstream_takes_is_taken(seed: int | None) -> None:
    params = {"sampling_seed": seed, "n": 1}
    assert single_request(GenerateReqInput(text="1+1", sampling_params=params)) is not None


def test_with_carrier_copies() -> None:
    params = {"custom_params": {"own": 1}}
    stamped = with_carrier(params, {"program_id": "a"})
    assert params == {"custom_params": {"own": 1}}
    assert stamped["custom_params"] == {"own": 1, "dynasor": {"program_id": "a"}}


def test_the_tenant_follows_from_the_key_and_hides_it() -> None:
    one = tenant_of(http_request(b"", authorization="Bearer secret-one"))
    two = tenant_of(http_request(b"", authorization="Bearer secret-two"))
    again = tenant_of(http_request(b"", authorization="Bearer secret-one"))
    assert one == again != two
    assert "secret" not in one
    assert tenant_of(http_request(b"")) == tenant_of(None) == DEFAULT_TENANT
