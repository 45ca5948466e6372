"""Forms of a request that clients send: lists of one prompt, n, ids, seeds, temperature 0."""

from __future__ import annotations

from typing import Any

import pytest

from support.openai_calls import post

RUN = {"algorithm": "self_consistency", "answer_format": "number", "max_branches": 3}


@pytest.mark.parametrize("prompt", [["12+34"], [[24, 25, 18, 26, 27]]])
def test_a_list_of_one_prompt_is_one_prompt(server_url: str, prompt: Any) -> None:
    reply = post(server_url, "/v1/completions", prompt=prompt, temperature=1.0, dynasor=RUN)
    assert reply.status_code == 200
    answer = reply.json()
    assert len(answer["choices"]) == 1
    assert answer["usage"]["prompt_tokens"] == 5
    assert answer["sglext"]["dynasor"]["branches"]["started"] == 3


def test_a_list_of_one_prompt_is_answered_with_a_list_of_one(server_url: str) -> None:
    (output,) = post(server_url, "/generate", text=["12+34"], rid="r", dynasor=RUN).json()
    assert output["meta_info"]["id"] == "r"


def test_every_sample_of_every_prompt_is_told_its_own_program(server_url: str) -> None:
    params = [
        {"n": 2, "max_new_tokens": 4, "custom_params": {"dynasor": {"program_id": program}}}
        for program in "ab"
    ]
    reply = post(server_url, "/generate", text=["12+34", "56+78"], sampling_params=params)
    told = [output["meta_info"]["dynasor"]["program_id"] for output in reply.json()]
    assert told == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("route", "fields", "named"),
    [
        ("/v1/completions", {"seed": 2**63}, "seed"),
        ("/v1/completions", {"n": 0}, "n"),
        ("/v1/completions", {"n": 2}, "n"),
        ("/v1/completions", {"prompt": ["1+1", "2+2"]}, "prompt"),
        ("/generate", {"rid": ["a", "b"]}, "rid"),
        ("/generate", {"rid": "/"}, "rid"),
    ],
)
def test_what_no_program_can_take_is_refused_by_name(
    server_url: str, route: str, fields: dict[str, Any], named: str
) -> None:
    reply = post(server_url, route, **fields, dynasor=RUN)
    assert reply.status_code == 400 or "error" in reply.text
    assert f"{named}: " in reply.text


def test_at_temperature_zero_there_is_one_branch_and_the_report_says_why(server_url: str) -> None:
    reply = post(server_url, "/v1/completions", temperature=0, dynasor=RUN)
    report = reply.json()["sglext"]["dynasor"]
    assert (report["branches"]["started"], report["certaindex"]) == (1, 0.0)
    assert "temperature 0" in report["inactive"]["max_branches"]
