"""One engine of the serving benchmark, in a process of its own.

    python benchmark/serving_worker.py '{"system": "full", ...}'    (started by serving.py)

Takes commands on stdin and answers each with one line of JSON on stdout. The load generator runs in
the event loop of the offline engine itself: nothing lies between it and the tokenizer manager. The
stock engine runs in a process with SGLANG_DYNASOR=0, that is unpatched SGLang.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from serving_clients import (
    Generate,
    OwnNodes,
    Timed,
    answers_of,
    chain_loop,
    own_chain,
    own_rebase,
    own_vote,
)
from serving_load import Outcome
from serving_systems import REWARDS, SYSTEMS, System, kind_fields, kind_of
from sglang_dynasor.certaindex import MathEquality
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.demo import Problem, load_problems, problem_seed
from sglang_dynasor.managers.engine_nodes import node_seed
from sglang_dynasor.managers.node_paths import NodePaths, Tokens
from sglang_dynasor.managers.reward_homes import rewards_of
from sglang_dynasor.managers.rewards import Rewards
from sglang_dynasor.programs import Answers, Generated, Program, Start, run_program
from worker_replies import reply_stream, serve_commands

WARM_UP_IN_FLIGHT = 8
SETTLE_S = 30.0  # after the end of a run, until what it aborted has drained


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client has when its program is over; `at` is the moment it had the answer, loop time.

    A client's own loop has the answer before the requests it aborts have drained.
    """

    text: str
    at: float
    tokens: int
    idle_tokens: int = 0
    finished: bool = True


class Client:
    """Runs programs on the engine of this process, as the users of one system would."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._system = SYSTEMS[spec["system"]]
        self._max_branches: int = spec["max_branches"]
        self._config = DynasorConfig.parse(spec["settings"])
        self._equality = MathEquality(self._config.equality_time_limit_ms / 1000)
        if self._system.client != "program":
            self._equality.start()  # seconds, which no program should have to wait for
        rewards = self._start_rewards()
        self._rewards = rewards
        self._engine = _start_engine(self._system, spec)
        if rewards is not None:
            rewards.wait()
        tokenizer = self._engine.tokenizer_manager.tokenizer
        self._tokens = Tokens(
            partial(tokenizer.encode, add_special_tokens=False),
            tokenizer.decode,
            frozenset({tokenizer.eos_token_id}),
        )
        file = spec["problems_file"]
        self._problems = load_problems(file and Path(file), spec["problems"], spec["seed"])
        self._prompts = [
            self._tokenise(problem, self._kind(index) == "chain")
            for index, problem in enumerate(self._problems)
        ]
        self._sent = 0

    def close(self) -> None:
        self._equality.close()
        self._engine.shutdown()
        if self._rewards is not None:
            self._rewards.close()

    def _start_rewards(self) -> Rewards | None:
        """Of a mix's stock engine; ours starts its own."""
        if not self._spec["mix"] or self._system.client == "program":
            return None
        return rewards_of(DynasorConfig.parse(REWARDS))

    def _kind(self, index: int) -> str:
        return kind_of(index, self._spec["mix"])

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """Execute one command from an empty prefix cache: closed loop or open loop."""
        self._engine.flush_cache()
        process, wall = time.process_time(), time.perf_counter()
        if command["op"] == "closed":
            work = self._closed_loop(command["problems"], command["in_flight"])
        else:
            work = self._open_loop(command["problems"], command["arrivals"], command["grace_s"])
        reply = self._engine.loop.run_until_complete(work)
        # Of this process alone: near 1 the load generator itself would be the bottleneck.
        share = (time.process_time() - process) / (time.perf_counter() - wall)
        return {**reply, "client_cpu": round(share, 3)}

    async def _closed_loop(self, indices: list[int], in_flight: int) -> dict[str, Any]:
        """So many programs at any time; `ended_s` is when each one ended, from the start."""
        loop = asyncio.get_running_loop()
        waiting = iter(indices)
        start = loop.time()
        ended: list[float] = []
        outcomes: list[Outcome] = []
        last_start = start

        async def one_after_another() -> None:
            nonlocal last_start
            for index in waiting:
                last_start = begun = loop.time()
                answer = await self._answer(index)
                ended.append(answer.at - start)
                outcomes.append(_outcome(answer, begun))

        await asyncio.gather(*[one_after_another() for _ in range(in_flight)])
        return {
            "outcomes": [asdict(outcome) for outcome in outcomes],
            "ended_s": sorted(ended),
            "last_start_s": last_start - start,
        }

    async def _open_loop(
        self, indices: list[int], arrivals: list[float], grace_s: float
    ) -> dict[str, Any]:
        """Each program at its time, whatever has finished; the end is a grace after the last."""
        loop = asyncio.get_running_loop()
        start = loop.time() + 0.1
        tasks: list[asyncio.Task[Answer]] = []
        lags: list[float] = []
        for index, arrival in zip(indices, arrivals, strict=True):
            await asyncio.sleep(start + arrival - loop.time())
            lags.append(loop.time() - start - arrival)
            tasks.append(asyncio.create_task(self._answer(index)))
        await asyncio.wait(tasks, timeout=grace_s)
        end = loop.time()
        await self._abort_rest(tasks)
        outcomes = [
            _outcome(task.result(), start + arrival, end)
            for task, arrival in zip(tasks, arrivals, strict=True)
        ]
        return {
            "outcomes": [asdict(outcome) for outcome in outcomes],
            "worst_lag_s": round(max(lags), 4),
        }

    async def _abort_rest(self, tasks: list[asyncio.Task[Answer]]) -> None:
        async with asyncio.timeout(SETTLE_S):
            while any(not task.done() for task in tasks):
                self._engine.tokenizer_manager.abort_request(abort_all=True)
                await asyncio.wait(tasks, timeout=0.5)

    async def _answer(self, index: int) -> Answer:
        self._sent += 1
        if self._system.client == "program":
            return await self._program(index)
        return await self._own(index)

    def _seed(self, index: int) -> int:
        """The same in every system: branch i of a problem is the same sample in all of them."""
        return problem_seed(self._problems[index], self._spec["seed"])

    async def _program(self, index: int) -> Answer:
        problem = self._problems[index]
        program = Program(
            input_ids=self._prompts[index],
            sampling_params={**self._spec["sampling"], "sampling_seed": self._seed(index)},
            dynasor={
                "answer_format": problem.answer_format,
                "answer_pattern": problem.answer_pattern,
                "detail": "answer",
                **kind_fields(self._kind(index), self._spec["max_branches"]),
                **self._system.fields,
            },
        )
        result = await self._engine.async_run(program)
        return Answer(
            text=result.answer,
            at=asyncio.get_running_loop().time(),
            tokens=result.completion_tokens,
            idle_tokens=result.report["tokens"]["idle"],
            finished=result.stop_reason != "aborted",
        )

    async def _own(self, index: int) -> Answer:
        """The same program, driven by its client on ordinary requests."""
        kind, client = self._kind(index), self._system.client
        answers = answers_of(self._problems[index], self._config, self._equality)
        generate = self._generate_of(index)
        if kind == "chain" and client == "loop":
            return await self._chain_loop(index, answers, generate)
        number, most = self._sent, self._spec["max_branches"]
        program: Timed = (
            own_chain()
            if kind == "chain"
            else (own_rebase if kind == "rebase" else own_vote)(client, most)
        )
        nodes = OwnNodes(
            NodePaths(self._prompts[index], self._tokens),
            generate,
            self._engine.tokenizer_manager.abort_request,
            lambda node: _rid(number, int(node)),
            self._rewards,
        )
        run = await run_program(program, nodes, answers)
        parts = (*run.finished.values(), *run.cancelled.values())
        return Answer(
            text=run.outcome.answer,
            at=program.at,
            tokens=sum(part.n_tokens for part in parts),
            finished=run.outcome.stop_reason != "aborted",
        )

    async def _chain_loop(self, index: int, answers: Answers, generate: Generate) -> Answer:
        number = self._sent

        async def request(start: Start, ids: list[int], node: str) -> dict[str, Any]:
            return await generate(start, ids, _rid(number, int(node)))

        most = self._spec["sampling"]["max_new_tokens"]
        text, spent, finished = await chain_loop(self._prompts[index], self._tokens, request, most)
        reading = await answers.read("0", Generated(text, spent, "completed"))
        at = asyncio.get_running_loop().time()
        return Answer(reading.answer, at, spent, finished=finished)

    def _generate_of(self, index: int) -> Generate:
        """Ordinary requests for the nodes of one program."""
        prompt, seed, sampling = self._prompts[index], self._seed(index), self._spec["sampling"]

        async def generate(start: Start, ids: list[int], rid: str) -> dict[str, Any]:
            left = sampling["max_new_tokens"] - (len(ids) - len(prompt))
            params = {
                **sampling,
                "max_new_tokens": max(1, min(left, start.max_tokens or left)),
                "sampling_seed": node_seed(seed, start.node),
                **({"stop": [start.stop]} if start.stop else {}),
            }
            output: dict[str, Any] = await self._engine.async_generate(
                input_ids=ids, sampling_params=params, rid=rid
            )
            return output

        return generate

    def _tokenise(self, problem: Problem, thinks: bool) -> list[int]:
        tokenizer = self._engine.tokenizer_manager.tokenizer
        if problem.messages is None:
            return list(tokenizer.encode(problem.prompt))
        return list(
            tokenizer.apply_chat_template(
                problem.messages,
                add_generation_prompt=True,
                return_dict=False,
                enable_thinking=thinks,
            )
        )


