"""What a client may say about a program, and what is refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.allocation import (
    AdaptiveGrants,
    BetaRule,
    BranchRule,
    DecidedRule,
    DeepConfRule,
    FixedGrants,
    ThresholdRule,
)
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.errors import RequestError
from sglang_dynasor.programs import (
    ALGORITHMS,
    ProgramSpec,
    ResolvedProgram,
    SelfConsistencySettings,
)
from sglang_dynasor.programs.spec import known_fields

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
    "vote": [1, True, ["weighted"]],
    "branch_rule": [1, True, ["deepconf"]],
    "keep_top": ["0.5", True, [0.5]],
    "confidence_bar": ["5", True, [5.0]],
    "profile": [1, True, ["maths"]],
    "pace": ["5", True, [5.0]],
    "probe_interval": ["64", 64.5, True],
    "probe_text": [1, True, ["so"]],
    "stop_loops": [1, "true", [True]],
    "entropy_floor": ["0.1", True, [0.1]],
    "token_certainty": [1, "true", None],
    "detail": [None, 2, ["votes"]],
}
OUT_OF_RANGE: dict[str, list[Any]] = {
    "program_id": ["", "a" * 65, "a b", "a/b", "a::b", "ä", "a\n"],
    "algorithm": ["", "Self_Consistency", "MCTS", "tot"],
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
    "vote": ["", "Weighted", "best"],
    "branch_rule": ["", "DeepConf", "threshold"],
    "keep_top": [0.0, 1.0, -0.1, 10.0, float("nan")],
    "confidence_bar": [0.0, -1.0, 1e9, float("inf")],
    "profile": ["", "a" * 65, "a b", "../x"],
    "pace": [0.5, 0.0, -1.0, 513.0, float("nan")],
    "probe_interval": [0, -1, 2**31 + 1],
    "probe_text": ["", "x" * 2001],
    "entropy_floor": [0.0, -0.1, float("nan")],
    "detail": ["", "all"],
}
WRONG_TYPES_OF_A_CHAIN: dict[str, list[Any]] = {
    "saving_effort": [1, True, ["mid"]],
    "interval_growth": ["0.1", True],
    "window": ["3", 3.5, True],
    "tau": ["1", True],
    "warmup_tokens": ["64", 64.5, True],
    "min_confidence": ["0.9", True],
    "probe_text_end": [1, True],
    "on_exit": [1, True],
    "max_thinking_tokens": ["64", 64.5, True],
}
OUT_OF_RANGE_OF_A_CHAIN: dict[str, list[Any]] = {
    "saving_effort": ["medium", "Mid"],
    "interval_growth": [-0.1, 1.1, float("nan")],
    "window": [0, -1, 1001],
    "tau": [0.0, 1.1, -0.5, float("nan")],
    "warmup_tokens": [-1, 2**31 + 1],
    "min_confidence": [-0.1, 1.1, float("nan")],
    "probe_text_end": ["x" * 201],
    "on_exit": ["", "stop"],
    "max_thinking_tokens": [0, -1, 2**31 + 1],
}
# By algorithm: fields that only searches have.
WRONG_TYPES_OF_A_SEARCH: dict[str, dict[str, list[Any]]] = {
    "rebase": {
        "width": ["4", 4.5, True],
        "step_tokens": ["4", 4.5, True],
        "step_stop": [1, True, [";"]],
        "depth": ["4", 4.5, True],
        "balance": ["0.2", True],
        "reward_threshold": ["0.5", True],
        "operating_point": [1, True],
        "vote": [1, True, ["best"]],
    },
    "beam": {"expansion": ["4", 4.5, True]},
    "mcts": {"iterations": ["4", 4.5, True], "exploration": ["1", True]},
}
OUT_OF_RANGE_OF_A_SEARCH: dict[str, dict[str, list[Any]]] = {
    "rebase": {
        "width": [0, -1, 513],
        "step_tokens": [0, -1, 2**31 + 1],
        "step_stop": ["", "x" * 65],
        "depth": [0, 513],
        "balance": [0.0, -1.0, 101.0, float("nan")],
        "reward_threshold": [-0.1, 1.1, float("nan")],
        "operating_point": ["", "asdiv", "x" * 33],
        "vote": ["", "filtered"],
        "min_branches": [0, 513],
        "grants": ["", "4,,3", "0"],
    },
    "beam": {"expansion": [0, 513]},
    "mcts": {"iterations": [0, 513], "exploration": [0.0, -1.0, float("inf")]},
    "best_of_n": {"max_branches": [0, 513]},
}
CONTRADICTIONS = [
    ("pace", {**RUN, "pace": 2.0, "draw": "rounds"}),
    ("pace", {**RUN, "pace": 2.0, "grants": "4"}),
    ("pace", {**RUN, "pace": 2.0, "max_total_tokens": 9}),
    ("probe_interval", {**RUN, "probe_interval": 64, "draw": "rounds"}),
    ("probe_interval", {**RUN, "probe_interval": 64, "vote": "weighted"}),
    ("probe_text", {**RUN, "probe_text": "so"}),
    ("saving_effort", {"saving_effort": "mid", "window": 3}),
    ("interval_growth", {"interval_growth": 0.1}),
    ("window", {**RUN, "window": 3}),
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
    ("vote", {"vote": "weighted"}),
    ("stop_loops", {"stop_loops": True}),
    ("rule", {**RUN, "vote": "weighted", "rule": "beta"}),
    ("rule", {**RUN, "vote": "filtered", "rule": "dynasor"}),
    ("confidence_bar", {**RUN, "branch_rule": "none", "confidence_bar": 5.0}),
    ("keep_top", {**RUN, "branch_rule": "deepconf", "confidence_bar": 5.0, "keep_top": 0.5}),
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
    return refused(fields)[0]


def refused(fields: object) -> tuple[str, str | None]:
    """The message and the field at fault."""
    with pytest.raises(RequestError) as caught:
        ProgramSpec.parse(fields)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    assert caught.value.status_code == 400
    return message, caught.value.param


def test_the_tables_of_bad_values_cover_every_field() -> None:
    types = {*WRONG_TYPES, *WRONG_TYPES_OF_A_CHAIN, *fields_of(WRONG_TYPES_OF_A_SEARCH)}
    assert types == set(known_fields())
    any_value = {"answer_pattern", "stop_loops", "token_certainty"}
    ranges = {*OUT_OF_RANGE, *OUT_OF_RANGE_OF_A_CHAIN, *fields_of(OUT_OF_RANGE_OF_A_SEARCH)}
    assert ranges | any_value == set(known_fields())


def fields_of(table: dict[str, dict[str, list[Any]]]) -> set[str]:
    return {field for fields in table.values() for field in fields}


@pytest.mark.parametrize(
    ("algorithm", "field", "value"),
    [
        pytest.param(algorithm, field, value, id=f"{algorithm}.{field}={str(value)[:12]!r}")
        for table in (WRONG_TYPES_OF_A_SEARCH, OUT_OF_RANGE_OF_A_SEARCH)
        for algorithm, fields in table.items()
        for field, values in fields.items()
        for value in values
    ],
)
def test_a_searchs_field_is_refused_naming_it(algorithm: str, field: str, value: Any) -> None:
    message, param = refused({"algorithm": algorithm, field: value})
    assert message.startswith(f"dynasor.{field}") and param == f"dynasor.{field}"


@pytest.mark.parametrize(
    ("field", "value"), [*cases(WRONG_TYPES_OF_A_CHAIN), *cases(OUT_OF_RANGE_OF_A_CHAIN)]
)
def test_a_chains_field_is_refused_naming_it(field: str, value: Any) -> None:
    others = {"window": 3} if field == "interval_growth" else {}
    message, param = refused({"algorithm": "cot", **others, field: value})
    assert message.startswith(f"dynasor.{field}") and param == f"dynasor.{field}"


@pytest.mark.parametrize(("field", "value"), cases(WRONG_TYPES))
def test_a_wrong_type_is_refused_naming_the_field(field: str, value: Any) -> None:
    message, param = refused({**RUN, field: value})
    assert message.startswith(f"dynasor.{field}") and param == f"dynasor.{field}"


@pytest.mark.parametrize(("field", "value"), cases(OUT_OF_RANGE))
def test_a_value_out_of_range_is_refused_naming_the_field(field: str, value: Any) -> None:
    message, param = refused({**RUN, field: value})
    assert message.startswith(f"dynasor.{field}") and param == f"dynasor.{field}"


@pytest.mark.parametrize(("field", "fields"), CONTRADICTIONS)
def test_a_contradiction_is_refused_naming_the_field(field: str, fields: dict[str, Any]) -> None:
    message, param = refused(fields)
    assert message.startswith(f"dynasor.{field}") and param == f"dynasor.{field}"


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("max_brances", ["max_branches"]),
        ("treshold", ["threshold"]),
        ("certainly_not", []),
        ("xyz", []),
        ("x" * 300, []),
        ("", []),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_known_ones(
    unknown: str, nearest: list[str]
) -> None:
    message = refusal({**RUN, unknown: 4})
    assert unknown[:64] in message
    named = [field for field in known_fields() if field in message.split("did you mean")[-1]]
    assert set(nearest) <= set(named) and len(named) <= 3


def test_a_field_of_another_algorithm_is_refused_naming_those_that_know_it() -> None:
    message, param = refused({"rule": "beta"})
    knowing = "self_consistency, best_of_n, rebase, mcts, beam, dvts"
    assert message == f"dynasor.rule: needs an algorithm that knows it: {knowing}, not none"
    assert param == "dynasor.rule"


def test_several_faults_are_named_each_as_the_request_spells_them() -> None:
    message, param = refused({**RUN, "threshold": "high", "max_branches": 0})
    assert message.count("dynasor.") == 2 and param == "dynasor.max_branches"


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
@given(st.dictionaries(st.sampled_from(sorted(known_fields())), json_values))
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
    program = ProgramSpec.parse(RUN).resolve(config)
    settings = settings_of(program)
    assert settings.rule == BetaRule(0.9, min_branches=2)
    assert (settings.max_branches, settings.min_branches) == (8, 2)
    assert (settings.offers, settings.grants) == (False, FixedGrants((2,)))
    assert re.fullmatch(r"[0-9a-f]{32}", program.program_id)


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
    program = ProgramSpec.parse(given_fields).resolve(config)
    settings = settings_of(program)
    assert (program.program_id, program.algorithm) == ("p-1", "self_consistency")
    assert settings.rule == ThresholdRule(0.25, min_branches=4)
    assert (settings.max_branches, settings.min_branches) == (5, 4)
    assert settings.grants == FixedGrants((1, 4))


def test_the_servers_threshold_does_not_leak_into_another_rule() -> None:
    config = DynasorConfig(rule="beta", threshold=0.99)
    assert resolved(config, rule="threshold").rule == ThresholdRule()
    assert resolved(config, rule="decided").rule == DecidedRule()


@pytest.mark.parametrize(("field", "other"), [("max_branches", 2), ("min_branches", 40)])
def test_one_given_bound_moves_the_other_default(field: str, other: int) -> None:
    settings = resolved(**{field: other})
    assert getattr(settings, field) == other
    assert settings.min_branches <= settings.max_branches


def settings_of(program: ResolvedProgram) -> SelfConsistencySettings:
    assert isinstance(program.settings, SelfConsistencySettings)
    return program.settings


def resolved(config: DynasorConfig | None = None, **fields: Any) -> SelfConsistencySettings:
    return settings_of(ProgramSpec.parse({**RUN, **fields}).resolve(config or DynasorConfig()))


def rule_of(settings: SelfConsistencySettings, branch: int) -> BranchRule | None:
    return settings.rule_of_node(str(branch))


def test_the_first_branches_of_a_program_are_never_pruned() -> None:
    spec = resolved(branch_rule="deepconf", keep_top=0.1, min_branches=2, profile="maths")
    assert [rule_of(spec, index) for index in (0, 1)] == [BranchRule("maths")] * 2
    assert rule_of(spec, 2) == BranchRule("maths", keep_top=0.1)


def test_a_calibrated_bar_gives_way_to_a_share_the_client_names() -> None:
    config = DynasorConfig(branch_rule="deepconf", confidence_bar=7.5, keep_top=0.8)
    assert rule_of(resolved(config), 5) == BranchRule(bar=7.5)
    assert rule_of(resolved(config, keep_top=0.1), 5) == BranchRule(keep_top=0.1)
    assert rule_of(resolved(config, branch_rule="none"), 5) is None
    config = DynasorConfig(branch_rule="deepconf", keep_top=0.8)
    assert rule_of(resolved(config), 5) == BranchRule(keep_top=0.8)
    assert rule_of(resolved(config, confidence_bar=3.0), 5) == BranchRule(bar=3.0)


def test_loops_and_entropy_stop_any_branch_but_none_in_shadow_mode() -> None:
    fields = {"stop_loops": True, "entropy_floor": 0.01}
    assert rule_of(resolved(**fields), 0) == BranchRule(loop=True, entropy_floor=0.01)
    assert rule_of(resolved(mode="shadow", **fields), 0) is None
    shadow = resolved(mode="shadow", branch_rule="deepconf")
    assert rule_of(shadow, 9) == BranchRule()
    assert rule_of(resolved(), 0) is None


@pytest.mark.parametrize("field", ["keep_top", "confidence_bar"])
def test_a_field_that_nothing_would_use_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: needs branch_rule deepconf"):
        resolved(**{field: 0.5})
    resolved(DynasorConfig(branch_rule="deepconf"), **{field: 0.5})


def test_a_weighted_vote_is_stopped_by_consensus() -> None:
    """The default rule judges equal votes: it would let every branch run."""
    config = DynasorConfig(threshold=0.99)
    spec = resolved(config, vote="weighted")
    assert spec.rule == DeepConfRule()
    assert resolved(config, vote="filtered", threshold=0.8).rule == DeepConfRule(0.8)
    assert resolved(DynasorConfig(vote="weighted"), rule="beta").vote == "majority"
    with pytest.raises(ValueError, match="rule: beta judges equal votes"):
        DynasorConfig.parse({"rule": "beta", "vote": "weighted"})


@pytest.mark.parametrize(
    ("fields", "wants"),
    [
        ({}, False),
        (RUN, False),
        ({**RUN, "vote": "weighted"}, True),
        ({**RUN, "branch_rule": "deepconf"}, True),
        ({**RUN, "stop_loops": True}, True),
        ({"token_certainty": True}, True),
        ({**RUN, "vote": "weighted", "mode": "shadow"}, True),
        ({**RUN, "stop_loops": True, "mode": "shadow"}, False),
    ],
)
def test_tokens_are_measured_only_for_who_needs_it(fields: dict[str, Any], wants: bool) -> None:
    assert ProgramSpec.parse(fields).resolve(DynasorConfig()).settings.measured is wants


def test_a_server_that_weighs_votes_measures_no_client_driven_program() -> None:
    spec = ProgramSpec.parse({}).resolve(DynasorConfig(vote="weighted", branch_rule="deepconf"))
    assert not spec.settings.measured


def test_a_client_driven_program_says_how_many_requests_it_sends() -> None:
    program = ProgramSpec.parse({"max_branches": 4}).resolve(DynasorConfig())
    assert program.settings.max_branches == 4
    assert ProgramSpec.parse({}).resolve(DynasorConfig()).settings.max_branches == 0
    with pytest.raises(ValueError, match="driven by its client"):
        program.build()


@pytest.mark.parametrize(
    ("fields", "settings", "offers", "grants"),
    [
        ({}, {}, True, AdaptiveGrants),
        ({"draw": "rounds"}, {}, False, AdaptiveGrants),
        ({"grants": "4"}, {}, False, FixedGrants),
        ({"max_total_tokens": 100}, {}, False, AdaptiveGrants),
        ({}, {"draw": "rounds"}, False, AdaptiveGrants),
        ({"draw": "offer"}, {"grants": "4"}, True, AdaptiveGrants),
        ({"draw": "rounds"}, {"grants": "4"}, False, FixedGrants),
    ],
)
def test_what_the_client_gives_goes_before_the_settings(
    fields: dict[str, Any], settings: dict[str, Any], offers: bool, grants: type
) -> None:
    found = resolved(DynasorConfig.parse(settings), **fields)
    assert (found.offers, type(found.grants)) == (offers, grants)


def test_a_given_id_replaces_the_one_of_the_object() -> None:
    assert ProgramSpec.parse(RUN).with_program_id("p").program_id == "p"
    with pytest.raises(RequestError, match=r"^dynasor\.program_id"):
        ProgramSpec.parse(RUN).with_program_id("a b")


def test_every_field_has_a_description_for_the_readme() -> None:
    for algorithm in ALGORITHMS.values():
        assert all(field.description for field in algorithm.params.model_fields.values())
