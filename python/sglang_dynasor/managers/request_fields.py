"""Find the program fields of a request, whatever surface it came through.

Sources: the JSON body's top-level `dynasor`, `program_id`, `adaptive_compute` (upstream's request
models drop unknown keys, so the body is read here) and `custom_params["dynasor"]` of the sampling
parameters, the only one an offline call has. Nothing reaches the scheduler process before it was
checked here.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fastapi import Request
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.program_messages import CARRIER, BranchParams
from sglang_dynasor.programs.dialects import ADAPTIVE_COMPUTE, fields_of_adaptive_compute
from sglang_dynasor.programs.server_defaults import ServerDefaults, defaults_of, read_defaults
from sglang_dynasor.programs.spec import ProgramSpec, ResolvedProgram

DEFAULT_TENANT = ""
NODE_MARK = "/"  # the first letter of the request ids of nodes, and of no other
_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")
_SMALLEST_TEMPERATURE = 1e-6  # below it upstream takes the likeliest token


def tenant_of(request: Request | None) -> str:
    """The tenant a request belongs to: a digest of its API key, never the key itself."""
    token = request.headers.get("authorization", "") if request is not None else ""
    return hashlib.sha256(token.encode()).hexdigest()[:12] if token else DEFAULT_TENANT


async def read_program_fields(
    obj: GenerateReqInput, request: Request | None, server_params: dict[str, Any] | None = None
) -> list[ProgramSpec | None]:
    """One checked spec per prompt of `obj` (one for a single prompt), None where there is none.

    Takes the fields out of `obj.sampling_params`, which is replaced, not changed. `server_params`
    are the `custom_params` of requests that have none of their own. Raises RequestError naming the
    field.
    """
    body = await _body_fields(request)
    is_batch = isinstance(obj.sampling_params, list)
    if is_batch and not obj.sampling_params:
        raise RequestError("sampling_params: must not be an empty list", "sampling_params")
    specs: list[ProgramSpec | None] = []
    stripped: list[dict[str, Any] | None] = []
    for item in as_list(obj.sampling_params):
        fields, rest = _split(item)
        specs.append(_merge(body, fields))
        stripped.append(rest)
    if server_params and any(specs):
        stripped = [{"custom_params": server_params, **(item or {})} for item in stripped]
    obj.sampling_params = stripped if is_batch else stripped[0]
    return specs


def take_server_defaults(
    preferred: dict[str, Any] | None, config: DynasorConfig
) -> tuple[dict[str, Any], ServerDefaults]:
    """The server's preferred sampling parameters without program fields, and what requests without
    such fields get: as the settings say, or those fields.

    Upstream merges them into requests after these were checked. Raises ValueError.
    """
    defaults = read_defaults(config.default, config)
    try:
        fields, rest = _split(preferred)
        if fields is not None and defaults:
            raise ValueError("dynasor: --dynasor-default says this, give one of them")
        if fields is not None:
            defaults = defaults_of([{"dynasor": fields}], config)
    except ValueError as error:
        raise ValueError(f"--preferred-sampling-params: {error}") from None
    return rest or {}, defaults


async def model_of(request: Request | None) -> str:
    """The model a request names in its body, "" where it names none."""
    model = (await _body_of(request)).get("model")
    return model if isinstance(model, str) else ""


async def _body_fields(request: Request | None) -> dict[str, Any]:
    body = await _body_of(request)
    known = (CARRIER, "program_id", ADAPTIVE_COMPUTE)
    return {key: body[key] for key in known if body.get(key) is not None}


async def _body_of(request: Request | None) -> dict[str, Any]:
    """The JSON object in a request's body; an empty one where there is none."""
    if request is None or request.method not in ("POST", "PUT"):
        return {}
    if "json" not in request.headers.get("content-type", "json"):
        return {}
    try:
        body = await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}  # a route with a body format of its own; it has no program fields
    return body if isinstance(body, dict) else {}


def _split(
    sampling_params: dict[str, Any] | None,
) -> tuple[object, dict[str, Any] | None]:
    """The program fields inside custom_params, and the sampling parameters without them."""
    if not isinstance(sampling_params, dict) or sampling_params.get("custom_params") is None:
        return None, sampling_params
    custom = sampling_params["custom_params"]
    if not isinstance(custom, dict):
        raise RequestError(
            f"custom_params: must be an object, got {type(custom).__name__}", "custom_params"
        )
    rest = {key: value for key, value in custom.items() if key != CARRIER}
    return custom.get(CARRIER), {**sampling_params, "custom_params": rest or None}


def _merge(body: dict[str, Any], fields: object) -> ProgramSpec | None:
    if ADAPTIVE_COMPUTE in body:
        if CARRIER in body or fields is not None:
            message = f"{ADAPTIVE_COMPUTE}: given together with dynasor, give one of them"
            raise RequestError(message, ADAPTIVE_COMPUTE)
        fields = fields_of_adaptive_compute(body[ADAPTIVE_COMPUTE])
    if CARRIER in body and fields is not None:
        raise RequestError("dynasor: given both at the top level and in custom_params", CARRIER)
    fields = body.get(CARRIER, fields)
    if "program_id" not in body:
        return None if fields is None else ProgramSpec.parse(fields)
    spec = ProgramSpec.parse({} if fields is None else fields)
    if spec.program_id not in (None, body["program_id"]):
        raise RequestError(
            "program_id: differs between the top level and dynasor.program_id", "program_id"
        )
    return spec.with_program_id(body["program_id"])


