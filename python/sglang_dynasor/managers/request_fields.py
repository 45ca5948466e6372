"""Find the program fields of a request, whatever surface it came through.

Sources: the JSON body's top-level `dynasor` and `program_id` (upstream's request models drop
unknown keys, so the body is read here) and `sampling_params.custom_params["dynasor"]`, the only one
an offline call has. Nothing reaches the scheduler process before it was checked here.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
from fastapi import Request
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.sampling.sampling_params import CustomParamValue

from sglang_dynasor.managers.program_messages import CARRIER, BranchParams
from sglang_dynasor.programs import ProgramSpec

DEFAULT_TENANT = ""


def tenant_of(request: Request | None) -> str:
    """The tenant a request belongs to: a digest of its API key, never the key itself."""
    token = request.headers.get("authorization", "") if request is not None else ""
    return hashlib.sha256(token.encode()).hexdigest()[:12] if token else DEFAULT_TENANT


async def read_program_fields(
    obj: GenerateReqInput, request: Request | None
) -> list[ProgramSpec | None]:
    """One checked spec per prompt of `obj` (one for a single prompt), None where there is none.

    Takes the fields out of `obj.sampling_params`, which is replaced, not changed.
    Raises ValueError naming the field.
    """
    body = await _body_fields(request)
    is_batch = isinstance(obj.sampling_params, list)
    params = obj.sampling_params if is_batch else [obj.sampling_params]
    specs: list[ProgramSpec | None] = []
    stripped: list[dict[str, Any] | None] = []
    for item in params:
        fields, rest = _split(item)
        specs.append(_merge(body, fields))
        stripped.append(rest)
    obj.sampling_params = stripped if is_batch else stripped[0]
    return specs


async def _body_fields(request: Request | None) -> dict[str, Any]:
    if request is None or request.method != "POST":
        return {}
    if "json" not in request.headers.get("content-type", "json"):
        return {}
    try:
        body = await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}  # a route with a body format of its own; it has no program fields
    if not isinstance(body, dict):
        return {}
    return {key: body[key] for key in (CARRIER, "program_id") if body.get(key) is not None}


def _split(
    sampling_params: dict[str, Any] | None,
) -> tuple[object, dict[str, Any] | None]:
    """The program fields inside custom_params, and the sampling parameters without them."""
    if not isinstance(sampling_params, dict) or sampling_params.get("custom_params") is None:
        return None, sampling_params
    custom = sampling_params["custom_params"]
    if not isinstance(custom, dict):
        raise ValueError(f"custom_params: must be an object, got {type(custom).__name__}")
    rest = {key: value for key, value in custom.items() if key != CARRIER}
    try:
        # Upstream decodes this type in the scheduler process, where an error is fatal.
        msgspec.convert(rest, dict[str, CustomParamValue])
    except msgspec.ValidationError as error:
        raise ValueError(f"custom_params: {error}") from None
    return custom.get(CARRIER), {**sampling_params, "custom_params": rest or None}


def _merge(body: dict[str, Any], fields: object) -> ProgramSpec | None:
    if CARRIER in body and fields is not None:
        raise ValueError("dynasor: given both at the top level and in custom_params")
    fields = body.get(CARRIER, fields)
    if "program_id" not in body:
        return None if fields is None else ProgramSpec.parse(fields)
    if fields is None:
        return ProgramSpec.parse({"program_id": body["program_id"]})
    if isinstance(fields, dict) and "program_id" in fields:
        if fields["program_id"] != body["program_id"]:
            raise ValueError("program_id: differs between the top level and dynasor.program_id")
        return ProgramSpec.parse(fields)
    spec = ProgramSpec.parse(fields)
    checked = ProgramSpec.parse({"program_id": body["program_id"]})
    return spec.model_copy(update={"program_id": checked.program_id})


def branch_params(spec: ProgramSpec, tenant: str, index: int) -> BranchParams:
    """What the scheduler is told about request `index` of a program with a resolved spec."""
    assert spec.program_id is not None, "resolve() first"
    params = BranchParams(
        tenant,
        spec.program_id,
        measured=spec.wants_certainty,
        token_values=spec.token_certainty,
    )
    return params.with_rule(spec.rule_of_branch(index))


def stamp(obj: GenerateReqInput, per_prompt: list[dict[str, Any] | None]) -> None:
    """Put the fields for the scheduler into `obj.sampling_params`, one entry per prompt."""
    is_batch = isinstance(obj.sampling_params, list)
    params = obj.sampling_params if is_batch else [obj.sampling_params]
    stamped = [
        item if fields is None else with_carrier(item, fields)
        for item, fields in zip(params, per_prompt, strict=True)
    ]
    obj.sampling_params = stamped if is_batch else stamped[0]


def with_carrier(sampling_params: dict[str, Any] | None, fields: dict[str, Any]) -> dict[str, Any]:
    """A copy of `sampling_params` that carries `fields` to the scheduler."""
    params = sampling_params or {}
    custom = params.get("custom_params") or {}
    return {**params, "custom_params": {**custom, CARRIER: fields}}


def refuse_unsupported_request(obj: GenerateReqInput, specs: list[ProgramSpec | None]) -> None:
    """Raise ValueError for what a server-side program cannot take yet, naming the field."""
    params = obj.sampling_params
    if obj.stream:
        raise ValueError("stream: not supported together with dynasor.algorithm")
    if len(specs) != 1 or isinstance(obj.text, list) or _is_nested(obj.input_ids):
        raise ValueError("prompt: a program with dynasor.algorithm takes exactly one prompt")
    if isinstance(params, dict) and (params.get("n") or 1) != 1:
        raise ValueError("n: must be 1 together with dynasor.algorithm; see dynasor.max_branches")
    if obj.input_embeds is not None or obj.contains_mm_input():
        raise ValueError("input: dynasor.algorithm takes text or token ids only")
    if obj.session_params is not None:
        raise ValueError("session_params: not supported together with dynasor.algorithm")
    if obj.text is None and not obj.input_ids:
        raise ValueError("prompt: a program needs text or input_ids")
    seed = params.get("sampling_seed") if isinstance(params, dict) else None
    if seed is not None and not isinstance(seed, int):
        raise ValueError(f"seed: must be an integer, got {type(seed).__name__}")


def _is_nested(input_ids: Any) -> bool:
    return bool(input_ids) and isinstance(input_ids[0], list)
