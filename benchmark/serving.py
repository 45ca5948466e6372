"""Programs arriving at an engine that is too small for them: eight systems on the same work.

    python benchmark/serving.py --systems client_side,gang_sjf_fixed,full

Every system gets an engine of its own (2.5 GB each, all at once), the same problems at the same
moments (Poisson, or `--arrivals` of a recorded trace) and the same draws, so that branch i of a
problem is the same sample everywhere; they take turns, arrival seed by arrival seed:

- lpm_fixed, fcfs_fixed: the stock engine under either policy, 16 requests a program, majority vote;
- client_side: a loop over the stock engine (lpm): rounds of 4, 3, 3 and 6, Beta rule, aborts;
- gang_fixed, gang_sjf_fixed: our engine, order of programs only: all 16 branches run;
- certaindex_lpm, certaindex_gang: our stopping in rounds, under upstream's order and under gangs;
- full: the defaults of the package, or them with `--full '{"policy": "value"}'`.

lpm_fixed always runs: its closed-loop throughput is the capacity of which `--loads` are
multiples, and a program's deadline is 3 times the mean latency of its difficulty there, one program
at a time. Arrivals are open loop: no program waits for another to finish, and latency runs from the
scheduled arrival. The first tenth is discarded; the run ends `--grace` seconds after the last
arrival, and what is unfinished then has missed its deadline.

With `--mix` a third of the programs are votes, a third chains of thought and a third Rebase with a
reward model: fixed sends each chain to its end and one tree of 16 leaves; client_side ends a chain
as the released client does and grows trees in its rounds; full leaves all to the defaults.

Rate gain: the highest rate at which 90% meet their deadline, by bisection to 5%; `rate_gain_at_p90`
is full's over lpm_fixed's, `rate_gain_client_side` client_side's over lpm_fixed's. The last line of
stdout is one JSON object: per system, lists over the loads (see `serving_load.figures`).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import statistics
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from serving_load import (
    Counted,
    Measurements,
    Outcome,
    Run,
    attainment,
    counted_from,
    highest_rate,
    poisson_arrivals,
    steady_rate,
    trace_arrivals,
)
from serving_process import Worker, started_worker
from serving_report import as_json, print_tables, write_charts, write_csv
from serving_systems import MIXABLE, SYSTEMS, kind_of
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.demo import add_sampling_flags, is_right, load_problems
from sglang_dynasor.models import recommended_temperature, resolve_model

ROOT = Path(__file__).resolve().parents[1]
BASE = "lpm_fixed"
RATED = (BASE, "client_side", "full")  # whose highest rate is searched
DEADLINE_FACTOR = 3.0
UNLOADED_PER_GROUP = 12
WARM_UP_PROBLEMS = 16
CLOSED_LIMIT_S = 1800.0


class Benchmark:
    """Measures all systems in turns."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.done = Measurements()
        self._options = options
        self._console = console
        # Beyond capacity the queue grows as long as programs arrive.
        self._sizes = {
            load: options.programs if load <= 1 else options.overload_programs
            for load in options.loads
        }
        self._model = resolve_model(options.model_path)
        wanted = max(options.arrival_seeds * max(self._sizes.values()), 3 * options.in_flight)
        self._problems = load_problems(options.problems_file, wanted, options.seed)
        if len(self._problems) < wanted:
            console.print(f"{len(self._problems)} problems for {wanted} programs: some come again")

    def measure(self, systems: list[str]) -> Measurements:
        """Run all of them. Raises RuntimeError where an engine fails.

        The systems take turns, arrival seed by arrival seed and each time the other way round, so
        that a machine whose speed drifts is the same to all.
        """
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for system in systems:
                self._console.print(f"{system}: starting the engine")
                started = started_worker(system, self._spec(system))
                workers[system] = stack.enter_context(started)
            self._measure_capacity(workers[BASE])
            for seed in range(self._options.arrival_seeds):
                for system in systems if seed % 2 == 0 else reversed(systems):
                    self._take_turn(workers[system], system, seed)
        return self.done

    def _take_turn(self, worker: Worker, system: str, seed: int) -> None:
        for load, count in self._sizes.items():
            self._run(worker, system, load, load * self.done.capacity, seed, count)
        if system in RATED and not self._options.skip_rate_gain:
            self.done.highest_rates[system].append(self._search(worker, system, seed))

    def _spec(self, system: str) -> dict[str, Any]:
        options = self._options
        temperature = options.temperature
        if temperature is None:
            temperature = recommended_temperature(self._model) or 1.0
        given = options.full if system == "full" else {}
        file = options.problems_file
        return {
            "system": system,
            "settings": {**SYSTEMS[system].settings, **given},
            "model": str(self._model),
            "problems_file": str(file) if file else None,
            "problems": len(self._problems),
            "seed": options.seed,
            "sampling": {"temperature": temperature, "max_new_tokens": options.max_new_tokens},
            "max_branches": options.max_branches,
            "mix": options.mix,
            "max_running_requests": options.max_running_requests,
            "max_total_tokens": options.max_total_tokens,
            "warm_up": self._indices(0, WARM_UP_PROBLEMS),
        }

    def _measure_capacity(self, worker: Worker) -> None:
        """Closed-loop throughput while all places are taken, and latencies without any load."""
        in_flight = self._options.in_flight
        command = {
            "op": "closed",
            "problems": self._indices(0, 3 * in_flight),
            "in_flight": in_flight,
        }
        reply = worker.ask(command, CLOSED_LIMIT_S)
        self.done.capacity = steady_rate(reply["ended_s"], reply["last_start_s"])
        groups = [self._group(index) for index in range(len(self._problems))]
        alone = _alone(groups)
        reply = worker.ask({"op": "closed", "problems": alone, "in_flight": 1}, CLOSED_LIMIT_S)
        seconds = defaultdict(list)
        for index, outcome in zip(alone, reply["outcomes"], strict=True):
            seconds[groups[index]].append(outcome["latency_s"])
        self.done.unloaded_s = {key: statistics.fmean(values) for key, values in seconds.items()}
        self._console.print(
            f"capacity: {self.done.capacity:.2f} programs/s; unloaded seconds by difficulty: "
            + ", ".join(f"{key}: {value:.3f}" for key, value in self.done.unloaded_s.items())
        )

    def _run(
        self, worker: Worker, system: str, load: float | None, rate: float, seed: int, count: int
    ) -> Run:
        arrivals = self._arrivals(count, rate, seed)
        # Every arrival seed has problems of its own, so that harm is counted on distinct ones; they
        # come shuffled, for the embedded model's take the difficulties in turn.
        indices = self._indices(seed * max(self._sizes.values()), count)
        random.Random(f"order:{seed}").shuffle(indices)
        grace_s = self._options.grace
        command = {"op": "open", "problems": indices, "arrivals": arrivals, "grace_s": grace_s}
        reply = worker.ask(command, arrivals[-1] + grace_s + 120)
        programs = [
            self._counted(index, Outcome(**outcome))
            for index, outcome in zip(indices, reply["outcomes"], strict=True)
        ]
        run = Run(
            system,
            load,
            rate,
            seed,
            programs[counted_from(count) :],
            reply["worst_lag_s"],
            reply["client_cpu"],
        )
        self.done.runs.append(run)
        mean = statistics.fmean(program.outcome.latency_s for program in run.programs)
        self._console.print(
            f"{system}: {rate:.2f} programs/s, seed {seed}: mean {mean:.2f} s, "
            f"attainment {attainment(run.programs):.1%}"
        )
        return run

    def _search(self, worker: Worker, system: str, seed: int) -> float:
        """The highest rate of one system and arrival seed; its loads are the first points."""
        points = {
            run.rate: attainment(run.programs)
            for run in self.done.runs
            if (run.system, run.seed) == (system, seed)
        }

        def attainment_at(rate: float) -> float:
            count = math.ceil(self._options.search_seconds * rate)
            return attainment(self._run(worker, system, None, rate, seed, count).programs)

        return highest_rate(attainment_at, points)

    def _arrivals(self, count: int, rate: float, seed: int) -> list[float]:
        if self._options.arrivals is None:
            return poisson_arrivals(count, rate, seed)
        return trace_arrivals(self._options.arrivals, count, rate, seed)

    def _indices(self, first: int, count: int) -> list[int]:
        return [(first + offset) % len(self._problems) for offset in range(count)]

    def _group(self, index: int) -> str:
        """Programs whose deadline is the same."""
        difficulty = self._problems[index].difficulty
        return f"{kind_of(index, True)} {difficulty}" if self._options.mix else difficulty

    def _counted(self, index: int, outcome: Outcome) -> Counted:
        problem = self._problems[index]
        everyone = statistics.fmean(self.done.unloaded_s.values())
        unloaded = self.done.unloaded_s.get(self._group(index), everyone)
        right = is_right(problem, outcome.answer)
        kind = kind_of(index, self._options.mix)
        return Counted(outcome, DEADLINE_FACTOR * unloaded, right, kind)


