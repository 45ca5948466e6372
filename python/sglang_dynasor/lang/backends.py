"""Backends that carry the program of a scope: over HTTP and over an offline engine.

Upstream: `sglang/lang/backend/runtime_endpoint.py`. Each of its methods passes the finished body of
a /generate request to `_add_images`, which is where the program's fields are added.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.choices import ChoicesDecision
from sglang.utils import http_request

from sglang_dynasor.lang.engine_runtime import EngineRuntime
from sglang_dynasor.lang.scope import ProgramScope, current_scope

if TYPE_CHECKING:
    from sglang.srt.entrypoints.engine import Engine

# program_messages.CARRIER; importing that takes the server side of sglang, ten seconds of it.
CARRIER = "dynasor"


class ProgramBackend(BaseBackend):
    """What both backends share: they differ in how a /generate body reaches an engine."""

    scope: ProgramScope | None = None

    @property
    def endpoint(self) -> ProgramBackend:
        """This backend, bound to the program of the run that asks.

        Upstream asks in the calling thread, once per run; in a batch once for all, and then the
        answer once per item. That is the only place where the items of a batch can be told apart.
        """
        scope = current_scope() if self.scope is None else self.scope.for_run()
        if scope is self.scope:
            return self
        bound = copy.copy(self)
        bound.scope = scope
        return bound

    def cancel(self, program_id: str) -> None:
        """End every live request of a program, as far as the server offers it."""
        raise NotImplementedError

    def generate(self, s: Any, sampling_params: Any) -> Any:
        with self._failures(s):
            return super().generate(s, sampling_params)
        return "", {}

    def generate_stream(self, s: Any, sampling_params: Any) -> Iterator[Any]:
        with self._failures(s):
            yield from super().generate_stream(s, sampling_params)

    def select(self, s: Any, *args: Any, **kwargs: Any) -> ChoicesDecision:
        with self._failures(s):
            return super().select(s, *args, **kwargs)
        return ChoicesDecision("", {})

    def commit_lazy_operations(self, s: Any) -> None:
        with self._failures(s):
            super().commit_lazy_operations(s)

    def _scope(self) -> ProgramScope | None:
        # A bound state keeps its program; an unbound one may have been forked inside a scope.
        return self.scope or current_scope()

    def _add_images(self, s: Any, data: dict[str, Any]) -> None:
        super()._add_images(s, data)
        scope = self._scope()
        if scope is None:
            return
        if scope.error is not None:
            raise scope.error  # the program has failed, more requests would be waste
        if data.get("stream") and scope.runs_in_engine:
            raise ValueError("stream: not supported together with dynasor.algorithm")
        params = data["sampling_params"]
        fields = scope.request_fields(self, generates=params["max_new_tokens"] > 0)
        if fields is not None:
            data["sampling_params"] = {**params, "custom_params": {CARRIER: fields}}

    @contextmanager
    def _failures(self, s: Any) -> Iterator[None]:
        """Inside a scope, keep a failure for the caller instead of raising it in the worker.

        Upstream's worker thread ends when it meets one, and what is submitted to the state after
        that waits forever.
        """
        scope = self._scope()
        if scope is not None:
            scope.remember(s)
        try:
            yield
        except Exception as error:
            if scope is None:
                raise
            scope.error = scope.error or error
            if not s.use_thread:
                raise
            s.error_ = error
            s.variables = _Unreadable(s.variables, error)
            s.meta_info = _Unreadable(s.meta_info, error)


class _Unreadable(dict[str, Any]):
    """Variables of a failed state: reading them raises its error, but not in its own worker."""

    def __init__(self, values: dict[str, Any], error: Exception) -> None:
        super().__init__(values)
        self._error = error
        self._worker = threading.get_ident()

    def _check_reader(self) -> None:
        if threading.get_ident() != self._worker:
            raise self._error

    def __getitem__(self, name: str) -> Any:
        self._check_reader()
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._check_reader()
        return super().get(name, default)

    def keys(self) -> Any:
        """What joining forks reads first."""
        self._check_reader()
        return super().keys()


class DynasorEndpoint(ProgramBackend, RuntimeEndpoint):
    """`RuntimeEndpoint` whose requests carry the program they belong to."""

    def cancel(self, program_id: str) -> None:
        response = http_request(
            f"{self.base_url}/abort_request",
            json={"rid": program_id},
            api_key=self.api_key,
            verify=self.verify,
        )
        self._assert_success(response)


class EngineBackend(ProgramBackend, EngineRuntime):
    """A lang backend over an offline DynasorEngine, which stays usable between runs.

    Make it in the thread that made the engine. While a run is in flight, the engine's own
    synchronous methods raise RuntimeError, and so does a run while one of those is.
    """

    def __init__(self, engine: Engine, chat_template_name: str | None = None) -> None:
        super().__init__(engine, chat_template_name)

    def cancel(self, program_id: str) -> None:
        from sglang_dynasor.scheduling import ProgramKey

        key = ProgramKey("", program_id)  # offline calls have no API key, hence the default tenant
        self.loop.call(self.engine.tokenizer_manager.end_program(key))
