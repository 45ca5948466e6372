"""Which program the requests of a run belong to, on both backends."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sglang as sgl
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint

from sglang_dynasor import lang
from sglang_dynasor.lang.scope import current_scope

pytestmark = pytest.mark.usefixtures("backend")


def fork_and_join(s: Any, question: str) -> None:
    s += question
    s.sync()  # or whether upstream prefills what the forks share depends on timing
    forks = s.fork(3)
    forks += sgl.gen("answer", max_tokens=4)
    forks.join()


vote = lang.function(fork_and_join, max_branches=3, token_certainty=True)
plain_vote = sgl.function(fork_and_join)


@sgl.function
def ask(s: Any, question: str) -> None:
    s += question + sgl.gen("answer", max_tokens=4)


def test_a_run_is_one_program_with_its_forks(recorder: Any) -> None:
    state = vote.run(question="12+34")
    assert state["answer"] == ["ok"] * 3
    assert len(recorder.bodies) == 4  # the shared prompt, and three branches
    assert len(set(recorder.program_ids)) == 1 and None not in recorder.program_ids


def test_requests_carry_the_fields_of_the_function(recorder: Any, fields_of: Any) -> None:
    vote.run(question="12+34")
    fields = [fields_of(body) for body in recorder.generations]
    assert [(f["max_branches"], f["token_certainty"]) for f in fields] == [(3, True)] * 3


def test_two_runs_are_two_programs(recorder: Any) -> None:
    vote.run(question="1")
    vote.run(question="2")
    assert len(set(recorder.program_ids)) == 2


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("generator_style", [False, True])
def test_each_item_of_a_batch_is_a_program(
    recorder: Any, num_threads: int, generator_style: bool
) -> None:
    questions = [{"question": f"q{i}"} for i in range(5)]
    states = vote.run_batch(questions, num_threads=num_threads, generator_style=generator_style)
    assert [state["answer"] for state in states] == [["ok"] * 3] * 5
    ids_of_question: dict[str, set[str]] = {}
    for body, program_id in zip(recorder.bodies, recorder.program_ids, strict=True):
        ids_of_question.setdefault(body["text"], set()).add(program_id)
    assert all(len(ids) == 1 for ids in ids_of_question.values())
    assert len(set.union(*ids_of_question.values())) == 5


def test_a_streamed_run_is_one_program_with_its_forks(recorder: Any) -> None:
    state = vote.run(question="12+34", stream=True)
    "".join(state.text_iter())
    assert state["answer"] == ["ok"] * 3
    assert len(set(recorder.program_ids)) == 1 and None not in recorder.program_ids


def test_a_streamed_variable_arrives(recorder: Any) -> None:
    state = lang.function(ask).run(question="q", stream=True)
    assert "".join(state.text_iter("answer")) == "ok"
    assert recorder.program_ids != [None]


def test_a_scope_names_the_program_of_a_plain_function(recorder: Any) -> None:
    with lang.program(program_id="mine", max_branches=3):
        plain_vote.run(question="12+34")
    assert recorder.program_ids == ["mine"] * 4


def test_a_scope_spans_the_runs_inside_it(recorder: Any) -> None:
    with lang.program() as scope:
        ask.run(question="1").sync()
        states = ask.run_batch([{"question": "2"}, {"question": "3"}], num_threads=2)
        assert all(state["answer"] == "ok" for state in states)
    assert recorder.program_ids == [scope.program_id] * 3
    assert current_scope() is None


def test_a_scope_in_a_function_covers_the_forks_made_in_it(recorder: Any) -> None:
    @sgl.function
    def two_stages(s: Any) -> None:
        s += "q" + sgl.gen("first", max_tokens=4)
        s.sync()
        with lang.program(program_id="second-stage"):
            forks = s.fork(1)
            forks += sgl.gen("second", max_tokens=4)
            forks.join()

    two_stages.run()
    assert recorder.program_ids == [None, "second-stage"]


def test_a_function_joins_the_scope_around_it(recorder: Any, fields_of: Any) -> None:
    with lang.program(program_id="mine", max_branches=9):
        vote.run(question="12+34")
    fields = [fields_of(body) for body in recorder.generations]
    assert fields == [{"program_id": "mine", "max_branches": 9, "token_certainty": True}] * 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_called_by_a_function_joins_its_program(recorder: Any, stream: bool) -> None:
    @lang.function
    def outer(s: Any) -> None:
        s += "q"
        s["inner"] = ask.run(question="inner")["answer"] + vote.run(question="v")["answer"][0]

    state = outer.run(stream=stream)
    "".join(state.text_iter())
    assert state["inner"] == "okok"
    assert len(set(recorder.program_ids)) == 1 and None not in recorder.program_ids


def test_a_batch_takes_the_fields_but_not_the_id_of_a_scope(recorder: Any, fields_of: Any) -> None:
    with lang.program(max_branches=7) as scope:
        vote.run_batch([{"question": "1"}, {"question": "2"}])
    assert len({*recorder.program_ids, scope.program_id}) == 3
    assert {fields_of(body)["max_branches"] for body in recorder.bodies} == {7}


def test_a_batch_refuses_one_id_for_many_programs(recorder: Any) -> None:
    with (
        pytest.raises(ValueError, match="program_id: names one program"),
        lang.program(program_id="mine"),
    ):
        vote.run_batch([{"question": "1"}, {"question": "2"}])
    assert recorder.bodies == []


def test_programs_of_different_threads_do_not_meet(recorder: Any) -> None:
    def run_in_scope(name: str) -> None:
        with lang.program(program_id=name):
            plain_vote.run(question=name)

    threads = [threading.Thread(target=run_in_scope, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [body["text"] for body in recorder.bodies]
    assert recorder.program_ids == texts and sorted(texts) == ["a"] * 4 + ["b"] * 4


def test_a_bound_function_keeps_its_fields(recorder: Any, fields_of: Any) -> None:
    vote.bind(question="12+34").run()
    assert {body["text"] for body in recorder.bodies} == {"12+34"}
    assert {fields_of(body)["max_branches"] for body in recorder.bodies} == {3}


def test_select_belongs_to_the_program(recorder: Any) -> None:
    @lang.function
    def choose(s: Any) -> None:
        s += "q" + sgl.select("choice", ["yes", "no"])

    assert choose.run()["choice"] in ("yes", "no")
    assert len(recorder.bodies) == 2 and len(set(recorder.program_ids)) == 1
    assert None not in recorder.program_ids


def test_a_program_in_the_engine_is_one_generation(recorder: Any, fields_of: Any) -> None:
    @lang.function(algorithm="self_consistency", max_branches=8)
    def solve(s: Any) -> None:
        s += "q" + sgl.select("choice", ["yes", "no"]) + sgl.gen("first", max_tokens=4)
        s += sgl.gen("second", max_tokens=4)

    state = solve.run()
    first, second = (state.get_meta_info(name)["dynasor"] for name in ("first", "second"))
    assert first["algorithm"] == second["algorithm"] == "self_consistency"
    assert second["program_id"] == f"{first['program_id']}.1"
    others = [body for body in recorder.bodies if body not in recorder.generations]
    assert len(others) == 2 and not any(fields_of(body) for body in others)


def test_a_constant_prefix_is_cached_as_no_part_of_a_program(recorder: Any) -> None:
    @lang.function
    def long_prompt(s: Any, question: str) -> None:
        s += "shared " * 20
        s += question + sgl.gen("answer", max_tokens=4)

    long_prompt.run_batch([{"question": "1"}, {"question": "2"}])
    assert recorder.bodies[0]["text"] == "shared " * 20 and recorder.program_ids[0] is None
    assert len(set(recorder.program_ids)) == 3


def test_ending_a_scope_asks_the_engine_to_end_the_program(recorder: Any) -> None:
    with lang.program(program_id="mine") as scope:
        ask.run(question="1").sync()
        assert recorder.ended == []
        scope.end()
    assert recorder.ended == ["mine"]


def test_leaving_a_scope_with_an_exception_ends_the_program(recorder: Any) -> None:
    with pytest.raises(KeyboardInterrupt), lang.program(program_id="mine"):
        ask.run(question="1").sync()
        raise KeyboardInterrupt
    assert recorder.ended == ["mine"]


def test_outside_a_scope_http_requests_are_upstreams(url: str, recorder: Any) -> None:
    @sgl.function
    def everything(s: Any) -> None:
        s += sgl.user("q") + sgl.assistant(sgl.gen("n", dtype=int, max_tokens=4))
        s += sgl.select("choice", ["yes", "no"])
        s.sync()
        forks = s.fork(2)
        forks += sgl.gen("a", max_tokens=4, return_logprob=True)
        forks.join()

    for backend in (RuntimeEndpoint(url), lang.DynasorEndpoint(url)):
        everything.run(backend=backend).sync()
    half = len(recorder.bodies) // 2
    assert half == 6 and recorder.bodies[:half] == recorder.bodies[half:]


def test_the_embedded_models_turns_are_those_of_its_tokenizer() -> None:
    from sglang.lang.chat_template import get_chat_template_by_model_path
    from transformers import AutoTokenizer

    from sglang_dynasor.models import default_model_path

    turns = [("user", "1+2"), ("assistant", "3"), ("user", "4+5")]
    messages = [{"role": role, "content": content} for role, content in turns]
    template = get_chat_template_by_model_path(str(default_model_path()))
    tokenizer = AutoTokenizer.from_pretrained(default_model_path())
    assert template.get_prompt(messages) == tokenizer.apply_chat_template(messages, tokenize=False)
