"""The offline engine with programs: `sglang.Engine` plus `run`, `run_batch` and `program=`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import HTTPException
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.plugins import load_plugins

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.handshake import check_this_process
from sglang_dynasor.managers.program_messages import CARRIER
from sglang_dynasor.managers.request_fields import with_carrier
from sglang_dynasor.managers.tokenizer_manager import DynasorTokenizerManager
from sglang_dynasor.programs import Program, ProgramResult


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
            self.tokenizer_manager.close_equality()
        super().shutdown()

    def run(self, program: Program) -> ProgramResult:
        """Run one program to its answer. Raises ValueError for a malformed one."""
        return self.loop.run_until_complete(self.async_run(program))

    async def async_run(self, program: Program) -> ProgramResult:
        """`run` inside an event loop of the caller's own."""
        obj = self._request(program)
        output = await anext(aiter(self.tokenizer_manager.generate_request(obj, None)))
        report = output["meta_info"].get(CARRIER, {})
        return ProgramResult(output["text"], report, output["meta_info"]["finish_reason"])

    def run_batch(
        self,
        programs: Sequence[Program],
        *,
        progress: bool = False,
        branches_in_flight: int | None = None,
    ) -> list[ProgramResult]:
        """Run many programs; results in the order given.

        A program that is refused or fails comes back with `error` set; the others are not
        affected. `branches_in_flight` is how full the engine is kept: a further program starts
        while fewer branches than this are running (default: twice what fits into one batch).
        `progress` shows a bar.
        """
        return self.loop.run_until_complete(
            self._run_batch(programs, progress, branches_in_flight or self._default_in_flight())
        )

    async def _run_batch(
        self, programs: Sequence[Program], progress: bool, branches_in_flight: int
    ) -> list[ProgramResult]:
        manager = self.tokenizer_manager
        results: list[ProgramResult | None] = [None] * len(programs)
        waiting = iter(enumerate(programs))
        running: set[asyncio.Task[None]] = set()

        async def run_one(index: int, program: Program) -> None:
            try:
                results[index] = await self.async_run(program)
            except (ValueError, HTTPException) as error:
                message = error.detail if isinstance(error, HTTPException) else str(error)
                results[index] = ProgramResult("", {}, error=message)

        with _progress_bar(len(programs), progress) as advance:
            exhausted = False
            while running or not exhausted:
                while not exhausted and (
                    not running or manager.branches_in_flight < branches_in_flight
                ):
                    entry = next(waiting, None)
                    if entry is None:
                        exhausted = True
                        break
                    running.add(asyncio.ensure_future(run_one(*entry)))
                    await asyncio.sleep(0)  # lets it start its first branches, which are counted
                if not running:
                    break
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                advance(len(done))
                for task in done:
                    task.result()
        return [result for result in results if result is not None]

    def generate(
        self, *args: Any, program: dict[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """`sglang.Engine.generate`; `program` holds the fields of the request object `dynasor`."""
        return super().generate(*args, **_with_program(args, kwargs, program))

    async def async_generate(
        self, *args: Any, program: dict[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Any] | AsyncIterator[dict[str, Any]]:
        """`sglang.Engine.async_generate`, with `program` as in `generate`."""
        return await super().async_generate(*args, **_with_program(args, kwargs, program))

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
) -> dict[str, Any]:
    if program is None:
        return kwargs
    if len(args) > 1:
        raise ValueError("sampling_params: pass it by keyword together with program")
    params = kwargs.get("sampling_params")
    if isinstance(params, list):
        stamped: Any = [with_carrier(item, program) for item in params]
    else:
        stamped = with_carrier(params, program)
    return {**kwargs, "sampling_params": stamped}


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
