"""The requests of the soak test, drawn at random."""

from __future__ import annotations

import random
from typing import Any

from soak_answers import TENANTS, Call, sum_of

MAX_NEW_TOKENS = 190
GRAMMARS = 100
SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"draw": "offer"},
    {"grants": "4,3,3,6"},
    {"mode": "shadow"},
    {"max_total_tokens": 300},
    {"deadline_ms": 100},
    {"deadline_ms": 1000},
    {"max_branches": 40, "mode": "shadow"},
    {"rule": "threshold", "detail": "branches"},
    {"token_certainty": True, "vote": "weighted"},
    {"branch_rule": "deepconf", "stop_loops": True, "max_branches": 12},
    {"pace": 3, "probe_interval": 8},
    {"algorithm": "cot", "probe_interval": 8, "window": 2},
    {"algorithm": "cot", "max_thinking_tokens": 20, "on_exit": "insert"},
    {"algorithm": "best_of_n", "max_total_tokens": 300},
    {"algorithm": "rebase", "width": 8, "step_stop": ";"},
    {"algorithm": "mcts", "iterations": 6, "step_stop": ";", "deadline_ms": 1000},
    {"algorithm": "beam", "width": 8, "step_tokens": 8, "mode": "shadow"},
    {"algorithm": "dvts", "width": 8, "step_stop": ";", "detail": "branches"},
)
MALFORMED: tuple[dict[str, Any], ...] = (
    {"max_branches": 0},
    {"max_branches": "many"},
    {"program_id": "no spaces allowed"},
    {"rule": "oracle"},
    {"grants": "4,,x"},
    {"deadline_ms": -1},
    {"unheard_of": 1},
    {"algorithm": "none", "rule": "beta"},
    {"algorithm": "rebase", "width": 0},
    {"algorithm": "mcts", "operating_point": "math"},
    {"algorithm": "beam", "step_stop": ""},
    {"algorithm": "cot", "window": 2, "saving_effort": "mid"},
)


class Requests:
    """What is asked; tenant, id and fields are drawn where they are not given."""

    def __init__(self, temperature: float, rng: random.Random) -> None:
        self.programs = 0
        self._temperature = temperature
        self._rng = rng
        self._number = 0

    def program(
        self,
        what: str,
        tenant: str | None = None,
        program_id: str | None = None,
        fields: dict[str, Any] | None = None,
    ) -> Call:
        """A program the engine runs, through one of two routes."""
        self.programs += 1
        tenant = tenant or self._rng.choice(TENANTS)
        program_id = program_id or self.new_id()
        shape = self._rng.choice(SHAPES) if fields is None else fields
        own = {"algorithm": "self_consistency", "program_id": program_id, **shape}
        question, params, rid = self._sum(tenant), self._params(), self._rid()
        if self._rng.random() < 0.5:
            path = "/generate"
            body: dict[str, Any] = {"text": question, "sampling_params": params}
        else:
            path = "/v1/chat/completions"
            params["max_tokens"] = params.pop("max_new_tokens")
            body = {"messages": [{"role": "user", "content": question}], **params}
        return Call(what, tenant, path, {**body, "dynasor": own, "rid": rid}, program_id)

    def request(
        self,
        what: str,
        tenant: str | None = None,
        program_id: str | None = None,
        stream: bool | None = None,
        rid: str | None = None,
    ) -> Call:
        """An ordinary request, of a client's own program if there is an id."""
        tenant = tenant or self._rng.choice(TENANTS)
        body: dict[str, Any] = {
            "text": self._sum(tenant),
            "sampling_params": self._params(),
            "stream": self._rng.random() < 0.5 if stream is None else stream,
            "rid": rid or self._rid(),
        }
        if program_id is not None:
            measured = {"token_certainty": True} if self._rng.random() < 0.3 else {}
            body["dynasor"] = {"program_id": program_id, **measured}
        return Call(what, tenant, "/generate", body, program_id)

    def batch(self, what: str) -> Call:
        """One request of four prompts, each of a program of its own, each sampled twice."""
        tenant = self._rng.choice(TENANTS)
        params = [
            {**self._params(), "n": 2, "custom_params": {"dynasor": {"program_id": program_id}}}
            for program_id in [self.new_program() for _ in range(4)]
        ]
        body = {"text": [self._sum(tenant) for _ in params], "sampling_params": params}
        return Call(what, tenant, "/generate", body)

    def new_program(self) -> str:
        """The id of a program whose requests the client sends."""
        self.programs += 1
        return self.new_id()

    def new_id(self) -> str:
        self._number += 1
        return f"soak-{self._number}"

    def _rid(self) -> str:
        return f"{self.new_id()}/"  # none is the beginning of another: upstream aborts by prefix

    def _params(self) -> dict[str, Any]:
        params: dict[str, Any] = {
            "temperature": self._temperature,
            "max_new_tokens": MAX_NEW_TOKENS,
        }
        if self._rng.random() < 0.05:  # upstream keeps every grammar, so there are only so many
            params["regex"] = f"[0-9+=;]{{1,{self._rng.randint(1, GRAMMARS)}}}"
        return params

    def _sum(self, tenant: str) -> str:
        """A question; one in five is longer than a chunk of the prefill."""
        bounds = (20, 90) if self._rng.random() < 0.2 else (2, 7)
        return sum_of(tenant, self._rng.randint(*bounds), self._rng)
