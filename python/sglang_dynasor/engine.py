"""The offline engine with programs: `sglang.Engine` plus `run`, `run_batch` and `program=`."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import HTTPException
from jinja2 import TemplateError
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.plugins import load_plugins

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.handshake import check_this_process
from sglang_dynasor.managers.program_messages import CARRIER
from sglang_dynasor.managers.program_service import TOKEN_BUDGET
from sglang_dynasor.managers.request_fields import with_carrier
from sglang_dynasor.managers.tokenizer_manager import DynasorTokenizerManager
from sglang_dynasor.programs import BatchBudget, Program, ProgramResult

Result = TypeVar("Result")
_CAP = "max_total_tokens"
# What a malformed program raises: here, in its chat template, and where upstream uses its values.
_REFUSALS = (ValueError, TypeError, TemplateError, HTTPException)
_EXAMPLE = 'Program(prompt="12+34", sampling_params={...}, dynasor={...})'


class DynasorEngine(Engine):
    """`sglang.Engine` that runs reasoning programs.

    Takes every argument of `sglang.Engine`, and `dynasor`: a dict of DynasorConfig settings.
    Refuses to start (HandshakeError, ValueError) when a process would run without our classes, or
    in a setup that is not supported.
    """

    def __init__(self, *, dynasor: dict[str, Any] | None = None, **kwargs: Any) -> None:
        config = (
            DynasorConfig.from_environment() if dynasor is None else DynasorConfig.parse(dynasor)
        )
        with config.in_environment():
            load_plugins()
            check_this_process()
            super().__init__(**kwargs)

    def shutdown(self) -> None:
        """End every process of the engine."""
        if isinstance(self.tokenizer_manager, DynasorTokenizerManager):  # it may not have started
            self.tokenizer_manager.close_programs()
        super().shutdown()

    def run(self, program: Program) -> ProgramResult:
        """Run one program to its answer. Raises ValueError for a malformed one."""
        return self._run_to_end(self.async_run(program))

    async def async_run(self, program: Program) -> ProgramResult:
        """`run` inside an event loop of the caller's own."""
        if not isinstance(program, Program):
            raise TypeError(
                f"a program must be a Program, not {type(program).__name__}: {_EXAMPLE}"
            )
        return await self._result_of(self._request(program))

    async def _result_of(self, obj: GenerateReqInput) -> ProgramResult:
        output = await anext(aiter(self.tokenizer_manager.generate_request(obj, None)))
        meta = output["meta_info"]
        report = meta.get(CARRIER, {})
        if "tokens" not in report:  # an ordinary request
            report = {**report, **_counts_of(meta)}
        return ProgramResult(output["text"], report, meta["finish_reason"])

    def run_batch(
        self,
        programs: Sequence[Program],
        *,
        progress: bool = False,
        branches_in_flight: int | None = None,
        total_tokens: int | None = None,
    ) -> list[ProgramResult]:
        """Run many programs; results in the order given.

        A program that is refused or fails comes back with `error` set; the others are not
        affected. `branches_in_flight` is how full the engine is kept: a further program starts
        while fewer branches than this are running (default: twice what fits into one batch).
        `total_tokens` caps what all of them generate: each may spend an even share, and what
        decided programs leave of theirs goes to where another branch helps most.
        `progress` shows a bar. Ctrl-C ends every running program before KeyboardInterrupt is
        raised. Before any starts, raises TypeError for what is not a Program and ValueError for
        `total_tokens` below one per program or beside a cap of a program's own.
        """
        for index, program in enumerate(programs):
            if not isinstance(program, Program):
                kind = type(program).__name__
                raise TypeError(f"programs[{index}] must be a Program, not {kind}: {_EXAMPLE}")
            if total_tokens is not None and program.dynasor.get(_CAP) is not None:
                raise ValueError(f"total_tokens: programs[{index}] has {_CAP} of its own")
        in_flight = branches_in_flight or self._default_in_flight()
        return self._run_to_end(self._run_batch(programs, progress, in_flight, total_tokens))

    async def _run_batch(
        self,
        programs: Sequence[Program],
        progress: bool,
        branches_in_flight: int,
        total_tokens: int | None,
    ) -> list[ProgramResult]:
        room = asyncio.Event()  # set whenever there may be room for a further program
        budget = None
        if total_tokens is not None:
            budget = BatchBudget(total_tokens, len(programs), room.set)
        running: set[asyncio.Task[ProgramResult]] = set()
        tasks: list[asyncio.Task[ProgramResult]] = []
        with _progress_bar(len(programs), progress) as advance:

            def note_end(task: asyncio.Task[ProgramResult]) -> None:
                running.discard(task)
                advance(1)
                room.set()

            try:
                async with asyncio.TaskGroup() as group:
                    for index, program in enumerate(programs):
                        while running and self._is_full(branches_in_flight):
                            room.clear()
                            await room.wait()
                        task = group.create_task(self._run_or_say(program, index, budget))
                        task.add_done_callback(note_end)
                        running.add(task)
                        tasks.append(task)
                        await asyncio.sleep(0)  # starts its first branches, which are counted
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _is_full(self, branches_in_flight: int) -> bool:
        return bool(self.tokenizer_manager.branches_in_flight >= branches_in_flight)

    async def _run_or_say(
        self, program: Program, index: int, budget: BatchBudget | None
    ) -> ProgramResult:
        spent = 0
        try:
            if budget is not None:
                capped = {**program.dynasor, _CAP: budget.share_tokens}
                program = replace(program, dynasor=capped)
            obj = self._request(program)
            if budget is not None:
                setattr(obj, TOKEN_BUDGET, budget.of(index))
            result = await self._result_of(obj)
            spent = result.completion_tokens
            return result
        except _REFUSALS as error:
            message = error.detail if isinstance(error, HTTPException) else str(error)
            return ProgramResult("", {}, error=message)
        finally:
            if budget is not None:
                budget.settle(index, spent)

    def _run_to_end(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work` in the engine's loop; on Ctrl-C let it end its programs, then raise."""
        task = self.loop.create_task(work)
        # Only where Python's own handler would raise, in the middle of whatever the loop does.
        ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if not ours:
            return self.loop.run_until_complete(task)
        interrupted = False

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            task.cancel()

        self.loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            return self.loop.run_until_complete(task)
        except asyncio.CancelledError:
            if interrupted:
                raise KeyboardInterrupt from None
            raise
        finally:
            self.loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # uvloop leaves its own

    def generate(
        self, *args: Any, program: dict[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """`sglang.Engine.generate`; `program` holds the fields of the request object `dynasor`."""
        args, kwargs = _with_program(args, kwargs, program)
        return super().generate(*args, **kwargs)

    async def async_generate(
        self, *args: Any, program: dict[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Any] | AsyncIterator[dict[str, Any]]:
        """`sglang.Engine.async_generate`, with `program` as in `generate`."""
        args, kwargs = _with_program(args, kwargs, program)
        return await super().async_generate(*args, **kwargs)

    def _request(self, program: Program) -> GenerateReqInput:
        params = with_carrier(program.sampling_params, dict(program.dynasor))
        input_ids = program.input_ids
        if program.messages is not None:
            input_ids = self.tokenizer_manager.tokenizer.apply_chat_template(
                program.messages,
                add_generation_prompt=True,
                return_dict=False,
                **program.chat_template_kwargs,
            )
        return GenerateReqInput(
            text=program.prompt,
            input_ids=input_ids,
            sampling_params=params,
        )

    def _default_in_flight(self) -> int:
        info = self._scheduler_init_result.scheduler_infos[0]
        return 2 * info["dynasor"]["max_running_requests"]


def _with_program(
    args: tuple[Any, ...], kwargs: dict[str, Any], program: dict[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `Engine.generate` with the program in `sampling_params`, its second one."""
    if program is None:
        return args, kwargs
    by_position = len(args) > 1
    params = args[1] if by_position else kwargs.get("sampling_params")
    if isinstance(params, list):
        stamped: Any = [with_carrier(item, program) for item in params]
    else:
        stamped = with_carrier(params, program)
    if by_position:
        return (args[0], stamped, *args[2:]), kwargs
    return args, {**kwargs, "sampling_params": stamped}


def _counts_of(meta: dict[str, Any]) -> dict[str, Any]:
    """What the report of a program says of its end and its tokens, for an ordinary request."""
    prompt, generated = meta.get("prompt_tokens", 0), meta.get("completion_tokens", 0)
    aborted = meta["finish_reason"]["type"] == "abort"
    return {
        "stop_reason": "aborted" if aborted else "completed",
        "tokens": {"prompt": prompt, "branch": generated, "total": prompt + generated},
    }


class _progress_bar:
    """Context manager giving a function that advances a terminal bar, or does nothing."""

    def __init__(self, total: int, visible: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        self._bar = Progress(
            "[progress.description]{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not visible,
        )
        self._task = self._bar.add_task("programs", total=total)

    def __enter__(self) -> Any:
        self._bar.start()
        return lambda count: self._bar.advance(self._task, count)

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()
