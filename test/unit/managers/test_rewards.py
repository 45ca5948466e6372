"""Rewards: asked for in batches, remembered, and missed without harm where nobody judges."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.managers.reward_homes import HttpHome, VerifierHome, rewards_of
from sglang_dynasor.managers.rewards import MAX_BATCH, REST_S, JudgedPath, Rewards
from sglang_dynasor.programs.client import Judgement, RewardError
from support.virtual_time import run_virtual


class FakeHome:
    """Judges by the last token; the first `failures` questions break."""

    def __init__(self, failures: int = 0, delay_s: float = 0.0) -> None:
        self.batches: list[int] = []
        self.failures = failures
        self.is_closed = False
        self._delay_s = delay_s

    async def judge(self, paths: Sequence[JudgedPath]) -> list[tuple[float, int]]:
        self.batches.append(len(paths))
        await asyncio.sleep(self._delay_s)
        if self.failures:
            self.failures -= 1
            raise OSError("connection refused")
        return [(float(path.ids[-1]), len(path.ids)) for path in paths]

    def wait(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True


def path(*ids: int, text: str = "") -> JudgedPath:
    return JudgedPath(ids, "1+1", text)


def judged(home: FakeHome, *paths: JudgedPath, sigmoid: bool = False) -> list[Judgement]:
    async def ask() -> list[Judgement]:
        rewards = Rewards(home, 10.0, sigmoid)
        return await asyncio.gather(*map(rewards.score, paths))

    return run_virtual(ask())


def test_paths_asked_for_together_are_one_question() -> None:
    home = FakeHome()
    found = judged(home, path(0, 1), path(0, 0), path(1))
    assert home.batches == [3]
    assert found == [Judgement(1.0, 2), Judgement(0.0, 2), Judgement(1.0, 1)]


def test_a_question_is_never_larger_than_a_batch() -> None:
    home = FakeHome(delay_s=1.0)
    judged(home, *(path(i, 1) for i in range(3 * MAX_BATCH)))
    assert sum(home.batches) == 3 * MAX_BATCH
    assert max(home.batches) == MAX_BATCH


def test_the_same_path_is_read_once() -> None:
    home = FakeHome()

    async def ask() -> list[Judgement]:
        rewards = Rewards(home, 10.0, sigmoid=False)
        both = await asyncio.gather(rewards.score(path(5, 1)), rewards.score(path(5, 1)))
        return [*both, await rewards.score(path(5, 1))]

    assert run_virtual(ask()) == [Judgement(1.0, 2), Judgement(1.0), Judgement(1.0)]
    assert home.batches == [1]


def test_a_logit_becomes_a_reward_and_what_is_out_of_range_is_cut() -> None:
    assert judged(FakeHome(), path(0), sigmoid=True)[0].reward == 0.5
    assert judged(FakeHome(), path(7))[0].reward == 1.0
    assert judged(FakeHome(), path(-7))[0].reward == 0.0


def test_a_home_that_stumbles_is_asked_again() -> None:
    home = FakeHome(failures=2)
    assert judged(home, path(1))[0].reward == 1.0
    assert len(home.batches) == 3


def test_a_home_that_is_gone_costs_a_bounded_wait_and_rests_until_it_is_asked_again() -> None:
    home = FakeHome(failures=3)

    async def ask() -> float:
        rewards = Rewards(home, 10.0, sigmoid=False)
        for _ in range(5):
            with pytest.raises(RewardError, match="connection refused"):
                await rewards.score(path(1))
        assert len(home.batches) == 3
        await asyncio.sleep(REST_S + 1)
        return (await rewards.score(path(1))).reward

    assert run_virtual(ask()) == 1.0


def test_a_home_that_is_slow_is_not_waited_for() -> None:
    async def ask() -> float:
        rewards = Rewards(FakeHome(delay_s=60.0), 10.0, sigmoid=False)
        started = asyncio.get_running_loop().time()
        with pytest.raises(RewardError, match="no answer within 10 s"):
            await rewards.score(path(1))
        return asyncio.get_running_loop().time() - started

    assert run_virtual(ask()) == pytest.approx(10.0, abs=0.1)


def test_a_program_that_ends_meanwhile_takes_nothing_from_others() -> None:
    async def ask() -> Judgement:
        rewards = Rewards(FakeHome(delay_s=1.0), 10.0, sigmoid=False)
        gone = asyncio.ensure_future(rewards.score(path(1)))
        stays = asyncio.ensure_future(rewards.score(path(1)))
        await asyncio.sleep(0.5)
        gone.cancel()
        return await stays

    assert run_virtual(ask()) == Judgement(1.0)


class Server:
    """Answers each POST with what `answer` makes of its body: (status, body)."""

    def __init__(self, answer: Any) -> None:
        self.bodies: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append(body)
                status, reply = answer(body)
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(answer: Any) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask_http(url: str, *paths: JudgedPath, takes_text: bool = False) -> list[tuple[float, int]]:
    return asyncio.run(HttpHome(url, takes_text).judge(paths))


def test_sglangs_classify_is_given_tokens(serve: Any) -> None:
    def classify(body: Any) -> Any:
        meta = {"prompt_tokens": 9, "cached_tokens": 4}
        return 200, [{"embedding": [ids[-1] / 2], "meta_info": meta} for ids in body["input_ids"]]

    server = serve(classify)
    assert ask_http(server.url, path(4, 1), path(4, 3)) == [(0.5, 5), (1.5, 5)]
    assert server.bodies == [{"input_ids": [[4, 1], [4, 3]]}]


def test_a_model_with_another_tokenizer_is_given_text(serve: Any) -> None:
    server = serve(lambda body: (200, [{"embedding": [1.0], "meta_info": {}}]))
    ask_http(server.url, path(4, text="=2"), takes_text=True)
    assert server.bodies == [{"text": ["1+1=2"]}]


@pytest.mark.parametrize("route", ["/v1/embeddings", "/pooling"])
def test_other_servers_give_a_vector_or_one_for_each_token(serve: Any, route: str) -> None:
    name, value = ("embedding", [0.25]) if "embed" in route else ("data", [[9.0], [0.25]])
    server = serve(lambda body: (200, {"data": [{name: value}]}))
    assert ask_http(server.url + route, path(4)) == [(0.25, 0)]
    assert server.bodies == [{"model": "default", "input": [[4]]}]


@pytest.mark.parametrize(
    ("status", "reply", "error"),
    [
        (400, {"error": "no"}, RewardError),
        (200, [], RewardError),
        (200, {"data": 1}, RewardError),
        (200, {"data": [{"embedding": []}]}, RewardError),
        (200, {"data": [{"embedding": [float("nan")]}]}, RewardError),
        (503, {}, OSError),
    ],
)
def test_an_answer_that_is_none_is_told_from_a_server_that_is_down(
    serve: Any, status: int, reply: Any, error: type[Exception]
) -> None:
    server = serve(lambda body: (status, reply))
    with pytest.raises(error):
        ask_http(server.url, path(4))


def test_a_server_that_is_not_there_may_come_back() -> None:
    with pytest.raises(OSError, match="ConnectError"):
        ask_http("http://127.0.0.1:9", path(4))


VERIFIER = """
import threading

