"""What a client may say about a program, and what is refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import ProgramSpec

RUN = {"algorithm": "self_consistency"}

WRONG_TYPES: dict[str, list[Any]] = {
    "program_id": [7, ["a"], {"a": 1}, True],
    "algorithm": [1, None, ["self_consistency"], True],
    "mode": [0, None, False],
    "max_branches": ["4", 4.5, 4.0, True, [4]],
    "min_branches": ["3", 3.5, False],
    "grants": [4, [4, 3], True],
    "draw": [1, True, ["offer"]],
    "rule": [1, ["beta"], {}],
    "threshold": ["0.5", True, [0.5]],
    "answer_format": [None, 1, ["boxed"]],
    "answer_pattern": [1, ["x"], True],
    "max_total_tokens": ["100", 1.5, True],
    "deadline_ms": ["100", 1.5, True],
    "detail": [None, 2, ["votes"]],
}
OUT_OF_RANGE: dict[str, list[Any]] = {
    "program_id": ["", "a" * 65, "a b", "a/b", "a::b", "ä", "a\n"],
    "algorithm": ["", "Self_Consistency", "mcts", "cot"],
    "mode": ["", "ON", "observe"],
    "max_branches": [0, -1, 513, 10**30],
    "min_branches": [0, -1, 513],
    "grants": ["", "4,,3", "0", "513", "a", "4;3", "-1", "9" * 600],
    "draw": ["", "Offer", "all"],
    "rule": ["", "Beta", "unknown", "x" * 65],
    "threshold": [-0.1, 1.1, float("nan"), float("inf")],
    "answer_format": ["", "Boxed", "latex"],
    "max_total_tokens": [0, -1, 2**31 + 1],
    "deadline_ms": [0, -1, 86_400_001],
    "detail": ["", "all"],
}
CONTRADICTIONS = [
    ("rule", {"rule": "beta"}),
    ("threshold", {"threshold": 0.5}),
    ("min_branches", {"min_branches": 2}),
    ("grants", {"grants": "4"}),
    ("grants", {**RUN, "grants": "4", "draw": "offer"}),
    ("max_total_tokens", {**RUN, "max_total_tokens": 5, "draw": "offer"}),
    ("draw", {"draw": "rounds"}),
    ("max_total_tokens", {"max_total_tokens": 5}),
    ("deadline_ms", {"deadline_ms": 5}),
    ("mode", {"mode": "shadow"}),
    ("min_branches", {**RUN, "min_branches": 9, "max_branches": 8}),
    ("threshold", {**RUN, "rule": "decided", "threshold": 0.5}),
    ("answer_pattern", {**RUN, "answer_format": "regex"}),
    ("answer_pattern", {**RUN, "answer_format": "json"}),
    ("answer_pattern", {**RUN, "answer_format": "boxed", "answer_pattern": "x"}),
    ("answer_pattern", {**RUN, "answer_format": "regex", "answer_pattern": "("}),
    ("answer_pattern", {**RUN, "answer_format": "regex", "answer_pattern": "x" * 257}),
    ("answer_pattern", {**RUN, "answer_format": "json", "answer_pattern": "a..b"}),
]


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(field, value, id=f"{field}={str(value)[:20]!r}")
        for field, values in table.items()
        for value in values
    ]


def refusal(fields: object) -> str:
    with pytest.raises(ValueError) as caught:
        ProgramSpec.parse(fields)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


def test_the_tables_of_bad_values_cover_every_field() -> None:
    assert set(WRONG_TYPES) == set(ProgramSpec.model_fields)
    assert set(OUT_OF_RANGE) | {"answer_pattern"} == set(ProgramSpec.model_fields)


@pytest.mark.parametrize(("field", "value"), cases(WRONG_TYPES))
def test_a_wrong_type_is_refused_naming_the_field(field: str, value: Any) -> None:
    assert field in refusal({**RUN, field: value})


@pytest.mark.parametrize(("field", "value"), cases(OUT_OF_RANGE))
def test_a_value_out_of_range_is_refused_naming_the_field(field: str, value: Any) -> None:
    assert field in refusal({**RUN, field: value})


@pytest.mark.parametrize(("field", "fields"), CONTRADICTIONS)
def test_a_contradiction_is_refused_naming_the_field(field: str, fields: dict[str, Any]) -> None:
    assert field in refusal(fields)


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    message = refusal({**RUN, "max_brances": 4})
    assert "max_brances" in message
    assert all(field in message for field in ProgramSpec.model_fields)


@pytest.mark.parametrize("fields", [None, [], "self_consistency", 1, True, [RUN]])
def test_anything_but_an_object_is_refused(fields: object) -> None:
    assert refusal(fields).startswith("dynasor: must be an object")


def test_a_refusal_does_not_repeat_the_value() -> None:
    assert "secret" not in refusal({**RUN, "rule": "secret" * 100})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(ProgramSpec.model_fields)), json_values))
def test_any_json_is_either_a_spec_or_a_value_error(fields: dict[str, Any]) -> None:
    try:
        spec = ProgramSpec.parse(fields)
    except ValueError as error:
        assert str(error).startswith("dynasor")
    else:
        assert spec.resolve(DynasorConfig()).program_id


def test_an_empty_object_is_a_client_driven_program() -> None:
    spec = ProgramSpec.parse({})
    assert not spec.runs_in_engine
    assert spec.mode == "on"


def test_mode_off_keeps_the_engine_from_running_the_program() -> None:
    assert ProgramSpec.parse(RUN).runs_in_engine
    assert ProgramSpec.parse({**RUN, "mode": "shadow"}).runs_in_engine
    assert not ProgramSpec.parse({**RUN, "mode": "off"}).runs_in_engine


def test_resolving_fills_every_default_from_the_server_settings() -> None:
    config = DynasorConfig(rule="beta", threshold=0.9, max_branches=8, min_branches=2, grants="2")
    spec = ProgramSpec.parse(RUN).resolve(config)
    assert (spec.rule, spec.threshold) == ("beta", 0.9)
    assert (spec.max_branches, spec.min_branches, spec.grants) == (8, 2, "2")
    assert re.fullmatch(r"[0-9a-f]{32}", spec.program_id or "")
    assert spec.stop_rule().min_branches == 2  # type: ignore[attr-defined]


def test_minted_ids_differ() -> None:
    spec = ProgramSpec.parse(RUN)
    assert len({spec.resolve(DynasorConfig()).program_id for _ in range(20)}) == 20


def test_resolving_keeps_what_the_client_gave() -> None:
    given_fields = {
        **RUN,
        "program_id": "p-1",
        "rule": "threshold",
        "threshold": 0.25,
        "max_branches": 5,
        "min_branches": 4,
        "grants": "1,4",
    }
    config = DynasorConfig(rule="beta", threshold=0.9, max_branches=9, min_branches=2, grants="3")
    resolved = ProgramSpec.parse(given_fields).resolve(config).model_dump()
    assert {name: resolved[name] for name in given_fields} == given_fields


def test_the_servers_threshold_does_not_leak_into_another_rule() -> None:
    config = DynasorConfig(rule="beta", threshold=0.99)
    assert ProgramSpec.parse({**RUN, "rule": "threshold"}).resolve(config).threshold is None
    spec = ProgramSpec.parse({**RUN, "rule": "decided"}).resolve(config)
    assert spec.stop_rule().name == "decided"


@pytest.mark.parametrize(("field", "other"), [("max_branches", 2), ("min_branches", 40)])
def test_one_given_bound_moves_the_other_default(field: str, other: int) -> None:
    spec = ProgramSpec.parse({**RUN, field: other}).resolve(DynasorConfig())
    assert spec.min_branches is not None and spec.max_branches is not None
    assert getattr(spec, field) == other
    assert spec.min_branches <= spec.max_branches
