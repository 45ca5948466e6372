"""What may not reach the scheduler process, and what must still pass."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.io_struct import GenerateReqInput, TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.edge_checks import (
    MAX_SAMPLES,
    check_embeddings,
    check_samples,
    check_tokenized,
    names_program,
)

VOCABULARY = 104
SCORING = {  # as upstream's scoring reads places of a prompt
    "token_indices_to_pool": [0, 1],
    "return_logprob": True,
    "token_ids_logprob": [1],
    "logprob_start_len": 0,
    "sampling_params": {"max_new_tokens": 0},
}


def tokenized(ids: list[int] | None = None, **fields: Any) -> TokenizedGenerateReqInput:
    params = SamplingParams(**fields.get("sampling_params", {}))
    params.normalize(SimpleNamespace())  # a tokenizer that nothing here asks
    request: dict[str, Any] = {
        "rid": "r",
        "input_text": None,
        "input_ids": array("q", [24, 25] if ids is None else ids),
        "input_embeds": None,
        "mm_inputs": None,
        "token_type_ids": None,
        "return_logprob": False,
        "logprob_start_len": -1,
        "top_logprobs_num": 0,
        "token_ids_logprob": None,
        "stream": False,
        **fields,
        "sampling_params": params,
    }
    return TokenizedGenerateReqInput(**request)


@pytest.mark.parametrize(
    ("param", "request_"),
    [
        ("prompt", {"ids": [24, 999_999]}),
        ("prompt", {"ids": [24, VOCABULARY]}),
        ("prompt", {"ids": [-1, 24]}),
        ("prompt", {"ids": [2**62]}),
        ("prompt", {"ids": []}),
        ("logprobs", {"top_logprobs_num": VOCABULARY + 1, "return_logprob": True}),
        ("logprobs", {"top_logprobs_num": 200}),  # a neighbour in the batch may ask for some
        ("logprobs", {"top_logprobs_num": -1}),
        ("logprob_start_len", {"logprob_start_len": -5, "return_logprob": True}),
        ("top_k", {"sampling_params": {"top_k": 2**31}}),
        ("stop_token_ids", {"sampling_params": {"stop_token_ids": [999], "min_new_tokens": 1}}),
        ("stop_token_ids", {"sampling_params": {"stop_token_ids": [-1], "min_new_tokens": 1}}),
        ("token_indices_to_pool", {**SCORING, "token_indices_to_pool": [2]}),
        ("token_indices_to_pool", {**SCORING, "token_indices_to_pool": [-1, 0]}),
        ("token_indices_to_pool", {**SCORING, "token_indices_to_pool": []}),
        ("token_indices_to_pool", {**SCORING, "logprob_start_len": -1}),  # part may be cached
        ("token_indices_to_pool", {**SCORING, "token_ids_logprob": None}),
        ("token_indices_to_pool", {**SCORING, "return_logprob": False}),
        ("token_indices_to_pool", {**SCORING, "sampling_params": {"max_new_tokens": 4}}),
        ("custom_params", {"sampling_params": {"custom_params": {"a": {"b": {"c": 1}}}}}),
        ("positional_embed_overrides", {"positional_embed_overrides": {"positions": [1]}}),
        ("rid", {"rid": 5}),
        ("session_id", {"session_id": ["a"]}),
        ("sampling_params", {"sampling_params": {"max_new_tokens": 1.5}}),
        (None, {"sampling_params": {"stop_token_ids": [2**65]}}),
    ],
)
def test_what_would_end_the_server_is_refused_by_name(
    param: str | None, request_: dict[str, Any]
) -> None:
    with pytest.raises(RequestError) as caught:
        check_tokenized(tokenized(**request_), VOCABULARY)
    assert (caught.value.param, caught.value.status_code) == (param, 400)
    assert (param or "request") in str(caught.value)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"ids": [0, VOCABULARY - 1]},
        {"top_logprobs_num": VOCABULARY, "return_logprob": True, "logprob_start_len": -1},
        {"logprob_start_len": -5},  # ignored where no log probabilities are asked for
        {"sampling_params": {"top_k": 2**31 - 1}},
        {"sampling_params": {"top_k": -1}},
        # Those of another model's tokenizer never match, and harm nobody.
        {"sampling_params": {"stop_token_ids": [128_009]}},
        {"sampling_params": {"stop_token_ids": [3], "min_new_tokens": 1}},
        {"sampling_params": {"custom_params": {"a": 1, "b": [1.5, None], "c": {"d": "x"}}}},
        SCORING,
        {"ids": [], "input_embeds": [[0.5]]},
        {"ids": [24, 999_999], "mm_inputs": {}},  # media stand as ids of their own
    ],
)
def test_what_upstream_serves_passes_unchanged(request_: dict[str, Any]) -> None:
    request = tokenized(**request_)
    request.time_stats = object()  # not the client's, and wrapped only when it is sent
    times = request.time_stats
    check_tokenized(request, VOCABULARY)
    assert request.time_stats is times


@pytest.mark.parametrize(
    ("refused", "rows", "takes_bfloat16"),
    [
        (False, None, False),
        (False, [[0.5] * 4] * 3, True),
        (True, [[0.5] * 4] * 3, False),
        (True, [[0.5] * 4, [0.5] * 3], True),
        (True, [[0.5] * 8], True),
    ],
)
def test_embeddings_must_be_of_the_models_size_and_type(
    refused: bool, rows: Any, takes_bfloat16: bool
) -> None:
    request = tokenized([24], input_embeds=rows)
    if not refused:
        check_embeddings(request, 4, takes_bfloat16)
        return
    with pytest.raises(RequestError) as caught:
        check_embeddings(request, 4, takes_bfloat16)
    assert caught.value.param == "input_embeds"


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50))
def test_ids_pass_exactly_where_all_are_in_the_vocabulary(ids: list[int]) -> None:
    good = all(0 <= token < VOCABULARY for token in ids)
    try:
        check_tokenized(tokenized(ids), VOCABULARY)
    except RequestError:
        assert not good
    else:
        assert good


@pytest.mark.parametrize("params", [{"n": MAX_SAMPLES + 1}, [{"n": 1}, {"n": 2**40}]])
def test_more_samples_than_memory_could_hold_are_refused(params: Any) -> None:
    with pytest.raises(RequestError, match="n: must be at most") as caught:
        check_samples(GenerateReqInput(text="1", sampling_params=params))
    assert caught.value.param == "n"


@pytest.mark.parametrize("params", [None, {}, {"n": MAX_SAMPLES}, {"n": None}, [{"n": 2}, {}]])
def test_ordinary_numbers_of_samples_pass(params: Any) -> None:
    check_samples(GenerateReqInput(text="1", sampling_params=params))


def http(body: bytes | None) -> Any:
    return SimpleNamespace() if body is None else SimpleNamespace(_body=body)


@pytest.mark.parametrize(
    ("named", "params", "body"),
    [
        (False, {}, b'{"text": "12+34"}'),
        (False, None, b""),
        (False, {"custom_params": None}, b'{"sampling_params": {"custom_params": null}}'),
        (True, {}, b'{"text": "1", "dynasor": {}}'),
        (True, {}, b'{"text": "1", "program_id": "p"}'),
        (True, {}, rb'{"text": "1", "dyn\u0061sor": {}}'),
        (True, {"custom_params": {"dynasor": {}}}, b"{}"),
        (True, [{}, {"custom_params": {}}], b"{}"),
        (True, {}, None),  # nobody has read it yet
    ],
)
def test_one_look_at_the_bytes_tells_requests_without_a_program(
    named: bool, params: Any, body: bytes | None
) -> None:
    assert names_program(GenerateReqInput(text="1", sampling_params=params), http(body)) is named


def test_offline_only_the_sampling_parameters_can_name_a_program() -> None:
    assert not names_program(GenerateReqInput(text="dynasor"), None)
