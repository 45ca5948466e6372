"""Cost of one ordering pass of the waiting queue, beside upstream's fcfs and lpm on the same queue.

    python benchmark/schedule_pass.py --repetitions 30

Queues of 100, 1,000 and 10,000 requests in 10 to 1,000 programs; no engine and no model. Four
passes of ours: `cold` keys every program, `typical` follows one admission and one new request of
the same program, `unchanged` follows nothing, `after` gives plain requests upstream's order again
once the last program has gone. Upstream is its own SchedulePolicy over a RadixCache that holds
every program's prompt (from 129 requests on its lpm sorts no more and becomes fcfs). The last line
is one JSON object: `ms_at_N` is the median of a typical pass of --policy where it is slowest (over
the numbers of programs), under `fcfs` and `lpm` the same of upstream's. An `after` pass that leaves
the queue otherwise than it came is an error.
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
from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.models import default_model_path
from sglang_dynasor.scheduling import POLICY_KEYS, ProgramKey, ProgramScheduler

PROGRAMS = (10, 100, 1_000)
UPSTREAM = ("fcfs", "lpm")
PASSES = ("typical", "cold", "unchanged", "after")
WORK = 12.0  # nodes each program expects to start beyond those in flight


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
    return [
        Req(
            f"{number % programs}::{number // programs}",
            "",
            prompts[number % programs],
            SamplingParams(),
        )
        for number in range(size)
    ]


def our_passes(
    queue: list[Any], programs: int, policy: str, repetitions: int
) -> dict[str, list[float]]:
    """Seconds of every kind of pass over copies of one queue."""
    times: dict[str, list[float]] = {kind: [] for kind in PASSES}
    for _ in range(min(repetitions, 5)):
        scheduler, waiting = started(queue, programs, policy)
        times["cold"].append(timed(scheduler.order, waiting))
    for _ in range(repetitions):
        change_one_program(scheduler, waiting)
        times["typical"].append(timed(scheduler.order, waiting))
        times["unchanged"].append(timed(scheduler.order, waiting))
    for _ in range(min(repetitions, 5)):
        scheduler, waiting, as_it_came = after_a_program(queue, policy)
        times["after"].append(timed(scheduler.order, waiting))
        if waiting != as_it_came:
            raise RuntimeError(f"{policy}: plain requests keep our order after the last program")
    return times


def started(queue: list[Any], programs: int, policy: str) -> tuple[ProgramScheduler, list[Any]]:
    """A scheduler that has just seen the whole queue arrive; programs differ in what they know."""
    rng = random.Random(programs)
    scheduler = ProgramScheduler(policy)
    for number in range(programs):
        demand = Demand(worth=rng.random(), work=WORK * rng.random())
        tokens = len(queue[number].origin_input_ids)
        key = ProgramKey("", str(number))
        scheduler.demand(key, demand, kind="branch", prompt_tokens=tokens, draws_seen=0)
    for req in queue:
        scheduler.arrived(req, key_of(req))
        scheduler.queued(req)
    return scheduler, list(queue)


def change_one_program(scheduler: ProgramScheduler, waiting: list[Any]) -> None:
    """The first request is admitted and finishes; its program sends it once more."""
    req = waiting.pop(0)
    scheduler.admitted([req])
    scheduler.advance(1)
    scheduler.finished(req, completed=True)
    scheduler.arrived(req, key_of(req))
    scheduler.queued(req)
    waiting.append(req)


def after_a_program(queue: list[Any], policy: str) -> tuple[ProgramScheduler, list[Any], list[Any]]:
    """Plain requests in the order of a program that has just gone, and the queue as it came."""
    scheduler = ProgramScheduler(policy)
    retracted = queue[: len(queue) // 2]  # upstream puts these last, we by their arrival
    as_it_came = [*queue[len(retracted) :], *retracted]
    for req in queue:
        scheduler.arrived(req, None)
        scheduler.queued(req)
    scheduler.admitted(retracted)
    for req in retracted:
        scheduler.queued(req)
    key = ProgramKey("", "served")
    scheduler.demand(key, Demand(), kind="branch", prompt_tokens=1, draws_seen=0)
    waiting = list(as_it_came)
    scheduler.order(waiting)
    if waiting == as_it_came:
        raise RuntimeError(f"{policy}: plain requests are not ordered beside a program")
    scheduler.end(key, "")
    return scheduler, waiting, as_it_came


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
