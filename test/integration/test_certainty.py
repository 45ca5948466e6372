"""Token certainty of requests and programs on the running engine (overlap scheduling is on)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sglang_dynasor import Program
from sglang_dynasor.certaindex import CERTAINTY_GROUP_TOKENS
from support.certainty import (
    LATE_TOKENS,
    LOOPING,
    PRUNED_AT_ONCE,
    WITH_LOGPROBS,
    assert_measured,
    assert_pruned,
)
from support.pool import settled_pool
from support.waiting import wait_until

if TYPE_CHECKING:
    from sglang_dynasor import DynasorEngine

MEASURED = {"token_certainty": True}
GREEDY = {"temperature": 0.0, "max_new_tokens": 40}
SAMPLED = {"temperature": 1.0, "max_new_tokens": 60, "sampling_seed": 3}
PROMPT = "12+34"


def measured_requests(engine: DynasorEngine) -> int:
    state = engine.get_server_info()["internal_states"][0]
    return int(state["measured_requests"])


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SAMPLED,
        {**GREEDY, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {**GREEDY, "stop": ["\n", "0"]},
        {**SAMPLED, "n": 3},
    ],
    ids=["greedy", "sampled", "penalties", "stop", "n"],
)
def test_every_token_is_measured_and_the_tokens_stay_the_same(
    engine: DynasorEngine, params: dict[str, Any]
) -> None:
    plain = engine.generate(PROMPT, sampling_params=params)
    outputs = engine.generate(PROMPT, sampling_params=params, program=MEASURED, **WITH_LOGPROBS)
    many = outputs if isinstance(outputs, list) else [outputs]
    for output, other in zip(many, plain if isinstance(plain, list) else [plain], strict=True):
        assert_measured(output)
        if "n" not in params:  # which of the n is which is a race upstream
            assert output["output_ids"] == other["output_ids"]


def test_greedy_requests_also_have_their_mean_log_probability(engine: DynasorEngine) -> None:
    output = engine.generate(PROMPT, sampling_params=GREEDY, program=MEASURED, **WITH_LOGPROBS)
    meta = output["meta_info"]
    chosen = [logprob for logprob, *_ in meta["output_token_logprobs"]]
    summary = meta["dynasor"]["certainty"]
    assert summary["logprob"] == pytest.approx(sum(chosen) / len(chosen), abs=1e-4)


def test_in_one_batch_only_those_that_asked_are_told(engine: DynasorEngine) -> None:
    prompts = [f"{10 + i}+{20 + i}" for i in range(12)]
    fields = [MEASURED if i % 3 == 0 else {"program_id": f"p{i}"} for i in range(12)]
    params = [{**SAMPLED, "custom_params": {"dynasor": item}} for item in fields]
    params[1] = dict(SAMPLED)
    outputs = engine.generate(prompts, sampling_params=params, **WITH_LOGPROBS)
    for index, output in enumerate(outputs):
        meta = output["meta_info"]
        if index % 3 == 0:
            assert_measured(output)
        elif index == 1:
            assert "dynasor" not in meta
        else:
            assert set(meta["dynasor"]) == {"program_id", "algorithm", "mode"}
        assert not {"certainty", "token_certainty", "dynasor_certainty"} & set(meta)


def test_a_grammar_request_is_measured_before_its_mask(engine: DynasorEngine) -> None:
    params = {**GREEDY, "regex": "[0-9]{7}"}
    plain = engine.generate(PROMPT, sampling_params=params)
    output = engine.generate(PROMPT, sampling_params=params, program=MEASURED)
    assert output["output_ids"] == plain["output_ids"]
    report = output["meta_info"]["dynasor"]
    assert report["certainty"]["tokens"] == output["meta_info"]["completion_tokens"]
    # Behind the mask at most ten characters would be left, and the end of the text alone at last.
    assert min(report["token_certainty"]["confidence"]) > 0
    assert max(report["token_certainty"]["entropy"]) > 0


def test_a_stream_brings_each_tokens_values_with_it(engine: DynasorEngine) -> None:
    chunks = list(engine.generate(PROMPT, sampling_params=GREEDY, program=MEASURED, stream=True))
    for chunk in chunks:
        meta = chunk["meta_info"]
        values = meta["dynasor"]["token_certainty"]["entropy"]
        assert len(values) == meta["completion_tokens"]
    assert ["certainty" in chunk["meta_info"]["dynasor"] for chunk in chunks] == (
        [False] * (len(chunks) - 1) + [True]
    )


def test_a_program_reports_the_certainty_of_its_branches(engine: DynasorEngine) -> None:
    fields = {"algorithm": "self_consistency", "max_branches": 5, "detail": "branches"}
    program = Program(prompt=PROMPT, sampling_params=SAMPLED, dynasor={**fields, **MEASURED})
    report = engine.run(program).report
    for branch in report["branch_details"]:
        if branch["stop_reason"] == "cancelled":
            continue
        assert branch["certainty"]["tokens"] == branch["tokens"]
        assert len(branch["token_certainty"]["entropy"]) == branch["tokens"]
    answering = [b for b in report["branch_details"] if b["answer"] == report["answer"]]
    assert report["certainty"] == answering[0]["certainty"]
    assert report["token_certainty"] == answering[0]["token_certainty"]
    unasked = engine.run(Program(prompt=PROMPT, sampling_params=SAMPLED, dynasor=fields)).report
    assert not {"certainty", "token_certainty"} & set(unasked)
    assert all("certainty" not in branch for branch in unasked["branch_details"])


def test_no_measured_request_is_left_behind(engine: DynasorEngine) -> None:
    endless = {**SAMPLED, "max_new_tokens": 300, "ignore_eos": True}
    stream = engine.generate(PROMPT, sampling_params=endless, program=MEASURED, stream=True)
    next(iter(stream))

    async def abort_all() -> None:
        engine.tokenizer_manager.abort_request(abort_all=True)

    engine.loop.run_until_complete(abort_all())
    list(stream)
    assert wait_until(lambda: measured_requests(engine) == 0, "aborted requests are forgotten")


def test_a_branch_below_the_bar_is_pruned_with_its_first_group(engine: DynasorEngine) -> None:
    params = {**SAMPLED, "max_new_tokens": 200, "ignore_eos": True}
    program = Program(prompt=PROMPT, sampling_params=params, dynasor=PRUNED_AT_ONCE)
    assert_pruned(engine.run(program).report, CERTAINTY_GROUP_TOKENS)
    settled_pool(engine)
    assert measured_requests(engine) == 0


@pytest.mark.parametrize("mode", ["on", "shadow"])
def test_a_branch_that_repeats_itself_is_stopped_unless_only_shadowed(
    engine: DynasorEngine, mode: str
) -> None:
    fields = {"algorithm": "self_consistency", "max_branches": 3, "stop_loops": True, "mode": mode}
    program = Program(
        prompt=PROMPT, sampling_params=LOOPING, dynasor={**fields, "detail": "branches"}
    )
    details = engine.run(program).report["branch_details"]
    reasons = {item["stop_reason"] for item in details}
    tokens = [item["tokens"] for item in details]
    if mode == "shadow":
        assert (reasons, tokens) == ({"length"}, [300] * 3)
    else:
        assert reasons <= {"loop", "cancelled"} and "loop" in reasons
        assert max(tokens) <= 64 + LATE_TOKENS


def test_the_running_bar_of_a_profile_prunes_after_enough_branches(engine: DynasorEngine) -> None:
    fields = {
        "algorithm": "self_consistency",
        "max_branches": 8,
        "min_branches": 1,
        "grants": "8",
        "branch_rule": "deepconf",
        "keep_top": 0.1,
        "profile": "running-bar",
        "rule": "decided",
        "detail": "branches",
    }
    pruned = []
    for seed in range(6):
        params = {**SAMPLED, "sampling_seed": seed}
        program = Program(prompt="57+68+79", sampling_params=params, dynasor=fields)
        details = engine.run(program).report["branch_details"]
        pruned.append(sum(item["stop_reason"] == "pruned" for item in details))
    assert pruned[0] == 0  # 16 branches must have finished first
    assert sum(pruned[3:]) > 0