def is_even(prompt, text):
    if text == "hang":
        threading.Event().wait()
    return 7.0 if text == "wild" else float(len(text) % 2 == 0)
"""


def test_a_verifier_judges_in_a_worker_and_a_hanging_call_costs_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_verifier.py").write_text(VERIFIER)
    monkeypatch.syspath_prepend(tmp_path)

    async def ask() -> tuple[Any, Any]:
        home = VerifierHome("own_verifier:is_even")
        home.wait()
        try:
            found = await home.judge([path(text="ab"), path(text="abc")])
            with pytest.raises(RewardError, match="between 0 and 1"):
                await home.judge([path(text="wild")])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await home.judge([path(text="hang")])
            return found, await home.judge([path(text="ab")])
        finally:
            home.close()

    found, after = asyncio.run(ask())
    assert found == [(1.0, 0), (0.0, 0)]
    assert after == [(1.0, 0)]


def test_a_verifier_that_is_not_there_is_refused_at_start() -> None:
    rewards = rewards_of(DynasorConfig.parse({"reward_verifier": "no_such_module:f"}))
    assert rewards is not None
    with pytest.raises(ValueError, match="reward_verifier"):
        rewards.wait()


def test_without_a_home_there_are_no_rewards() -> None:
    assert rewards_of(DynasorConfig()) is None
