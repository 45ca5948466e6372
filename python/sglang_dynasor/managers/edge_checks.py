"""What no request may bring into the scheduler process, where it would end the server.

Upstream hands token ids and counts to the model as they are; one that is out of range fails inside
a forward, which ends every process. This is checked for every request, with and without a program.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
from fastapi import Request
from sglang.srt.managers import io_struct
from sglang.srt.managers.embed_types import PositionalEmbeds
from sglang.srt.managers.io_struct import GenerateReqInput, TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import CustomParamValue

from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.program_messages import CARRIER
from sglang_dynasor.programs.dialects import ADAPTIVE_COMPUTE

MAX_SAMPLES = 4096
_LARGEST_INT32 = 2**31 - 1
_PLACE = re.compile(r"`\$\[(\d+)\]")  # of a field in the array that a request is sent as
_BODY_MARKS = (CARRIER.encode(), b"program_id", ADAPTIVE_COMPUTE.encode(), b"\\u00")


def names_program(obj: GenerateReqInput, request: Request | None) -> bool:
    """Whether a request may hold program fields, decided by one look at the body's bytes.

    False is certain. A key may be spelled with escapes, which count as a mark, and a body that
    nobody has read yet may hold anything.
    """
    params = obj.sampling_params
    for item in params if isinstance(params, list) else (params,):
        if isinstance(item, dict) and item.get("custom_params") is not None:
            return True
    if request is None:
        return False
    body: bytes | None = getattr(request, "_body", None)  # where Starlette keeps what was read
    return body is None or any(mark in body for mark in _BODY_MARKS)


def check_samples(obj: Any) -> None:
    """Raise RequestError where `n` asks for more copies of a request than memory could hold."""
    params = obj.sampling_params
    for item in params if isinstance(params, list) else (params,):
        n = item.get("n") if isinstance(item, dict) else None
        if isinstance(n, int) and n > MAX_SAMPLES:
            raise RequestError(f"n: must be at most {MAX_SAMPLES}, not {n}", "n")


def check_tokenized(request: Any, vocab_size: int) -> None:
    """Raise RequestError for a tokenised request whose values would end the scheduler process.

    `request` is what upstream is about to send to the scheduler: every road has been walked by
    then, its defaults are filled in and its batches are taken apart.
    """
    params = request.sampling_params
    if params.custom_params is not None:
        _check_custom_params(params.custom_params)
    if request.mm_inputs is None:  # media are sent in other ways, and stand as ids of their own
        _check_types(request)
        _check_prompt(request, vocab_size)
    if params.top_k > _LARGEST_INT32:
        raise RequestError(f"top_k: must be at most {_LARGEST_INT32}, not {params.top_k}", "top_k")
    if params.min_new_tokens and params.stop_token_ids:  # each is given a logit until then
        _check_ids("stop_token_ids", list(params.stop_token_ids), vocab_size)
    if isinstance(request, TokenizedGenerateReqInput):
        _check_logprobs(request, vocab_size)
        _check_pooled_places(request)


def check_embeddings(request: Any, hidden_size: int, takes_bfloat16: bool) -> None:
    """Raise RequestError for `input_embeds` that the model can't take.

    Upstream turns them into bfloat16 whatever the model's type is, and rows of another length fail
    in the scheduler process.
    """
    rows = getattr(request, "input_embeds", None)
    if not rows:
        return
    if not takes_bfloat16:
        raise RequestError(
            "input_embeds: are taken as bfloat16 only, and this model is of another type",
            "input_embeds",
        )
    if any(len(row) != hidden_size for row in rows):
        raise RequestError(
            f"input_embeds: every row must have {hidden_size} numbers", "input_embeds"
        )


def _check_types(request: Any) -> None:
    """Send the request to ourselves: the scheduler ends where it can't decode one."""
    if isinstance(request.positional_embed_overrides, PositionalEmbeds):
        return  # tensors, which the engine of this very process was given
    times, request.time_stats = request.time_stats, None  # wrapped later, and never the client's
    try:
        io_struct.msgpack_decode(io_struct.msgpack_encode(request))
    except (msgspec.ValidationError, TypeError, OverflowError) as error:
        at = _PLACE.search(str(error))
        field = request.__struct_fields__[int(at[1]) - 1] if at else ""
        reason = str(error).partition(" - at ")[0]
        raise RequestError(f"{field or 'request'}: {reason}", field or None) from None
    finally:
        request.time_stats = times


def _check_prompt(request: Any, vocab_size: int) -> None:
    ids = request.input_ids
    if ids:
        _check_ids("prompt", np.frombuffer(ids, np.int64), vocab_size)
    elif not request.input_embeds and not getattr(request, "session_params", None):
        raise RequestError("prompt: must have at least one token", "prompt")


def _check_logprobs(request: TokenizedGenerateReqInput, vocab_size: int) -> None:
    # Also where none are asked for: another request in the batch may ask, and the largest counts.
    top = request.top_logprobs_num
    if not 0 <= top <= vocab_size:
        raise RequestError(f"logprobs: at most {vocab_size} for a token, not {top}", "logprobs")
    if request.return_logprob and request.logprob_start_len < -1:
        raise RequestError(
            f"logprob_start_len: must be at least -1, not {request.logprob_start_len}",
            "logprob_start_len",
        )


def _check_pooled_places(request: TokenizedGenerateReqInput) -> None:
    """Places of the prompt are read as SGLang's own scoring asks for it: all of it is computed."""
    places = request.token_indices_to_pool
    if places is None:
        return
    scores = request.return_logprob and request.token_ids_logprob
    if not (scores and request.logprob_start_len == request.sampling_params.max_new_tokens == 0):
        raise RequestError(
            "token_indices_to_pool: needs return_logprob, token_ids_logprob, logprob_start_len 0 "
            "and max_new_tokens 0",
            "token_indices_to_pool",
        )
    if not places or not 0 <= min(places) <= max(places) < len(request.input_ids or ()):
        raise RequestError(
            "token_indices_to_pool: must be places in the prompt", "token_indices_to_pool"
        )


def _check_ids(field: str, ids: Any, vocab_size: int) -> None:
    lowest, highest = int(np.min(ids)), int(np.max(ids))
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise RequestError(f"{field}: token ids are from 0 to {vocab_size - 1}, not {wrong}", field)


def _check_custom_params(params: Any) -> None:
    try:
        msgspec.convert(params, dict[str, CustomParamValue])
    except msgspec.ValidationError as error:
        raise RequestError(f"custom_params: {error}", "custom_params") from None
