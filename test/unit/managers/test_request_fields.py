"""Where program fields are found, and that nothing unchecked goes further."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi import Request
from sglang.srt.managers.io_struct import GenerateReqInput

from sglang_dynasor.managers.request_fields import (
    DEFAULT_TENANT,
    read_program_fields,
    stamp,
    tenant_of,
    with_carrier,
)
from sglang_dynasor.programs import ProgramSpec

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
        ({}, {"own": [[1, [2]]]}, "custom_params"),
        ({}, {"own": {"deep": {"deeper": 1}}}, "custom_params"),
        ({}, [1], "custom_params"),
        ({}, "text", "custom_params"),
    ],
)
def test_malformed_fields_are_refused_by_name(
    body: dict[str, Any], custom: object, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        read(offline(custom), body)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[]", b"1", b"null"])
def test_a_body_without_fields_is_no_error_here(body: bytes) -> None:
    obj = GenerateReqInput(text="1+1")
    assert asyncio.run(read_program_fields(obj, http_request(body))) == [None]


def test_only_a_posted_json_body_is_read() -> None:
    body = json.dumps({"program_id": "p"}).encode()
    obj = GenerateReqInput(text="1+1")
    for request in (http_request(body, "GET"), http_request(body, content_type="audio/wav")):
        assert asyncio.run(read_program_fields(obj, request)) == [None]


def test_the_stamp_reaches_every_prompt_that_has_a_program() -> None:
    obj = offline({"own": 1}, None)
    stamp(obj, [{"program_id": "a"}, None])
    assert obj.sampling_params[0]["custom_params"] == {"own": 1, "dynasor": {"program_id": "a"}}
    assert obj.sampling_params[1]["custom_params"] is None


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
