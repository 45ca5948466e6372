"""The clients of the soak test: two tenants that use the same ids, and all that can go wrong."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from soak_answers import TENANTS, Call, Verdicts, status_of
from soak_requests import MALFORMED, Requests
from soak_server import SoakServer

ANSWER_LIMIT_S = 90.0  # beyond it an accepted request counts as unanswered
MEAN_PATIENCE_S = 0.3  # of clients that go away, and before an abort
BACK_OFF_S = 0.5  # of a client that was refused by a full queue
ABORT_HALF_EVERY_S = 5.0
ABORT_ALL_EVERY_S = 45.0
PAUSE_EVERY_S = 15.0
ASKED_AGAIN = 50  # ids of vanished clients, at the end
# Each of these ends SGLang 0.5.23 itself when it reaches the scheduler.
DEADLY: tuple[dict[str, Any], ...] = (
    {"input_ids": [10_000_000]},
    {"text": "12+34", "return_logprob": True, "top_logprobs_num": 10_000_000},
)


class SoakClients:
    """The clients of one server."""

    def __init__(self, server: SoakServer, options: argparse.Namespace) -> None:
        self.verdicts = Verdicts()
        self._server = server
        self._options = options
        self._rng = random.Random(options.seed)
        self._make = Requests(options.temperature, self._rng)
        self._calls: dict[Call, None] = {}  # in the order of arrival
        self._old_ids: list[str | None] = []
        self._vanished: list[Call] = []
        self._actions: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._program, 8),
            (self._twins, 4),
            (self._aborted, 3),
            (self._client_driven, 3),
            (self._plain, 3),
            (self._vanishing, 3),
            (self._vanishing_stream, 2),
            (self._half_a_request, 1),
            (self._batch, 1),
            (self._duplicate, 1),
            (self._malformed, 1),
            (self._hostile, 1),
        ]

    @property
    def programs(self) -> int:
        return self._make.programs

    async def run(self) -> None:
        """Keep `--in-flight` clients busy until the time is over, then let them finish."""
        ends_at = time.monotonic() + 60 * self._options.minutes
        async with self._session() as self._http:
            operators = [self._abort_half, self._abort_all, self._pause]
            tasks = [asyncio.create_task(act(ends_at)) for act in operators]
            clients = [self._client(ends_at) for _ in range(self._options.in_flight)]
            await asyncio.gather(*clients, *tasks)

    async def ask_again(self) -> None:
        """The ids of clients that have vanished must be free by now."""
        async with self._session() as self._http:
            for call in self._vanished[-ASKED_AGAIN:]:
                again = self._make.program("asked again", call.tenant, call.program_id)
                await self._ask(again)

    async def send_deadly(self) -> None:
        """What would end upstream's server must be refused."""
        async with self._session() as self._http:
            for body in DEADLY:
                await self._refused(Call("deadly", "A", "/generate", body))

    def _session(self) -> aiohttp.ClientSession:
        limit = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)
        # A connection each: one that is kept may be closed by the server as it is used again.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        return aiohttp.ClientSession(self._server.url, timeout=limit, connector=connector)

    async def _client(self, ends_at: float) -> None:
        actions, weights = zip(*self._actions, strict=True)
        while time.monotonic() < ends_at and self._server.alive:
            (action,) = self._rng.choices(actions, weights)
            await action()

    # What a client does.

    async def _program(self) -> None:
        again = self._old_ids and self._rng.random() < 0.2
        call = self._make.program("program", program_id=self._old_ids.pop() if again else None)
        await self._ask(call)
        self._old_ids.append(call.program_id)

    async def _twins(self) -> None:
        """Both tenants run a program of the same id; one of them may abort its own."""
        program_id = self._make.new_id()
        twins = [self._make.program("twin", tenant, program_id) for tenant in TENANTS]
        tasks = [asyncio.create_task(self._ask(twin)) for twin in twins]
        await asyncio.wait(tasks, timeout=self._patience())
        if self._rng.random() < 0.7:
            await self._abort(self._rng.choice(twins), program_id)
        await asyncio.gather(*tasks)

    async def _aborted(self) -> None:
        """A program is ended by its id, or by the request's own."""
        call = self._make.program("aborted")
        task = asyncio.create_task(self._ask(call))
        await asyncio.wait([task], timeout=self._patience())
        await self._abort(call, self._rng.choice([call.program_id, call.body["rid"]]))
        await task

    async def _client_driven(self) -> None:
        """The client's own loop: requests that share an id, streams and measured ones among them.

        Half of the time the other tenant drives a loop of the same id, and one of the two ends.
        """
        program_id = self._make.new_program()
        tenants = TENANTS if self._rng.random() < 0.5 else TENANTS[:1]
        calls = [
            self._make.request("client_driven", tenant, program_id)
            for tenant in tenants
            for _ in range(3)
        ]
        tasks = [asyncio.create_task(self._ask(call)) for call in calls]
        await asyncio.wait(tasks, timeout=self._patience())
        if self._rng.random() < 0.5:
            await self._abort(self._rng.choice(calls), program_id)
        await asyncio.gather(*tasks)

    async def _batch(self) -> None:
        await self._ask(self._make.batch("batch"))

    async def _plain(self) -> None:
        call = self._make.request("plain")
        task = asyncio.create_task(self._ask(call))
        if self._rng.random() < 0.3:
            await asyncio.wait([task], timeout=self._patience())
            await self._abort(call, call.body["rid"])
        await task

    async def _vanishing(self) -> None:
        """The client hangs up, at once or later, and may come back with the same id at once."""
        call = self._make.program("vanishing")
        await self._hang_up(call, self._patience() * self._rng.choice([0, 0.1, 1, 3]))
        self._vanished.append(call)
        if self._rng.random() < 0.3:
            retry = self._make.program("retry", call.tenant, call.program_id)
            await self._ask(retry, also=409)

    async def _vanishing_stream(self) -> None:
        """A client of an own loop goes away before or between the chunks of its stream."""
        program_id = self._make.new_program()
        call = self._make.request("vanishing_stream", program_id=program_id, stream=True)
        await self._hang_up(call, self._patience())

    async def _half_a_request(self) -> None:
        """The connection ends in the middle of the body."""
        place = urlsplit(self._server.url)
        body = json.dumps(self._make.program("half").body).encode()
        head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            _, writer = await asyncio.open_connection(place.hostname, place.port)
            writer.write(head.encode() + body[: len(body) // 2])
            await writer.drain()
            writer.close()
        except OSError as error:
            self.verdicts.unanswered.append(f"half_a_request: {error}")

    async def _duplicate(self) -> None:
        """The id of a program that runs is taken, whichever of the two came first."""
        call = self._make.program("duplicated", fields={"max_branches": 40, "mode": "shadow"})
        task = asyncio.create_task(self._ask(call, also=409))
        await asyncio.wait([task], timeout=0.1)
        if not task.done():
            copy = self._make.program("duplicate", call.tenant, call.program_id)
            await self._ask(copy, also=409)
        await task

    async def _malformed(self) -> None:
        call = self._make.program("malformed", fields=self._rng.choice(MALFORMED))
        await self._refused(call)

    async def _hostile(self) -> None:
        """A request named as the beginning of other requests' ids, to end them with its own abort.

        Upstream aborts by prefix; the nodes of programs have ids that begin with a slash.
        """
        call = self._make.request("hostile", rid="/")
        task = asyncio.create_task(self._ask(call, also=400))
        await asyncio.wait([task], timeout=self._patience())
        await self._abort(call, "/")
        await task

    # What an operator does.

    async def _abort_half(self, ends_at: float) -> None:
        while await self._sleep(ABORT_HALF_EVERY_S, ends_at):
            tenant = self._rng.choice(TENANTS)
            for call in list(self._calls):
                if call.program_id and call.tenant == tenant and self._rng.random() < 0.5:
                    await self._abort(call, call.program_id)
            self.verdicts.counts["halves aborted"] += 1

    async def _abort_all(self, ends_at: float) -> None:
        while await self._sleep(ABORT_ALL_EVERY_S, ends_at):
            for call in self._calls:
                call.may_abort = True
            await self._operate("/abort_request", {"abort_all": True})
            self.verdicts.counts["all aborted"] += 1

    async def _pause(self, ends_at: float) -> None:
        while await self._sleep(PAUSE_EVERY_S, ends_at):
            mode = self._rng.choice(["in_place", "retract"])
            await self._operate("/pause_generation", {"mode": mode})
            await asyncio.sleep(self._rng.uniform(0.2, 1.5))
            await self._operate("/continue_generation", {})
            self.verdicts.counts[f"paused, {mode}"] += 1

    async def _sleep(self, seconds: float, ends_at: float) -> bool:
        """Whether there is time left after a pause."""
        await asyncio.sleep(min(seconds, max(0.0, ends_at - time.monotonic())))
        return time.monotonic() < ends_at and self._server.alive

    # How it is sent.

    async def _ask(self, call: Call, also: int = 200) -> None:
        """Send, wait for the answer and judge it; status `also` is right as well."""
        self._calls[call] = None
        call.sent_at = time.monotonic()
        status, payload = await self._answered(call)
        del self._calls[call]
        if status == also != 200:
            self.verdicts.counts[f"{call.what} {status}"] += 1
        elif status:
            self.verdicts.judge(call, status, payload, time.monotonic())
        if status == 503:
            await asyncio.sleep(BACK_OFF_S)

    async def _refused(self, call: Call) -> None:
        status, _ = await self._answered(call)
        self.verdicts.counts[f"{call.what} {status}"] += 1
        if status not in (0, 400):
            self.verdicts.faults.append(f"{call.what}: {status} for {call.body}")

    async def _operate(self, path: str, body: dict[str, Any], tenant: str = "A") -> None:
        await self._answered(Call(path, tenant, path, body))

    async def _answered(self, call: Call) -> tuple[int, Any]:
        """Status and payload; status 0 where there is no answer, which is noted."""
        try:
            return await self._post(call)
        except (aiohttp.ClientError, TimeoutError) as error:
            self.verdicts.unanswered.append(f"{call.what}: {type(error).__name__}")
            return 0, None

    def _patience(self) -> float:
        return self._rng.expovariate(1 / MEAN_PATIENCE_S)

    async def _hang_up(self, call: Call, after_s: float) -> None:
        task = asyncio.create_task(self._post(call))
        await asyncio.wait([task], timeout=max(0.003, after_s))  # it was sent, at least
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.verdicts.counts[call.what] += 1

    async def _abort(self, call: Call, target: str | None) -> None:
        self._note_abort(call.tenant, target)
        await self._operate("/abort_request", {"rid": target}, call.tenant)
        self._note_abort(call.tenant, target)  # those that came meanwhile

    def _note_abort(self, tenant: str, target: str | None) -> None:
        for call in self._calls:
            if target in (call.program_id, call.body.get("rid")):
                call.note_abort(tenant, time.monotonic())

    async def _post(self, call: Call) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {call.tenant}"}
        async with self._http.post(call.path, json=call.body, headers=headers) as response:
            if not call.body.get("stream"):
                text = await response.text()
                return response.status, json.loads(text) if text else None
            payload: dict[str, Any] = {}
            async for line in response.content:
                if line.startswith(b"data: {"):
                    payload = json.loads(line.removeprefix(b"data: "))
            return status_of(response.status, payload), payload
