"""sgl.lang programs on the real engine: over HTTP and offline."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import sglang as sgl

from sglang_dynasor import lang
from support.servers import server_state
from support.waiting import wait_until

if TYPE_CHECKING:
    from sglang_dynasor import DynasorEngine

FORKS = 4


@pytest.fixture(params=["http", "engine"])
def backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "http":
        return lang.DynasorEndpoint(request.getfixturevalue("server_url"))
    return lang.EngineBackend(request.getfixturevalue("engine"))


def fork_and_write(s: Any, length: int) -> None:
    """Forks of one question that stop at nothing but their length."""
    s += "12+34+56"
    forks = s.fork(FORKS)
    # Not ignore_eos: sgl.lang sends the chat template's stop strings too, "<eos>" among them.
    forks += sgl.gen("steps", max_tokens=length, min_tokens=length, temperature=1.0)
    s.set_var("texts", [fork["steps"] for fork in forks])
    reports = [fork.get_meta_info("steps")["dynasor"] for fork in forks]
    s.set_var("programs", {report["program_id"] for report in reports})


def test_forks_of_one_run_are_one_program_in_the_scheduler(server_url: str) -> None:
    backend = lang.DynasorEndpoint(server_url)
    done: list[Any] = []

    def run() -> None:
        with lang.program(program_id="forked"):
            state = sgl.function(fork_and_write).run(length=450, backend=backend)
            done.append((state["texts"], state["programs"]))

    def forks_of_one_program() -> bool:
        state = server_state(server_url)
        return (state["programs"], state["requests"]) == (1, FORKS)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(forks_of_one_program, "all forks run as one program")
    backend.cancel("forked")
    thread.join()
    [(texts, programs)] = done
    assert len(texts) == FORKS and programs == {"forked"}
    wait_until(lambda: server_state(server_url)["requests"] == 0, "no request is left")


def test_items_of_a_batch_are_programs_of_their_own(backend: Any) -> None:
    states = lang.function(fork_and_write).run_batch(
        [{"length": 20}] * 3, backend=backend, num_threads=3
    )
    programs = [state["programs"] for state in states]
    assert [len(ids) for ids in programs] == [1, 1, 1]
    assert len(set.union(*programs)) == 3


def test_every_fork_returns_its_own_sample(backend: Any) -> None:
    texts = lang.function(fork_and_write).run(length=40, backend=backend)["texts"]
    assert len(texts) == FORKS and all(texts)


def test_a_generation_can_be_a_whole_program_of_the_engine(backend: Any) -> None:
    @lang.function(algorithm="self_consistency", max_branches=8)
    def solve(s: Any, question: str) -> None:
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("solution", max_tokens=128, temperature=0.7))

    state = solve.run(question="37+58", backend=backend)
    report = state.get_meta_info("solution")["dynasor"]
    assert report["answer"] == "95"
    assert report["stop_reason"] in ("certain", "decided")
    assert report["branches"]["finished"] < 8
    assert r"\boxed{95}" in state["solution"]


def test_the_engine_answers_its_own_calls_after_a_lang_run(engine: DynasorEngine) -> None:
    lang.function(fork_and_write).run(length=10, backend=lang.EngineBackend(engine))
    reply = engine.generate("12+34", {"max_new_tokens": 5})
    assert reply["meta_info"]["completion_tokens"] > 0
