"""The offline engine: run, run_batch, and `program=` on ordinary calls."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from sglang_dynasor import Program
from support.pool import settled_pool

if TYPE_CHECKING:
    from sglang_dynasor import DynasorEngine

PARAMS = {"temperature": 1.0, "max_new_tokens": 80}
RUN = {"algorithm": "self_consistency", "max_branches": 6, "detail": "branches"}


def chat(problem: str, **fields: Any) -> Program:
    return Program(
        messages=[{"role": "user", "content": problem}],
        sampling_params={**PARAMS, "sampling_seed": 11},
        dynasor={**RUN, **fields},
    )


def test_a_program_answers_with_the_text_of_the_branch_that_won(engine: DynasorEngine) -> None:
    result = engine.run(chat("12+34", program_id="my-id"))
    report = result.report
    assert report["program_id"] == "my-id"
    assert report["algorithm"] == "self_consistency"
    winners = [b for b in report["branch_details"] if b["answer"] == report["answer"]]
    assert result.text == winners[0]["text"]
    assert result.completion_tokens == sum(b["tokens"] for b in report["branch_details"])
    assert result.finish_reason["type"] in ("stop", "length")


def test_the_same_seed_gives_the_same_program(engine: DynasorEngine) -> None:
    first, second = (engine.run(chat("57+68+79+11")) for _ in range(2))
    for name in ("branch_details", "votes", "answer", "certaindex", "stop_reason"):
        assert first.report[name] == second.report[name]


def test_input_ids_are_taken_as_they_are(engine: DynasorEngine) -> None:
    ids = engine.tokenizer_manager.tokenizer.encode("12+34")
    program = Program(input_ids=ids, sampling_params=PARAMS, dynasor=RUN)
    assert engine.run(program).report["tokens"]["prompt"] == len(ids)


def test_a_batch_keeps_its_order_and_survives_a_bad_program(engine: DynasorEngine) -> None:
    programs = [chat(f"{10 + i}+{20 + i}", program_id=f"b-{i}") for i in range(10)]
    programs[3] = chat("1+1", max_branches=0)
    programs[7] = Program(prompt="1" * 600, sampling_params=PARAMS, dynasor=RUN)
    results = engine.run_batch(programs, progress=True)
    good = [i for i in range(10) if i not in (3, 7)]
    assert [results[i].report["program_id"] for i in good] == [f"b-{i}" for i in good]
    assert all(results[i].error is None for i in good)
    assert "max_branches" in (results[3].error or "")
    assert "600" in (results[7].error or "")
    assert results[3].text == "" and results[3].report == {}
    settled_pool(engine)


def test_an_empty_batch_is_an_empty_list(engine: DynasorEngine) -> None:
    assert engine.run_batch([]) == []


def test_few_branches_in_flight_still_run_every_program(engine: DynasorEngine) -> None:
    results = engine.run_batch([chat("12+34") for _ in range(4)], branches_in_flight=1)
    assert [result.error for result in results] == [None] * 4


def test_generate_with_a_program_runs_it(engine: DynasorEngine) -> None:
    output = engine.generate("12+34", sampling_params=PARAMS, program=RUN)
    report = output["meta_info"]["dynasor"]
    assert report["branches"]["started"] >= 3
    assert output["meta_info"]["completion_tokens"] == (
        report["tokens"]["total"] - report["tokens"]["prompt"]
    )
    assert output["meta_info"]["id"] == report["program_id"]


def test_generate_in_a_client_driven_program_says_which(engine: DynasorEngine) -> None:
    output = engine.generate("12+34", sampling_params=PARAMS, program={"program_id": "mine"})
    assert output["meta_info"]["dynasor"] == {
        "program_id": "mine",
        "algorithm": "none",
        "mode": "on",
    }
    minted = engine.generate("12+34", sampling_params=PARAMS, program={})
    assert len(minted["meta_info"]["dynasor"]["program_id"]) == 32


def test_generate_on_a_batch_puts_every_prompt_into_the_program(engine: DynasorEngine) -> None:
    outputs = engine.generate(
        ["12+34", "56+78"], sampling_params=PARAMS, program={"program_id": "b"}
    )
    assert [item["meta_info"]["dynasor"]["program_id"] for item in outputs] == ["b", "b"]


def test_streaming_in_a_client_driven_program_works(engine: DynasorEngine) -> None:
    chunks = list(
        engine.generate("12+34", sampling_params=PARAMS, program={"program_id": "s"}, stream=True)
    )
    assert len(chunks) > 1
    assert {chunk["meta_info"]["dynasor"]["program_id"] for chunk in chunks} == {"s"}


def test_a_request_without_a_program_reports_none(engine: DynasorEngine) -> None:
    assert "dynasor" not in engine.generate("12+34", sampling_params=PARAMS)["meta_info"]


def test_mode_off_is_an_ordinary_request(engine: DynasorEngine) -> None:
    output = engine.generate("12+34", sampling_params=PARAMS, program={**RUN, "mode": "off"})
    assert "dynasor" not in output["meta_info"]
    assert output["meta_info"]["completion_tokens"] <= 80


@pytest.mark.parametrize(
    ("named", "call"),
    [
        ("max_branches", {"program": {"max_branches": 0}}),
        ("unheard_of", {"program": {"unheard_of": 1}}),
        ("n:", {"program": RUN, "sampling_params": {"n": 2}}),
        ("prompt", {"program": RUN, "prompt": ["1+1", "2+2"]}),
        ("seed", {"program": RUN, "sampling_params": {"sampling_seed": "x"}}),
    ],
)
def test_a_malformed_program_is_refused_by_name(
    engine: DynasorEngine, named: str, call: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=named):
        engine.generate(**{"prompt": "1+1", **call})


def test_a_program_streams_offline_too(engine: DynasorEngine) -> None:
    *_, last = engine.generate("1+1", PARAMS, program=RUN, stream=True)
    assert last["meta_info"]["dynasor"]["algorithm"] == "self_consistency"


def test_sampling_params_may_come_by_position_as_upstream_takes_them(
    engine: DynasorEngine,
) -> None:
    by_name = engine.generate("1+1", sampling_params={**PARAMS, "sampling_seed": 3}, program=RUN)
    by_place = engine.generate("1+1", {**PARAMS, "sampling_seed": 3}, program=RUN)
    assert by_place["text"] == by_name["text"]


def test_an_ordinary_request_in_a_batch_has_its_text_and_its_counts(engine: DynasorEngine) -> None:
    plain = Program(prompt="12+34", sampling_params={"max_new_tokens": 8}, dynasor={})
    (result,) = engine.run_batch([plain])
    assert (result.stop_reason, result.completion_tokens) == ("completed", 8)
    alone = engine.generate("12+34", sampling_params={"max_new_tokens": 8, "temperature": 0})
    assert len(result.text) == len(alone["text"])


@pytest.mark.parametrize("total", [400, 600])
def test_a_batch_keeps_to_its_total_of_tokens(engine: DynasorEngine, total: int) -> None:
    fields = {"max_branches": 16, "min_branches": 3}
    programs = [chat(problem, **fields) for problem in ("1+1", "57+68+79+11", "48+95+67", "2+2")]
    results = engine.run_batch(programs, total_tokens=total)
    assert [result.error for result in results] == [None] * 4
    spent = [result.completion_tokens for result in results]
    assert sum(spent) <= total
    assert max(spent) > total // 4  # what the easy ones saved went to a hard one
    settled_pool(engine)


def test_an_interrupt_ends_the_programs_of_a_batch_and_leaves_the_engine_free(
    engine: DynasorEngine,
) -> None:
    endless = {**PARAMS, "max_new_tokens": 400, "ignore_eos": True}
    programs = [
        Program(prompt="12+34", sampling_params=endless, dynasor={**RUN, "grants": "6"})
        for _ in range(8)
    ]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.run_batch(programs)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    settled_pool(engine)
    assert engine.run(chat("12+34")).report["seconds"] < 5


@pytest.mark.parametrize(
    "given",
    [
        {"input_ids": [24, 999_999]},
        {"input_ids": [[24], [25, -1]]},
        {"prompt": "1+1", "return_logprob": True, "top_logprobs_num": 200},
        {"prompt": "1+1", "session_id": 5},
        {"prompt": ["1+1", "2+2"], "sampling_params": [{}, {"top_k": 2**40}]},
    ],
)
def test_no_offline_request_ends_the_engine(engine: DynasorEngine, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"prompt|logprobs|session_id|top_k"):
        engine.generate(**given)
    assert engine.generate("1+1", sampling_params={"max_new_tokens": 2})["text"]


def test_bad_sampling_parameters_end_the_program_with_upstreams_message(
    engine: DynasorEngine,
) -> None:
    with pytest.raises(ValueError, match="temperature"):
        engine.generate("1+1", sampling_params={"temperature": -1.0}, program=RUN)
    settled_pool(engine)