def _alone(groups: list[str]) -> list[int]:
    """A few problems of every group, from the end: the warm-up has seen the first ones."""
    chosen: dict[str, list[int]] = defaultdict(list)
    for index in reversed(range(len(groups))):
        of_its_group = chosen[groups[index]]
        if len(of_its_group) < UNLOADED_PER_GROUP:
            of_its_group.append(index)
    return [index for indices in chosen.values() for index in indices]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_sampling_flags(parser)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="names, commas between them")
    parser.add_argument("--full", default="{}", help="settings of full as JSON, see DynasorConfig")
    parser.add_argument("--programs", type=int, default=150, help="per run")
    parser.add_argument("--overload-programs", type=int, default=300, help="beyond load 1")
    parser.add_argument("--max-branches", type=int, default=16)
    parser.add_argument("--mix", action="store_true", help="votes, chains and Rebase together")
    parser.add_argument("--loads", default="0.5,0.9,1.2", help="multiples of the capacity")
    parser.add_argument("--arrival-seeds", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--arrivals", type=Path, help="CSV with a column TIMESTAMP, scaled")
    parser.add_argument("--grace", type=float, default=60.0, help="after the last arrival, seconds")
    parser.add_argument("--in-flight", type=int, default=64, help="programs, to find the capacity")
    parser.add_argument("--max-running-requests", type=int, default=32)
    parser.add_argument("--max-total-tokens", type=int, default=8192, help="of the KV pool")
    parser.add_argument("--skip-rate-gain", action="store_true")
    parser.add_argument(
        "--search-seconds",
        type=float,
        default=45.0,
        help="of arrivals in each step of a search; a batch takes a short burst of any rate",
    )
    parser.add_argument("--output-dir", type=Path, default=ROOT / "benchmark" / "results")
    parser.add_argument("--plots", type=Path, help="folder of the charts (default: --output-dir)")
    options = parser.parse_args()
    for name in (
        "programs",
        "overload_programs",
        "arrival_seeds",
        "in_flight",
        "max_branches",
        "grace",
        "search_seconds",
    ):
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    chosen = options.systems.split(",")
    unknown = set(chosen) - set(SYSTEMS)
    if unknown:
        parser.error(
            f"--systems: unknown {', '.join(sorted(unknown))}; known: {', '.join(SYSTEMS)}"
        )
    options.systems = [name for name in SYSTEMS if name in {BASE, *chosen}]
    if options.mix and any(
        SYSTEMS[name].client == "program" and name not in MIXABLE for name in options.systems
    ):
        parser.error(f"--mix: of our systems only {', '.join(MIXABLE)} runs all kinds")
    try:
        options.loads = [float(load) for load in options.loads.split(",")]
    except ValueError:
        options.loads = []
    if not options.loads or min(options.loads) <= 0:
        parser.error("--loads must be positive numbers, commas between them")
    if options.arrivals is not None and not options.arrivals.is_file():
        parser.error(f"--arrivals: {options.arrivals} is no file")
    try:
        options.full = json.loads(options.full)
        DynasorConfig.parse(options.full)
    except (ValueError, TypeError) as error:
        parser.error(f"--full: {error}")
    return options


def main() -> None:
    """Measure, print tables, write rows and charts, end with one line of JSON."""
    options = parse_options()
    # Ended by a signal, the engines must end too: they are in process groups of their own.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console = Console(stderr=True)
    done = Benchmark(options, console).measure(options.systems)
    result = as_json(done, options)
    print_tables(result, options)
    write_csv(result, options)
    write_charts(done, options)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
