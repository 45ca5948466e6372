"""Full load with every fault a client can cause, and what is left afterwards.

    python benchmark/soak.py --minutes 10

Clients keep the engine full for that time. At random (seeded) they run a program, drop it or hang
up in the middle, abort it by its id, send malformed fields or the id of a running program, use an
old id again, send requests of a program that has been closed, and plain requests; every few seconds
half of the running programs are aborted at once. The pool is small, so branches are retracted too.

Afterwards the engine must be alive, its pool back to the baseline (no program, no request, no
offer, nothing locked, no token lost) and every accepted request answered. The last line of stdout
is one JSON object; `ok` says whether all of that holds, and so does the exit status.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from serving_report import facts
from sglang_dynasor.demo import add_sampling_flags
from sglang_dynasor.models import resolve_model
from soak_clients import ANSWER_LIMIT_S, SoakClients

SETTLE_LIMIT_S = 60.0


async def settled_state(engine: Any, capacity: int) -> tuple[dict[str, int], list[str]]:
    """The scheduler's state once it is back to the baseline, and what is not."""
    wanted = {"programs": 0, "requests": 0, "offered": 0, "protected_tokens": 0}
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + SETTLE_LIMIT_S
    while True:
        (reply,) = await engine.tokenizer_manager.get_internal_state()
        state: dict[str, int] = reply["dynasor"]
        left = [f"{name}: {state[name]}" for name in wanted if state[name] != wanted[name]]
        lost = capacity - state["available_tokens"] - state["evictable_tokens"]
        if lost:
            left.append(f"tokens lost: {lost}")
        if not left or loop.time() > ends_at:
            return state, left
        await asyncio.sleep(0.2)


async def soak(engine: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Run the clients and look at what they left. Everything in the engine's own event loop."""
    clients = SoakClients(engine, options)
    await clients.run()
    manager = engine.tokenizer_manager
    async with asyncio.timeout(ANSWER_LIMIT_S):
        state, left = await settled_state(engine, options.max_total_tokens)
        alive = await engine.async_generate("12+34", sampling_params={"max_new_tokens": 8})
    unanswered = len(manager.rid_to_state) + manager.branches_in_flight
    unanswered += len(manager._active_programs)
    return {
        "ok": not (left or unanswered or clients.faults),
        "minutes": options.minutes,
        "alive": alive["meta_info"]["completion_tokens"] > 0,
        "unanswered": unanswered,
        "left": left,
        "faults": clients.faults[:20],
        "state": state,
        "counts": dict(sorted(clients.counts.items())),
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_sampling_flags(parser)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--in-flight", type=int, default=48, help="clients at any time")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--settings", default="{}", help="of the engine as JSON, see DynasorConfig")
    parser.add_argument("--max-running-requests", type=int, default=32)
    parser.add_argument("--max-total-tokens", type=int, default=3072, help="of the KV pool")
    options = parser.parse_args()
    if options.minutes <= 0 or options.in_flight < 1:
        parser.error("--minutes and --in-flight must be positive")
    try:
        options.settings = json.loads(options.settings)
    except json.JSONDecodeError as error:
        parser.error(f"--settings: {error}")
    return options


def main() -> None:
    """Start an engine, soak it, print the counts, end with one line of JSON."""
    from sglang_dynasor.engine import DynasorEngine
    from sglang_dynasor.platforms import activate

    options = parse_options()
    keyed: dict[str, Any] = {"sampling_backend": "keyed"} if activate() else {}
    engine = DynasorEngine(
        model_path=str(resolve_model(options.model_path)),
        random_seed=options.seed,
        max_running_requests=options.max_running_requests,
        max_total_tokens=options.max_total_tokens,
        dynasor=options.settings,
        **keyed,
    )
    try:
        result = engine.loop.run_until_complete(soak(engine, options))
    finally:
        engine.shutdown()
    Console(stderr=True).print(result["counts"])
    options.model_path = Path(options.model_path)
    print(json.dumps({**result, **facts(options)}))
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
