"""Who judges paths: a server with a reward model, or a function of the operator's own."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.managers.reward_server import RewardServer
from sglang_dynasor.managers.rewards import JudgedPath, RewardHome, Rewards
from sglang_dynasor.programs.client import RewardError

MAX_ERROR_CHARACTERS = 200
CLASSIFY = "/classify"


class HttpHome:
    """SGLang's /classify, or /v1/embeddings and vLLM's /pooling: the path of the URL says which.

    `takes_text`: it has another tokenizer than this server's model. `server` is its process, where
    it is ours.
    """

    def __init__(self, url: str, takes_text: bool, server: RewardServer | None = None) -> None:
        parsed = httpx.URL(url)
        self._url = parsed if parsed.path not in ("", "/") else parsed.copy_with(path=CLASSIFY)
        self._takes_text = takes_text
        self._server = server
        self._client: httpx.AsyncClient | None = None

    async def judge(self, paths: Sequence[JudgedPath]) -> list[tuple[float, int]]:
        if self._server is not None and (ended := self._server.ended()):
            raise RewardError(ended)
        if self._client is None:
            key = {} if self._server is None else {"Authorization": f"Bearer {self._server.key}"}
            # Time is limited by whoever asks.
            self._client = httpx.AsyncClient(headers=key, timeout=None, trust_env=False)
        try:
            response = await self._client.post(self._url, json=self._body(paths))
        except httpx.TransportError as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        if response.status_code >= 500:
            raise OSError(f"HTTP {response.status_code}")
        if response.status_code != 200:
            said = response.text[:MAX_ERROR_CHARACTERS]
            raise RewardError(f"HTTP {response.status_code}: {said}")
        return self._read(response, len(paths))

    def _body(self, paths: Sequence[JudgedPath]) -> dict[str, Any]:
        inputs: list[Any] = [
            path.prompt + path.text if self._takes_text else list(path.ids) for path in paths
        ]
        if self._url.path == CLASSIFY:
            return {"text" if self._takes_text else "input_ids": inputs}
        return {"model": "default", "input": inputs}

    def _read(self, response: httpx.Response, count: int) -> list[tuple[float, int]]:
        """A reward is the last number of the last vector: of one label, or of the last token."""
        try:
            body = response.json()
            rows = body if isinstance(body, list) else body["data"]
            if len(rows) != count:
                raise ValueError(f"{len(rows)} rewards for {count} paths")
            return [(_last_number(_vector(row)), _tokens(row)) for row in rows]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            message = f"{self._url.path}: not the answer of a reward model: {error}"
            raise RewardError(message) from error

    def wait(self) -> None:
        if self._server is not None:
            self._server.wait()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


def _vector(row: dict[str, Any]) -> Any:
    return row["embedding"] if "embedding" in row else row["data"]


def _last_number(value: Any) -> float:
    while isinstance(value, list):
        value = value[-1]
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a reward of {number}")
    return number


def _tokens(row: dict[str, Any]) -> int:
    """Tokens that were computed: what stood in the cache was not."""
    meta = row.get("meta_info", {})
    return int(meta.get("prompt_tokens", 0)) - int(meta.get("cached_tokens") or 0)


class VerifierHome:
    """A function of the operator's, MODULE:FUNCTION(prompt, text) -> 0 to 1, in a worker process.

    A call that outlasts the time limit costs the worker; the next one gets a new one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pool: Any = None

    async def judge(self, paths: Sequence[JudgedPath]) -> list[tuple[float, int]]:
        loop = asyncio.get_running_loop()
        if self._pool is None:
            self._pool = multiprocessing.get_context("spawn").Pool(1)
        done: asyncio.Future[list[float]] = loop.create_future()

        def settle(set_it: Callable[[Any], None], value: Any) -> None:
            loop.call_soon_threadsafe(lambda: None if done.done() else set_it(value))

        texts = [(path.prompt, path.text) for path in paths]
        self._pool.apply_async(
            _verify,
            (self._name, texts),
            callback=lambda found: settle(done.set_result, found),
            error_callback=lambda error: settle(done.set_exception, error),
        )
        try:
            return [(reward, 0) for reward in await done]
        except asyncio.CancelledError:
            self.close()
            raise
        except Exception as error:
            raise RewardError(f"{self._name}: {type(error).__name__}: {error}") from error

    def wait(self) -> None:
        try:
            pkgutil.resolve_name(self._name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"reward_verifier: {error}") from error

    def close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None


def _verify(name: str, texts: Sequence[tuple[str, str]]) -> list[float]:
    """In the worker. Raises whatever the function does, and ValueError outside 0 to 1."""
    function = pkgutil.resolve_name(name)
    rewards = [float(function(prompt, text)) for prompt, text in texts]
    for reward in rewards:
        if not 0 <= reward <= 1:
            raise ValueError(f"a reward must be between 0 and 1, not {reward}")
    return rewards


def rewards_of(config: DynasorConfig) -> Rewards | None:
    """The rewards these settings ask for, None for none. A server of our own begins to start."""
    home: RewardHome
    sigmoid = config.reward_scale == "sigmoid"
    if config.reward_verifier:
        home, sigmoid = VerifierHome(config.reward_verifier), False
    elif config.reward_url:
        home = HttpHome(config.reward_url, config.reward_input == "text")
    elif config.reward_model_path:
        server = RewardServer(config.reward_model_path, config.reward_server_args)
        home = HttpHome(server.url, config.reward_input == "text", server)
    else:
        return None
    return Rewards(home, config.reward_time_limit_ms / 1000, sigmoid)
