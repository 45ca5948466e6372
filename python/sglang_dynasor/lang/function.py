"""`function`: sgl.function whose every run is one program.

Upstream: `sglang/lang/ir.py`, `SglFunction`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from sglang.lang.global_config import global_config
from sglang.lang.ir import SglFunction

from sglang_dynasor.lang.backends import ProgramBackend
from sglang_dynasor.lang.scope import EachRun, ProgramScope, current_scope, entered, running


class ProgramFunction(SglFunction):
    """An sgl.function; each `run` and each item of a `run_batch` is one program.

    Inside `program(...)`, or called from another such function, `run` joins the program around it;
    `run_batch` still makes one program per item. The fields of the program around it win.
    A request that fails raises from `run` and `run_batch`, also when a fork sent it.
    """

    def __init__(
        self,
        body: Callable[..., Any],
        fields: dict[str, Any],
        bind_arguments: dict[str, Any] | None = None,
    ) -> None:
        """Raises ValueError for a malformed field, and for `program_id`: it names one run."""
        super().__init__(body, bind_arguments=bind_arguments)
        if fields.get("program_id") is not None:
            raise ValueError("program_id: names one run; use `with program(program_id=...)` there")
        self.fields = ProgramScope(fields).fields
        self.body = body
        self.func = self._run_body  # what upstream calls with each run's state

    def bind(self, **kwargs: Any) -> ProgramFunction:
        plain = SglFunction(self.body, bind_arguments=self.bind_arguments)
        return ProgramFunction(self.body, self.fields, plain.bind(**kwargs).bind_arguments)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """`SglFunction.run`, as one program.

        Raises ValueError for a backend that carries no programs, and for `stream` with a program
        that runs in the engine.
        """
        _check_backend(kwargs.get("backend"))
        enclosing = current_scope()
        scope = enclosing.joined(self.fields) if enclosing else ProgramScope(self.fields)
        if kwargs.get("stream") and scope.runs_in_engine:
            raise ValueError("stream: not supported together with dynasor.algorithm")
        with entered(scope):
            return super().run(*args, **kwargs)

    def run_batch(self, batch_kwargs: Sequence[Any], **kwargs: Any) -> Any:
        """`SglFunction.run_batch`, one program per item.

        Raises ValueError for a backend that carries no programs, and inside a scope whose
        `program_id` was given: it names one program.
        """
        _check_backend(kwargs.get("backend"))
        enclosing = current_scope()
        fields = {**self.fields, **(enclosing.fields if enclosing else {})}
        if "program_id" in fields and len(batch_kwargs) > 1:
            raise ValueError("program_id: names one program, run_batch has one per item")
        with entered(EachRun(fields)):
            return super().run_batch(batch_kwargs, **kwargs)

    def _run_body(self, s: Any, *args: Any, **kwargs: Any) -> Any:
        executor = getattr(s, "stream_executor", None)
        if executor is None:  # traced for its constant prefix, nothing runs
            return self.body(s, *args, **kwargs)
        # The thread may be one of a pool, or of a stream: functions called here join from it.
        scope = executor.backend.scope
        scope.remember(executor)
        with running(scope):
            result = self.body(s, *args, **kwargs)
            s.sync()
            return result


@overload
def function(func: Callable[..., Any] | SglFunction, **fields: Any) -> ProgramFunction: ...


@overload
def function(
    func: None = None, **fields: Any
) -> Callable[[Callable[..., Any] | SglFunction], ProgramFunction]: ...


def function(
    func: Callable[..., Any] | SglFunction | None = None, **fields: Any
) -> ProgramFunction | Callable[[Callable[..., Any] | SglFunction], ProgramFunction]:
    """Decorate a function `(s, ...)`, or wrap an sgl.function: each run is one program.

    `fields` are those of the request object `dynasor`, without `program_id`.
    """

    def decorate(target: Callable[..., Any] | SglFunction) -> ProgramFunction:
        if not isinstance(target, SglFunction):
            return ProgramFunction(target, fields)
        if isinstance(target, ProgramFunction):
            raise ValueError("function: already a program function")
        return ProgramFunction(target.func, fields, target.bind_arguments)

    return decorate if func is None else decorate(func)


def _check_backend(backend: Any) -> None:
    backend = backend or global_config.default_backend
    if not isinstance(backend, ProgramBackend):
        raise ValueError(
            "backend: a program needs DynasorEndpoint or EngineBackend, "
            f"got {type(backend).__name__}"
        )
