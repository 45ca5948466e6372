"""Which program the requests of an sgl.lang run belong to.

A state takes its scope when it is created and its forks inherit it, so a scope covers the runs and
forks started inside it. Upstream starts a state's worker thread in a copy of its creator's context
(`sglang/lang/interpreter.py`, `StreamExecutor`), which is how a context variable gets there.
"""

from __future__ import annotations

import copy
import functools
import itertools
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Protocol

from sglang_dynasor.programs import ProgramSpec


class Canceller(Protocol):
    """A backend that can end a program in the engine behind it."""

    def cancel(self, program_id: str) -> None:
        """End every live request of a program."""
        ...


class ProgramScope:
    """One program: its id, the fields its requests carry, and its first failed request's error."""

    def __init__(self, fields: dict[str, Any]) -> None:
        """Raises ValueError naming a malformed field."""
        self.error: Exception | None = None
        self._sent: set[tuple[Canceller, str]] = set()
        self._executors: dict[str, weakref.ref[Any]] = {}
        self._generations = itertools.count()
        self._set_fields(fields)
        self.program_id: str = self.fields.get("program_id") or uuid.uuid4().hex

    def _set_fields(self, fields: dict[str, Any]) -> None:
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self.runs_in_engine = ProgramSpec.parse(self.fields).runs_in_engine

    def joined(self, fields: dict[str, Any]) -> ProgramScope:
        """This program as a function with `fields` of its own sees it; ours win over those.

        Raises ValueError naming a field that contradicts another.
        """
        scope = copy.copy(self)
        scope._set_fields({**fields, **self.fields})
        return scope

    def for_run(self) -> ProgramScope:
        """The scope of one run on a backend bound to this scope: the same program."""
        return self

    def request_fields(self, backend: Canceller, generates: bool) -> dict[str, Any] | None:
        """Fields of the next request; None for one that is no part of the program.

        A program that runs in the engine is one generation: a second one gets an id of its own,
        and a prefill or `select` beside it is an ordinary request.
        """
        program_id = self.program_id
        if self.runs_in_engine:
            if not generates:
                return None
            index = next(self._generations)
            program_id = f"{program_id}.{index}" if index else program_id
        self._sent.add((backend, program_id))
        return {**self.fields, "program_id": program_id}

    def remember(self, executor: Any) -> None:
        """Know a state's executor and those of its forks, so that their threads can be released."""
        if executor.sid in self._executors:
            return
        self._executors[executor.sid] = weakref.ref(executor)
        if executor.use_thread:
            # Upstream's `end` asks the worker whether it lives. When the collector finds a failed
            # state it may do so inside a thread's start, whose lock that question takes again.
            executor.end = functools.partial(executor.queue.put, None)
        fork = type(executor).fork
        state = weakref.proxy(executor)

        def remembered_fork(*args: Any, **kwargs: Any) -> Any:
            forks = fork(state, *args, **kwargs)
            for each in forks:
                self.remember(each)
            return forks

        executor.fork = remembered_fork

    def release(self) -> None:
        """Let the threads of all states end, once they have done what was submitted to them.

        Forks that nobody joined would keep the process from exiting for as long as something, such
        as a traceback, refers to them.
        """
        for reference in list(self._executors.values()):
            executor = reference()
            if executor is not None:
                executor.end()

    def end(self) -> None:
        """End what still runs: a decided program's other branches return the text they have.

        Over HTTP a server ends the programs it runs itself (`algorithm`), no others.
        """
        for backend, program_id in list(self._sent):
            backend.cancel(program_id)


class EachRun(ProgramScope):
    """The scope of a `run_batch`: every run on a backend bound to it is a program of its own."""

    def for_run(self) -> ProgramScope:
        return ProgramScope(self.fields)


_current: ContextVar[ProgramScope | None] = ContextVar("dynasor_program", default=None)


def current_scope() -> ProgramScope | None:
    """The innermost scope of this context."""
    return _current.get()


@contextmanager
def entered(scope: ProgramScope) -> Iterator[None]:
    """Make `scope` the current one, no more."""
    token = _current.set(scope)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def running(scope: ProgramScope) -> Iterator[None]:
    """Enter `scope`; when it fails, end the program and raise what failed first in it."""
    try:
        with entered(scope):
            yield
            if scope.error is not None:
                raise scope.error
    except BaseException as error:
        with suppress(Exception):  # a failing clean-up must not hide what made it necessary
            scope.end()
        scope.release()
        cause = scope.error
        if cause is not None and cause is not error and isinstance(error, Exception):
            # What the body met, such as a variable that was never set, only follows from it.
            raise cause from error
        raise


@contextmanager
def program(**fields: Any) -> Iterator[ProgramScope]:
    """Make every run and fork started inside one program.

    `fields` are those of the request object `dynasor`; `program_id` is minted when absent. States
    that exist already are not covered. Leaving it normally lets requests finish; leaving it with an
    exception ends them. Works as a decorator too: each call is a program then.

    Raises ValueError for a malformed field and inside another scope, and when it is left, the error
    of the first request that failed in it.
    """
    scope = ProgramScope(fields)
    enclosing = current_scope()
    if enclosing is not None:
        raise ValueError(f"program: scopes do not nest (inside {enclosing.program_id})")
    with running(scope):
        yield scope
