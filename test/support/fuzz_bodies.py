"""Seeded request bodies: valid ones, near misses, and plain rubbish in every program field."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

ROUTES = ("/v1/chat/completions", "/v1/completions", "/generate")
MAX_TOKENS = 3

_FIELDS: dict[str, Callable[[random.Random], Any]] = {
    "program_id": lambda rng: "".join(rng.choices("abzAZ09._-", k=rng.randint(1, 64))),
    "algorithm": lambda rng: rng.choice(["none", "self_consistency"]),
    "mode": lambda rng: rng.choice(["on", "shadow", "off"]),
    "max_branches": lambda rng: rng.randint(1, 5),
    "min_branches": lambda rng: rng.randint(1, 3),
    "grants": lambda rng: rng.choice(["1", "2,1", "3"]),
    "rule": lambda rng: rng.choice(["dynasor", "threshold", "decided", "beta"]),
    "threshold": lambda rng: round(rng.random(), 3),
    "answer_format": lambda rng: rng.choice(["boxed", "number", "choice", "code", "text"]),
    "answer_pattern": lambda rng: rng.choice(["[0-9]+", "a.b", "(x+x+)+y"]),
    "max_total_tokens": lambda rng: rng.randint(1, 20),
    "deadline_ms": lambda rng: rng.randint(1, 500),
    "token_certainty": lambda rng: rng.random() < 0.7,
    "stop_loops": lambda rng: rng.random() < 0.5,
    "branch_rule": lambda rng: rng.choice(["none", "deepconf"]),
    "detail": lambda rng: rng.choice(["answer", "votes", "branches"]),
}


def fuzz_bodies(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Routes with bodies; the same for the same seed."""
    rng = random.Random(seed)
    return [_one(rng, rng.choice(ROUTES)) for _ in range(count)]


def _one(rng: random.Random, route: str) -> tuple[str, bytes]:
    body = _plain_body(rng, route)
    for mutate in rng.sample(_MUTATIONS, k=rng.choice([0, 1, 1, 1, 2, 3])):
        mutate(rng, body, route)
    content = json.dumps(body, allow_nan=True).encode()
    if rng.random() < 0.03:  # not JSON at all any more
        cut = rng.randrange(len(content))
        content = content[:cut] + rng.randbytes(rng.randint(0, 4))
    return route, content


def _plain_body(rng: random.Random, route: str) -> dict[str, Any]:
    prompt = f"{rng.randint(10, 99)}+{rng.randint(10, 99)}"
    if route == "/generate":
        return {"text": prompt, "sampling_params": {"max_new_tokens": MAX_TOKENS}}
    body: dict[str, Any] = {"model": "default", "max_tokens": MAX_TOKENS}
    if route == "/v1/completions":
        return {**body, "prompt": prompt}
    return {**body, "messages": [{"role": "user", "content": prompt}]}


def _spec(rng: random.Random) -> dict[str, Any]:
    names = rng.sample(sorted(_FIELDS), k=rng.randint(0, 6))
    return {name: _FIELDS[name](rng) for name in names}


def _set_spec(rng: random.Random, body: dict[str, Any], route: str) -> None:
    body["dynasor"] = _spec(rng)


def _set_running_spec(rng: random.Random, body: dict[str, Any], route: str) -> None:
    body["dynasor"] = {"algorithm": "self_consistency", "max_branches": rng.randint(1, 4)}


def _break_one_field(rng: random.Random, body: dict[str, Any], route: str) -> None:
    spec = {"algorithm": "self_consistency", **_spec(rng)}
    spec[rng.choice(sorted(_FIELDS))] = _rubbish(rng)
    body["dynasor"] = spec


def _add_unknown_field(rng: random.Random, body: dict[str, Any], route: str) -> None:
    body["dynasor"] = {**_spec(rng), _text(rng): _rubbish(rng)}


def _set_rubbish_spec(rng: random.Random, body: dict[str, Any], route: str) -> None:
    body["dynasor"] = _rubbish(rng)


def _set_program_id(rng: random.Random, body: dict[str, Any], route: str) -> None:
    body["program_id"] = _FIELDS["program_id"](rng) if rng.random() < 0.3 else _rubbish(rng)


def _set_custom_params(rng: random.Random, body: dict[str, Any], route: str) -> None:
    custom: Any = rng.choice(
        [
            {"dynasor": _spec(rng)},
            {"dynasor": _rubbish(rng)},
            {"dynasor": {"tenant": "x", "program_id": "p"}},
            {"own": _rubbish(rng)},
            {_text(rng): _rubbish(rng), "dynasor": {"program_id": "p1"}},
            _rubbish(rng),
        ]
    )
    if route == "/generate":
        body["sampling_params"]["custom_params"] = custom
    else:
        body["custom_params"] = custom


def _set_unsupported(rng: random.Random, body: dict[str, Any], route: str) -> None:
    params = body.get("sampling_params", body)
    rng.choice(
        [
            lambda: params.update(n=rng.choice([2, 3])),
            lambda: body.update(stream=True),
            lambda: body.update(prompt=["1+1", "2+2"]) if "prompt" in body else None,
            lambda: body.update(text=["1+1", "2+2"]) if "text" in body else None,
        ]
    )()
    body["dynasor"] = {"algorithm": "self_consistency"}


_MUTATIONS = (
    _set_spec,
    _set_running_spec,
    _break_one_field,
    _break_one_field,
    _add_unknown_field,
    _set_rubbish_spec,
    _set_program_id,
    _set_custom_params,
    _set_custom_params,
    _set_unsupported,
)


def _text(rng: random.Random) -> str:
    return rng.choice(
        ["", " ", "\x00", "dynasor", "tenant", "__class__", "a" * 5000, "\ud83d\ude00", "\u202e"]
    )


def _rubbish(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(14)
    if kind == 0:
        return None
    if kind == 1:
        return rng.choice([True, False])
    if kind == 2:
        return rng.choice([0, -1, 513, 2**31, 2**63, 2**64, -(2**70), 10**300])
    if kind == 3:
        return rng.choice([float("nan"), float("inf"), float("-inf"), 1e308, -0.0, 0.5])
    if kind in (4, 5):
        return _text(rng)
    if kind == 6:
        return "9" * rng.choice([10, 10_000, 1_000_000])
    if kind == 7:
        return _nested(rng.choice([5, 50, 600]), rng.random() < 0.5)
    if kind in (8, 9, 10) and depth < 3:
        return [_rubbish(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    if depth < 3:
        return {_text(rng): _rubbish(rng, depth + 1) for _ in range(rng.randint(0, 4))}
    return {}


def _nested(depth: int, as_list: bool) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if as_list else {"a": value}
    return value
