"""The KV pool of a real engine, and the messages with which programs end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sglang_dynasor.managers.program_messages import EndProgramReqOutput
from support.waiting import wait_until

POOL_TOKENS = 8192

# Nearly uniform draws over the vocabulary: branches end at very different lengths, whatever the
# weights are, so that a stop finds siblings running.
WANDERING = {"temperature": 100.0, "max_new_tokens": 160, "sampling_seed": 5}


@dataclass(frozen=True)
class Pool:
    """Counts of programs, their requests and offers, and tokens of the KV pool."""

    programs: int
    requests: int
    offered: int
    available_tokens: int
    evictable_tokens: int
    protected_tokens: int


def pool_of(engine: Any) -> Pool:
    return Pool(**engine.get_server_info()["internal_states"][0]["dynasor"])


def emptied_pool(engine: Any) -> Pool:
    """The pool with nothing in it: the baseline of a test."""
    # Cancelled rows of the test before may still drain.
    wait_until(lambda: engine.flush_cache().success, "nothing runs")
    pool = pool_of(engine)
    assert pool == Pool(0, 0, 0, POOL_TOKENS, 0, 0)
    return pool


def settled_pool(engine: Any, capacity: int = POOL_TOKENS) -> Pool:
    """The pool once no request is left. Fails when anything stays locked or is lost."""

    def at_rest() -> Pool | None:
        pool = pool_of(engine)
        return pool if pool.requests == 0 and pool.protected_tokens == 0 else None

    pool = wait_until(at_rest, "the pool is at rest")
    assert (pool.programs, pool.offered) == (0, 0)
    assert pool.available_tokens + pool.evictable_tokens == capacity
    return pool


@contextmanager
def recorded_ends(engine: Any) -> Iterator[list[EndProgramReqOutput]]:
    """The scheduler's answers to end-program messages that arrive inside the block."""
    mapping = engine.tokenizer_manager._result_dispatcher._mapping
    handle = mapping[EndProgramReqOutput]
    answers: list[EndProgramReqOutput] = []

    def record(answer: EndProgramReqOutput) -> None:
        answers.append(answer)
        handle(answer)

    mapping[EndProgramReqOutput] = record
    try:
        yield answers
    finally:
        mapping[EndProgramReqOutput] = handle
