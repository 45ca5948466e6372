"""A chain of thought as a pure program: exits, natural ends, what it was writing, shadow."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import (
    Aborted,
    Cancel,
    Expired,
    Failed,
    Finished,
    Probed,
    ProgramRun,
    ProgramSpec,
    Regrouped,
    Start,
    Trimmed,
    Watch,
    build_report,
)
from sglang_dynasor.programs.params import RequestTraits
from sglang_dynasor.programs.thought import PLAIN_PROBE_TEXT, is_thinking, may_be_cut
from support.fake_nodes import FakeNodes, FakeSample, run_fake
from support.virtual_time import run_virtual

THINKING = RequestTraits(opens_thought=True)
OWN_RULE = {"probe_interval": 10, "window": 3}
THOUGHT = "so 1+1 is 2, wait"


def resolved(traits: RequestTraits = THINKING, **fields: Any) -> Any:
    given = {"algorithm": "cot", **OWN_RULE, **fields}
    return ProgramSpec.parse(given).resolve(DynasorConfig(), traits)


def begun(traits: RequestTraits = THINKING, **fields: Any) -> Any:
    program = resolved(traits, **fields).build()
    program.start()
    return program


def probed(program: Any, answers: str, node: str = "0") -> Any:
    """What follows the last of these probes, one each 10 tokens; "-" answers nothing."""
    step: Any = ()
    for index, letter in enumerate(answers):
        answer = letter.strip("-").lower()
        event = Probed(node, 10 * (index + 1), answer, answer, letter.isupper())
        step = program.on([event])
    return step


def cut(text: str = THOUGHT, node: str = "0", n_tokens: int = 32) -> Finished:
    return Finished(node, text, n_tokens, "cut")


def ended(text: str, node: str = "0", answer: str = "", **fields: Any) -> Finished:
    return Finished(node, text, 50, fields.pop("stop", "completed"), answer, answer, **fields)


def test_a_chain_starts_as_one_watched_node() -> None:
    _, start, watch = resolved().build().start()
    assert start == Start("0", kind="thought")
    assert watch == Watch("0", 10, "</think>\n\n\\boxed{", 20)


def test_a_chain_without_a_thought_is_asked_with_the_papers_sentence() -> None:
    *_, watch = resolved(RequestTraits()).build().start()
    assert watch.text == PLAIN_PROBE_TEXT


@pytest.mark.parametrize(
    ("answers", "cuts"),
    [("aa", False), ("aaa", True), ("aba", False), ("---", False), ("aAa", False), ("baaa", True)],
)
def test_equal_answers_cut_the_chain(answers: str, cuts: bool) -> None:
    step = probed(begun(), answers)
    assert list(step) == ([Cancel(("0",), keep_kv=True)] if cuts else [])


def test_the_model_closes_its_thought_and_answers() -> None:
    program = begun()
    probed(program, "aaa")
    (start,) = program.on([cut()])
    assert (start.parent, start.suffix, start.kind) == ("0", "</think>", "answer")
    outcome = program.on([ended(f"{THOUGHT}</think>\\boxed{{a}}", "1", "a")])
    assert (outcome.stop_reason, outcome.answer, outcome.node) == ("certain", "a", "1")
    assert (outcome.certaindex, outcome.rounds, outcome.closing) == (1.0, 3, "")


def test_what_the_probes_agreed_on_is_inserted_where_that_is_asked_for() -> None:
    program = begun(on_exit="insert")
    probed(program, "aaa")
    outcome = program.on([cut()])
    assert (outcome.stop_reason, outcome.answer, outcome.node) == ("certain", "a", "0")
    assert outcome.closing == "</think>\n\n\\boxed{a}"


def test_an_inserted_answer_closes_the_thought_whatever_the_probe_text() -> None:
    program = begun(on_exit="insert", probe_text="So: \\boxed{", probe_text_end="} \\]")
    probed(program, "aaa")
    assert program.on([cut()]).closing == "</think>So: \\boxed{a} \\]"


def test_a_model_that_answers_nothing_after_an_exit_has_the_probes_answer() -> None:
    program = begun()
    probed(program, "aaa")
    program.on([cut()])
    outcome = program.on([ended(f"{THOUGHT}</think>hm", "1")])
    assert (outcome.stop_reason, outcome.answer) == ("certain", "a")


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("```python\nprint(", "1)\n``` so"),
        ("<tool_call>{", "}</tool_call>"),
        ("caf\ufffd", "e"),
        ("[TOOL_CALLS] [{", "}][/TOOL_CALLS]"),
    ],
)
def test_nothing_is_cut_inside_code_a_tool_call_or_a_character(text: str, rest: str) -> None:
    assert not may_be_cut(text)
    program = begun()
    probed(program, "aaa")
    start, watch = program.on([cut(text)])
    assert start == Start("1", "0", kind="thought")
    assert watch.node == "1"
    assert probed(program, "a", "1") == [Cancel(("1",), keep_kv=True)]
    (answer,) = program.on([cut(f"{text}{rest}", "1")])
    assert (answer.parent, answer.kind) == ("1", "answer")


def test_a_thought_that_has_closed_meanwhile_goes_on_as_it_was() -> None:
    program = begun()
    probed(program, "aaa")
    (start,) = program.on([cut(f"{THOUGHT}</think>\\boxe")])
    assert (start.parent, start.suffix) == ("0", "")
    outcome = program.on([ended(f"{THOUGHT}</think>\\boxed{{b}}", "1", "b")])
    assert (outcome.stop_reason, outcome.answer) == ("completed", "b")


@pytest.mark.parametrize(
    ("event", "stop_reason"),
    [
        (ended(f"{THOUGHT}</think>\\boxed{{b}}", answer="b"), "completed"),
        (ended(THOUGHT, matched_stop="END"), "completed"),
        (ended(THOUGHT, stop="length"), "completed"),
    ],
)
def test_a_natural_end_wins(event: Finished, stop_reason: str) -> None:
    program = begun()
    probed(program, "aa")
    outcome = program.on([event])
    assert (outcome.stop_reason, outcome.node) == (stop_reason, "0")


def test_an_end_inside_the_thought_still_yields_an_answer() -> None:
    (start,) = begun().on([ended(THOUGHT)])
    assert (start.parent, start.suffix) == ("0", "</think>")


def test_a_thought_that_has_spent_its_tokens_has_to_answer() -> None:
    program = resolved(max_thinking_tokens=50).build()
    _, start, _ = program.start()
    assert start.max_tokens == 50
    (answer,) = program.on([ended(THOUGHT, stop="length")])
    assert answer.kind == "answer"
    assert program.on([ended("</think>\\boxed{a}", "1", "a")]).stop_reason == "budget"


@pytest.mark.parametrize(("cap", "thinking", "limit"), [(40, 60, 40), (60, 40, 40), (40, None, 40)])
def test_the_tighter_limit_holds(cap: int, thinking: int | None, limit: int) -> None:
    fields = {} if thinking is None else {"max_thinking_tokens": thinking}
    _, start, _ = resolved(max_total_tokens=cap, **fields).build().start()
    assert start.max_tokens == limit


def test_the_programs_own_cap_leaves_no_more_for_the_answer_than_there_is() -> None:
    program = begun(max_total_tokens=40)
    probed(program, "aaa")
    (start,) = program.on([cut(n_tokens=32)])
    assert start.max_tokens == 8
    spent = begun(max_total_tokens=32)
    probed(spent, "aaa")
    assert spent.on([cut(n_tokens=32)]).closing == "</think>\n\n\\boxed{a}"


def test_a_plain_chain_is_closed_with_the_probes_sentence() -> None:
    program = begun(RequestTraits())
    probed(program, "aaa")
    (start,) = program.on([cut("1+1 is")])
    assert start.suffix == PLAIN_PROBE_TEXT


def test_an_answer_to_insert_that_is_missing_is_asked_for() -> None:
    program = begun(on_exit="insert", max_thinking_tokens=50, probe_text="So: \\boxed{")
    (start,) = program.on([ended(THOUGHT, stop="length")])
    assert start.suffix == "</think>So: \\boxed{"


def test_nothing_is_probed_before_the_warm_up() -> None:
    *_, watch = resolved(warmup_tokens=64).build().start()
    assert watch.after == 64


def test_an_answer_that_fails_leaves_that_of_the_probes() -> None:
    program = begun()
    probed(program, "aaa")
    program.on([cut()])
    outcome = program.on([Failed("1", "queue is full")])
    assert (outcome.stop_reason, outcome.answer, outcome.node) == ("certain", "a", "0")
    assert outcome.closing.endswith("\\boxed{a}")


@pytest.mark.parametrize(
    ("event", "stop_reason"), [(Expired(), "deadline"), (Aborted(), "aborted")]
)
def test_the_end_of_time_keeps_what_the_probes_say(event: Any, stop_reason: str) -> None:
    program = begun()
    probed(program, "ab")
    outcome = program.on([event])
    assert (outcome.stop_reason, outcome.answer, outcome.node) == (stop_reason, "b", None)


def test_a_node_that_made_room_starts_again() -> None:
    assert begun().on([Trimmed("0")]) == [Start("0", kind="thought")]


def test_groups_that_are_split_are_split_in_the_window_too() -> None:
    program = begun()
    probed(program, "aa")
    program.on([Regrouped({"0@10": "b"})])
    assert program.on([Probed("0", 30, "a", "a")]) == []


def test_the_interval_grows_with_the_chain() -> None:
    program = begun(interval_growth=0.5)
    assert program.on([Probed("0", 100, "a", "a")])[0].every == 50


@pytest.mark.parametrize("fields", [{"probe_interval": None}, {"saving_effort": "crazy"}])
def test_without_a_promise_nothing_is_probed_and_the_report_says_so(fields: Any) -> None:
    given = {"algorithm": "cot", **{name: value for name, value in fields.items() if value}}
    program = ProgramSpec.parse(given).resolve(DynasorConfig(), THINKING).build()
    assert len(program.start()) == 2
    outcome = program.on([ended("</think>\\boxed{a}", answer="a")])
    assert "no calibrated profile" in outcome.inactive["saving_effort"]


def test_figures_of_the_server_are_taken_where_the_client_names_none() -> None:
    config = DynasorConfig(probe_interval=32, window=4)
    program = ProgramSpec.parse({"algorithm": "cot"}).resolve(config, THINKING)
    assert (program.settings.rule.window, program.settings.probe_interval) == (4, 32)
    assert "server" in program.settings.inactive["promise"]
    asked = ProgramSpec.parse({"algorithm": "cot", "saving_effort": "mid"})
    assert asked.resolve(config, THINKING).settings.rule is None


def test_a_clients_own_figures_promise_nothing_and_a_grammar_stops_nothing() -> None:
    outcome = begun().on([ended("</think>\\boxed{a}", answer="a")])
    assert "nothing is promised" in outcome.inactive["promise"]
    bound = resolved(RequestTraits(grammar=True)).build()
    assert len(bound.start()) == 2
    assert "grammar" in bound.on([ended("{}", answer="")]).inactive["probes"]


def test_shadow_mode_notes_the_exit_and_runs_on() -> None:
    program = begun(mode="shadow")
    assert probed(program, "aaa") == [Watch("0", 0)]
    outcome = program.on([ended("</think>\\boxed{b}", answer="b")])
    assert (outcome.stop_reason, outcome.answer) == ("completed", "b")
    shadow = outcome.shadow
    assert (shadow.stop_reason, shadow.answer, shadow.tokens) == ("certain", "a", 30)


@pytest.mark.parametrize(
    ("text", "opens", "thinking"),
    [
        ("so", True, True),
        ("so", False, False),
        ("<think>so", False, True),
        ("<think>so</think>", False, False),
        ("so</think>", True, False),
    ],
)
def test_a_thought_is_open_until_it_is_closed(text: str, opens: bool, thinking: bool) -> None:
    assert is_thinking(text, opens, "</think>") is thinking


def live(*samples: FakeSample, **fields: Any) -> ProgramRun:
    async def scenario() -> ProgramRun:
        nodes = {str(index): sample for index, sample in enumerate(samples)}
        return await run_fake(resolved(**fields).build(), FakeNodes(nodes))

    return run_virtual(scenario())


def test_a_live_chain_is_probed_cut_and_answers() -> None:
    thought = FakeSample("", 500, text=THOUGHT, probes={35: "7"})
    answer = FakeSample("7", 9, text=f"{THOUGHT}</think>\\boxed{{7}}")
    result = live(thought, answer)
    assert (result.outcome.stop_reason, result.outcome.answer) == ("certain", "7")
    assert result.outcome.rounds == 6  # at 10, 20, 30: nothing yet
    assert 60 <= result.finished["0"].n_tokens <= 62
    assert result.sequential_tokens == result.finished["0"].n_tokens + 9
    report = build_report(resolved(), result, 5, 1.0)
    assert report["branches"] == {
        "max": 1,
        "started": 1,
        "finished": 1,
        "cancelled": 0,
        "failed": 0,
    }
    assert report["tokens"]["probe"] == 6


def test_a_probe_that_the_chains_own_answer_has_overtaken_counts_for_nothing() -> None:
    program = begun(window=2)
    assert not program.on([Probed("0", 30, "7", "7")])
    assert not program.on([Probed("0", 20, "7", "7")])
    assert program.on([Probed("0", 40, "7", "7")]) == [Cancel(("0",), keep_kv=True)]
