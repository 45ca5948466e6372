"""Calls to a real server, the way users make them, and raw ones that skip the client's checks."""

from __future__ import annotations

from typing import Any

import httpx
import openai

TEMPERATURE = 1.0
RUN: dict[str, Any] = {"algorithm": "self_consistency", "detail": "branches"}
# Draws so wide that branches end at very different lengths.
WANDERING_TEMPERATURE = 100.0


def client_of(url: str, api_key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0, timeout=120)


def ask(url: str, problem: str = "12+34", *, api_key: str = "none", **options: Any) -> Any:
    """One chat completion; `options` named as the OpenAI client names them."""
    body = {"temperature": TEMPERATURE, "max_tokens": 80, "seed": 7, **options}
    return client_of(url, api_key).chat.completions.create(
        model="default", messages=[{"role": "user", "content": problem}], **body
    )


def report_of(response: Any) -> dict[str, Any]:
    """`sglext.dynasor` of a chat or text completion."""
    return response.model_extra["sglext"]["dynasor"]


def post(
    url: str, route: str, headers: dict[str, str] | None = None, **body: Any
) -> httpx.Response:
    """A minimal request to one of the three routes with `body` on top."""
    minimal: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {
            "model": "default",
            "max_tokens": 20,
            "messages": [{"role": "user", "content": "12+34"}],
        },
        "/v1/completions": {"model": "default", "max_tokens": 20, "prompt": "12+34"},
        "/generate": {"text": "12+34", "sampling_params": {"max_new_tokens": 20}},
    }
    content = {**minimal[route], **body}
    return httpx.post(f"{url}{route}", json=content, headers=headers, timeout=120)
