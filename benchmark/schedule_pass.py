"""Cost of one ordering pass of the waiting queue, beside upstream's fcfs and lpm on the same queue.

    python benchmark/schedule_pass.py --repetitions 30

Queues of 100, 1,000 and 10,000 requests in 10 to 1,000 programs; no engine and no model. Three
passes of ours: `cold` keys every program, `typical` follows one admission and one new request of
the same program, `unchanged` follows nothing. Upstream is its own SchedulePolicy over a RadixCache
that holds every program's prompt (from 129 requests on its lpm sorts no more and becomes fcfs).
The last line is one JSON object: `ms_at_N` is the median of a typical pass of --policy where it is
slowest (over the numbers of programs), under `fcfs` and `lpm` the same of upstream's.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from array import array
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from serving_report import facts
from sglang_dynasor.models import default_model_path
from sglang_dynasor.scheduling import POLICY_KEYS, ProgramKey, ProgramOrder, ProgramTable

PROGRAMS = (10, 100, 1_000)
UPSTREAM = ("fcfs", "lpm")
PASSES = ("typical", "cold", "unchanged")
STARVATION_FACTOR = 32.0
MAX_BRANCHES = 16


def main() -> None:
    """Time every pass and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="gang-sjf", choices=sorted(POLICY_KEYS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(options.sizes) < min(PROGRAMS):
        parser.error(f"--sizes must be at least {min(PROGRAMS)}")
    if options.repetitions < 1 or options.prompt_tokens < 2:
        parser.error("--repetitions must be at least 1, --prompt-tokens at least 2")
    options.model_path = default_model_path()
    upstream = {name: upstream_policy(name) for name in UPSTREAM}
    rows = {
        (size, programs): measure(size, programs, upstream, options)
        for size in options.sizes
        for programs in PROGRAMS
        if programs <= size
    }
    Console(width=150).print(table_of(rows))
    print(json.dumps(as_json(rows, options)))


def measure(
    size: int, programs: int, upstream: dict[str, Any], options: argparse.Namespace
) -> dict[str, float]:
    """Median milliseconds of every kind of pass over one queue."""
    queue = requests(size, programs, options)
    times = {}
    for policy in POLICY_KEYS:
        for kind, seconds in our_passes(queue, programs, policy, options.repetitions).items():
            times[f"{policy} {kind}"] = seconds
    for name, policy in upstream.items():
        fill_tree(policy.tree_cache, queue)
        times[name] = [timed(policy.calc_priority, list(queue)) for _ in range(options.repetitions)]
    return {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}


def requests(size: int, programs: int, options: argparse.Namespace) -> list[Any]:
    """Upstream's own requests; those of one program, which share its prompt, come in turns."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    rng = random.Random(options.seed)
    prompts = [
        array("q", [rng.randrange(100) for _ in range(options.prompt_tokens)])
        for _ in range(programs)
    ]
    queue = []
    for number in range(size):
        rid = f"{number % programs}::{number // programs}"
        req = Req(rid, "", prompts[number % programs], SamplingParams())
        req.arrival = number
        queue.append(req)
    return queue


def our_passes(
    queue: list[Any], programs: int, policy: str, repetitions: int
) -> dict[str, list[float]]:
    """Seconds of cold, typical and unchanged passes over copies of one queue."""
    times: dict[str, list[float]] = {kind: [] for kind in PASSES}
    for _ in range(min(repetitions, 5)):
        table, order, waiting = started(queue, programs, policy)
        times["cold"].append(timed(order.sort, waiting))
    for _ in range(repetitions):
        change_one_program(table, waiting)
        times["typical"].append(timed(order.sort, waiting))
        times["unchanged"].append(timed(order.sort, waiting))
    return times


def started(
    queue: list[Any], programs: int, policy: str
) -> tuple[ProgramTable, ProgramOrder, list[Any]]:
    """A table that has just seen the whole queue arrive; programs differ in what they know."""
    rng = random.Random(programs)
    table = ProgramTable()
    for number in range(programs):
        key = ProgramKey("", str(number))
        table.open(key, "self_consistency", len(queue[number].origin_input_ids), MAX_BRANCHES)
        table.report(
            key,
            certaindex=rng.random(),
            needed=None,
            worth=rng.random(),
            values=(),
            draws_seen=0,
        )
    for req in queue:
        table.add(key_of(req), req.rid)
        table.enqueue(req)
    return table, ProgramOrder(table, policy, STARVATION_FACTOR), list(queue)


def change_one_program(table: ProgramTable, waiting: list[Any]) -> None:
    """The first request is admitted and finishes; its program sends it once more."""
    req = waiting.pop(0)
    table.admit(req.rid)
    table.advance(1)
    table.retire(req.rid, 40, completed=True)
    table.add(key_of(req), req.rid)
    table.enqueue(req)
    waiting.append(req)


def key_of(req: Any) -> ProgramKey:
    return ProgramKey("", req.rid.partition("::")[0])


def upstream_policy(name: str) -> Any:
    """Upstream's policy object on a prefix cache without memory pools."""
    from sglang.srt.managers.schedule_policy import SchedulePolicy
    from sglang.srt.mem_cache.radix_cache import RadixCache
    from sglang.srt.runtime_context import publish
    from sglang.srt.server_args import ServerArgs

    publish(ServerArgs(model_path=str(default_model_path())), role="scheduler")
    return SchedulePolicy(name, RadixCache.create_simulated(), False, False, False)


def fill_tree(tree: Any, queue: list[Any]) -> None:
    from sglang.srt.mem_cache.base_prefix_cache import InsertParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    tree.reset()
    for ids in {req.origin_input_ids.tobytes(): req.origin_input_ids for req in queue}.values():
        tree.insert(InsertParams(key=RadixKey(ids)))


def timed(action: Callable[[list[Any]], None], queue: list[Any]) -> float:
    start = time.perf_counter()
    action(queue)
    return time.perf_counter() - start


def table_of(rows: dict[tuple[int, int], dict[str, float]]) -> Table:
    table = Table(title="one ordering pass, milliseconds (median)")
    for column in ("requests", "programs", *next(iter(rows.values()))):
        table.add_column(column, justify="right")
    for (size, programs), row in rows.items():
        table.add_row(str(size), str(programs), *[f"{value:.3f}" for value in row.values()])
    return table


def as_json(
    rows: dict[tuple[int, int], dict[str, float]], options: argparse.Namespace
) -> dict[str, Any]:
    def at(name: str) -> dict[str, float]:
        return {
            f"ms_at_{size}": round(max(row[name] for key, row in rows.items() if key[0] == size), 4)
            for size in options.sizes
        }

    return {
        **at(f"{options.policy} typical"),
        **{name: at(name) for name in UPSTREAM},
        **{name: {kind: at(f"{name} {kind}") for kind in PASSES} for name in POLICY_KEYS},
        "policy": options.policy,
        **facts(options),
    }


if __name__ == "__main__":
    main()