def _rid(program: int, index: int) -> str:
    # Of fixed width: upstream aborts whatever begins with the id it is given.
    return f"program-{program:08d}-{index:03d}"


def _outcome(answer: Answer, begun: float, end: float | None = None) -> Outcome:
    """`end` is the end of the run for a program that has not finished by itself."""
    at = end if end is not None and not answer.finished else answer.at
    return Outcome(
        finished=answer.finished,
        latency_s=at - begun,
        tokens=answer.tokens,
        idle_tokens=answer.idle_tokens,
        answer=answer.text,
    )


def _start_engine(system: System, spec: dict[str, Any]) -> Any:
    from sglang_dynasor.platforms import activate

    flags: dict[str, Any] = {
        "model_path": spec["model"],
        "random_seed": spec["seed"],
        "schedule_policy": system.policy,
        "max_running_requests": spec["max_running_requests"],
        "max_total_tokens": spec["max_total_tokens"],
        "sleep_on_idle": True,  # while the other systems have their turn
    }
    if activate():  # without an accelerator the draws would not depend on the seed alone
        flags["sampling_backend"] = "keyed"
    if system.client != "program":
        from sglang.srt.entrypoints.engine import Engine

        return Engine(**flags)
    from sglang_dynasor import DynasorEngine

    rewards = REWARDS if spec["mix"] else {}
    return DynasorEngine(**flags, dynasor={**rewards, **spec["settings"]})


def main() -> None:
    """Serve commands until stdin ends."""
    replies = reply_stream()
    spec = json.loads(sys.argv[1])
    client = Client(spec)
    try:
        warm_up = {"op": "closed", "problems": spec["warm_up"], "in_flight": WARM_UP_IN_FLIGHT}
        client.run(warm_up)
        serve_commands(replies, client.run)
    finally:
        client.close()


if __name__ == "__main__":
    main()
