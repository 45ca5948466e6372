"""Request objects of released Dynasor clients mean what their clients meant."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_dynasor.errors import RequestError
from sglang_dynasor.programs import ProgramSpec
from sglang_dynasor.programs.dialects import fields_of_adaptive_compute, in_our_words


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({"saving_effort": "mid"}, {"algorithm": "cot", "saving_effort": "mid"}),
        ({"saving_effort": ""}, {"algorithm": "cot", "saving_effort": "none"}),
        (
            {"probe_interval": 32, "certainty_window": 2},
            {"algorithm": "cot", "probe_interval": 32, "window": 2},
        ),
        ({"token_interval": 32}, {"algorithm": "cot", "probe_interval": 32}),
        ({"program_id": "p"}, {"program_id": "p"}),
        ({"algorithm": "cot", "deadline_s": 1.5}, {"algorithm": "cot", "deadline_ms": 1500}),
    ],
)
def test_released_spellings_are_taken(given: dict[str, Any], ours: dict[str, Any]) -> None:
    assert in_our_words(given) == ours
    assert ProgramSpec.parse(given) == ProgramSpec.parse(ours)


@pytest.mark.parametrize(
    "given",
    [
        {"window": 2, "certainty_window": 2},
        {"certainty_window": 2, "window": 2},
        {"deadline_s": 1, "deadline_ms": 1000},
    ],
)
def test_one_field_in_two_spellings_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="give one of them"):
        in_our_words(given)


def test_adaptive_compute_is_a_chain_whose_answer_is_inserted() -> None:
    given = {"mode": "prompting", "probe_text": "So \\boxed{", "certainty_window": 3}
    fields = fields_of_adaptive_compute(given)
    assert ProgramSpec.parse(fields).algorithm == "cot"
    assert (fields["window"], fields["probe_interval"]) == (3, 32)
    assert (fields["on_exit"], fields["probe_text_end"]) == ("insert", "} \\]")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("yes", "adaptive_compute"),
        ({}, "adaptive_compute.probe_text"),
        ({"probe_text": ""}, "adaptive_compute.probe_text"),
        ({"probe_text": "so", "mode": "logprob"}, "adaptive_compute.mode"),
        ({"probe_text": "so", "token_interval": 0}, "adaptive_compute.token_interval"),
        ({"probe_text": "so", "certainty_window": "2"}, "adaptive_compute.certainty_window"),
        ({"probe_text": "so", "windows": 2}, "adaptive_compute.windows"),
    ],
)
def test_malformed_adaptive_compute_is_refused_by_name(given: Any, named: str) -> None:
    with pytest.raises(RequestError) as caught:
        fields_of_adaptive_compute(given)
    assert str(caught.value).startswith(named) and caught.value.param == named