def node_params(program: ResolvedProgram, tenant: str, node: str) -> BranchParams:
    """What the scheduler is told about one node of a program."""
    params = BranchParams(
        tenant,
        program.program_id,
        measured=program.settings.measured,
        token_values=program.settings.token_certainty,
    )
    return params.with_rule(program.settings.rule_of_node(node))


def member_params(program: ResolvedProgram, tenant: str) -> BranchParams:
    """What the scheduler is told about a request of a program that its client drives."""
    settings = program.settings
    return BranchParams(
        tenant,
        program.program_id,
        expected=settings.max_branches,
        measured=settings.measured,
        token_values=settings.token_certainty,
    )


def stamp(obj: GenerateReqInput, per_prompt: list[BranchParams | None]) -> None:
    """Put what the scheduler is told into `obj.sampling_params`, one entry per prompt."""
    is_batch = isinstance(obj.sampling_params, list)
    stamped = [
        item if params is None else with_carrier(item, params.to_custom_params())
        for item, params in zip(as_list(obj.sampling_params), per_prompt, strict=True)
    ]
    obj.sampling_params = stamped if is_batch else stamped[0]


def stamp_of(sampling_params: dict[str, Any] | None) -> dict[str, Any] | None:
    """The very fields that `stamp` has put there."""
    custom_params = (sampling_params or {}).get("custom_params") or {}
    found: dict[str, Any] | None = custom_params.get(CARRIER)
    return found


def without_stamp(params: SamplingParams) -> None:
    """Make a request that is no branch an ordinary one."""
    if params.custom_params and CARRIER in params.custom_params:
        rest = {key: value for key, value in params.custom_params.items() if key != CARRIER}
        params.custom_params = rest or None


def check_member_samples(sampling_params: Any) -> None:
    """Raise RequestError where a client's program asks for no sample of a prompt."""
    for params in as_list(sampling_params):
        n = params.get("n", 1) if isinstance(params, dict) else 1
        if not isinstance(n, int) or n < 1:
            raise RequestError(f"n: must be an integer of at least 1, not {n!r}", "n")


def with_carrier(sampling_params: dict[str, Any] | None, fields: dict[str, Any]) -> dict[str, Any]:
    """A copy of `sampling_params` that carries `fields` to the scheduler."""
    params = sampling_params or {}
    custom = params.get("custom_params") or {}
    return {**params, "custom_params": {**custom, CARRIER: fields}}


def check_request_ids(rids: Any) -> None:
    """Raise RequestError for a client's request id that could be the beginning of a node's.

    Upstream aborts every request whose id begins with the one that is aborted.
    """
    for rid in as_list(rids):
        if isinstance(rid, str) and rid.startswith(NODE_MARK):
            message = f"rid: must not begin with {NODE_MARK}, which marks branches of programs"
            raise RequestError(message, "rid")


def is_greedy(sampling_params: dict[str, Any]) -> bool:
    """Whether all samples of a prompt are the same."""
    temperature = sampling_params.get("temperature")
    is_zero = isinstance(temperature, int | float) and 0 <= temperature < _SMALLEST_TEMPERATURE
    return is_zero or sampling_params.get("top_k") == 1


def is_constrained(sampling_params: dict[str, Any]) -> bool:
    """Whether the output is bound to a grammar."""
    return any(sampling_params.get(name) for name in _GRAMMARS)


def single_request(obj: GenerateReqInput) -> GenerateReqInput:
    """The request whose prompt a program samples; a list of one prompt is that prompt.

    Raises RequestError for what a program cannot take, naming the field.
    """
    for params in as_list(obj.sampling_params):
        if isinstance(params, dict) and params.get("n", 1) != 1:
            message = "n: must be 1 together with dynasor.algorithm; see dynasor.max_branches"
            raise RequestError(message, "n")
    if obj.input_embeds is not None or obj.contains_mm_input():
        raise RequestError("input: dynasor.algorithm takes text or token ids only", "input")
    if obj.session_params is not None:
        message = "session_params: not supported together with dynasor.algorithm"
        raise RequestError(message, "session_params")
    prompt = obj.input_ids if obj.text is None else obj.text
    if not prompt:
        raise RequestError("prompt: a program needs text or input_ids", "prompt")
    is_list = not isinstance(prompt, str) and not isinstance(prompt[0], int)
    if is_list and len(prompt) != 1:
        message = "prompt: a program with dynasor.algorithm takes exactly one prompt"
        raise RequestError(message, "prompt")
    if is_list:
        rid = obj.rid
        obj.normalize_batch_and_arguments()
        obj = obj[0]
        obj.rid = rid[0] if isinstance(rid, list) else rid
    if not isinstance(obj.rid, str | None):
        raise RequestError("rid: a program has one prompt and takes one id", "rid")
    _check_seed(obj.sampling_params or {})
    return obj


def as_list(value: Any) -> list[Any]:
    """What stands for one or many, as many."""
    return value if isinstance(value, list) else [value]


def _check_seed(params: Any) -> None:
    """As upstream would, which sees only the seeds of the nodes."""
    seed = params.get("sampling_seed") if isinstance(params, dict) else None
    if seed is None:
        return
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise RequestError("seed: must be an integer from -2**63 to 2**63 - 1", "seed")
