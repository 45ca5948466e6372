"""The offline engine's loop, shared by the threads of lang states and the engine's own methods."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
import sglang as sgl

from sglang_dynasor.lang import EngineBackend, function
from sglang_dynasor.lang.backends import CARRIER


@function
def ask(s: Any, question: str) -> None:
    s += question + sgl.gen("answer", max_tokens=4)


def test_the_loop_is_the_engines_again_between_runs(fake_engine: Any, installed: Any) -> None:
    backend = EngineBackend(fake_engine)
    for _ in range(3):
        assert ask.run(question="q", backend=backend)["answer"] == "ok"
        assert not fake_engine.loop.is_running()
        assert fake_engine.loop.run_until_complete(asyncio.sleep(0, "own call")) == "own call"


def test_many_states_share_the_loop(fake_engine: Any, installed: Any) -> None:
    backend = EngineBackend(fake_engine)
    questions = [{"question": str(i)} for i in range(50)]
    states = ask.run_batch(questions, backend=backend, num_threads=16)
    assert [state["answer"] for state in states] == ["ok"] * 50


def test_a_run_while_the_engine_is_busy_is_refused(fake_engine: Any, installed: Any) -> None:
    backend = EngineBackend(fake_engine)
    started = threading.Event()
    release = asyncio.Event()

    async def long_call() -> None:
        started.set()
        await release.wait()

    thread = threading.Thread(target=fake_engine.loop.run_until_complete, args=(long_call(),))
    thread.start()
    started.wait()
    try:
        with pytest.raises(RuntimeError, match="busy with another call"):
            ask.run(question="q", backend=backend)
    finally:
        fake_engine.loop.call_soon_threadsafe(release.set)
        thread.join()


def test_signals_reach_the_manager_whichever_thread_runs_the_loop(
    fake_engine: Any, installed: dict[int, Any]
) -> None:
    EngineBackend(fake_engine)
    assert installed == {signal.SIGTERM: 15, signal.SIGQUIT: 3}


def test_bodies_are_those_of_the_http_backend(
    fake_engine: Any, installed: Any, url: str, recorder: Any
) -> None:
    @sgl.function
    def everything(s: Any) -> None:
        s += "q" + sgl.gen("n", dtype=int, max_tokens=4, return_logprob=True)
        s += sgl.select("choice", ["yes", "no"])
        s.sync()  # or whether upstream prefills what the forks share depends on timing
        forks = s.fork(2)
        forks += sgl.gen("a", max_tokens=4, regex="[a-z]+", stop="\n")
        forks.join()

    everything.run(backend=sgl.RuntimeEndpoint(url)).sync()
    half = len(recorder.bodies)
    everything.run(backend=EngineBackend(fake_engine)).sync()
    http, offline = recorder.bodies[:half], recorder.bodies[half:]
    assert half == 6
    for ours, theirs in zip(offline, http, strict=True):
        assert {name: ours.get(name) for name in theirs} == theirs


def test_the_carrier_is_the_servers() -> None:
    from sglang_dynasor.managers.program_messages import CARRIER as SERVERS

    assert CARRIER == SERVERS


def test_importing_it_leaves_the_server_side_alone() -> None:
    code = (
        "import sys, sglang_dynasor.lang; sys.exit('sglang.srt.managers.io_struct' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)
