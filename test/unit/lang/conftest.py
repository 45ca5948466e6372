"""A /generate endpoint on loopback and an engine object, both of which only record and echo."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.lang.global_config import global_config

from sglang_dynasor.lang import DynasorEndpoint, EngineBackend
from support.waiting import wait_until_threads_ended

REFUSAL = "dynasor.threshold: refused for a test"


def fields_of(body: dict[str, Any]) -> dict[str, Any] | None:
    """The program fields a /generate body carries."""
    return (body["sampling_params"].get("custom_params") or {}).get("dynasor")


def is_refused(body: dict[str, Any]) -> bool:
    texts = body["text"] if isinstance(body.get("text"), list) else [body.get("text") or ""]
    return body["sampling_params"]["max_new_tokens"] > 0 and any("REFUSE" in t for t in texts)


def answer_to(body: dict[str, Any]) -> Any:
    """What an engine says to any body: `ok`, and the program's fields back."""
    meta_info = {
        "prompt_tokens": 3,
        "input_token_logprobs": [[-0.5, 1, "x"], [-0.5, 2, "y"]],
        "output_token_logprobs": [],
        "dynasor": fields_of(body),
    }
    one = {"text": "ok", "meta_info": meta_info}
    texts = body.get("text")
    return [one for _ in texts] if isinstance(texts, list) else one


@dataclass
class Recorder:
    """Bodies of /generate requests, and ids whose end was asked for."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    @property
    def generations(self) -> list[dict[str, Any]]:
        return [body for body in self.bodies if body["sampling_params"]["max_new_tokens"] > 0]

    @property
    def program_ids(self) -> list[str | None]:
        return [(fields_of(body) or {}).get("program_id") for body in self.bodies]


def _handler(recorder: Recorder) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({"model_path": "fake"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/abort_request":
                recorder.ended.append(body["rid"])
                return self._reply({})
            recorder.bodies.append(body)
            if is_refused(body):
                return self._reply({"error": {"message": REFUSAL}}, 400)
            if not body.get("stream"):
                return self._reply(answer_to(body))
            chunk = json.dumps(answer_to(body))
            return self._send(f"data: {chunk}\n\ndata: [DONE]\n\n".encode())

        def _reply(self, content: Any, status: int = 200) -> None:
            self._send(json.dumps(content).encode(), status)

        def _send(self, content: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture(autouse=True)
def no_test_waits_forever() -> Iterator[None]:
    # A lost wake-up would block the worker threads, which no exception in the test can end.
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def url(recorder: Recorder) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(recorder))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def fake_engine(recorder: Recorder) -> Iterator[Any]:
    async def generate_request(obj: Any, request: None) -> AsyncIterator[Any]:
        body = {name: value for name, value in asdict(obj).items() if value is not None}
        recorder.bodies.append(body)
        await asyncio.sleep(0)
        if is_refused(body):
            raise ValueError(REFUSAL)
        if body["stream"]:
            yield {**answer_to(body), "text": "o"}
        yield answer_to(body)

    async def end_program(key: Any) -> None:
        recorder.ended.append(key.program_id)

    handler = SimpleNamespace(sigterm_handler=15, running_phase_sigquit_handler=3)
    loop = asyncio.new_event_loop()
    before = set(threading.enumerate())
    yield SimpleNamespace(
        loop=loop,
        tokenizer_manager=SimpleNamespace(
            model_path="fake",
            generate_request=generate_request,
            end_program=end_program,
            auto_create_handle_loop=lambda: None,
            signal_handler_class=lambda manager: handler,
        ),
    )
    # Forks of a failed program send what they were about to send, after the caller has its error.
    wait_until_threads_ended(before)
    loop.close()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """Signal handlers that would have been installed in this process."""
    handlers: dict[int, Any] = {}
    monkeypatch.setattr("signal.signal", handlers.__setitem__)
    return handlers


@pytest.fixture(params=["http", "engine"])
def backend(request: pytest.FixtureRequest, installed: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each backend in turn, as the default one."""
    if request.param == "http":
        made: Any = DynasorEndpoint(request.getfixturevalue("url"))
    else:
        made = EngineBackend(request.getfixturevalue("fake_engine"))
    monkeypatch.setattr(global_config, "default_backend", made)
    return made


@pytest.fixture(name="fields_of")
def fields_of_fixture() -> Any:
    return fields_of
