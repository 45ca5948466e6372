"""Make the figures of docs/results.md again: every benchmark, one after the other.

    python tools/results.py             # all of them
    python tools/results.py demo soak   # these

Says first how long each takes on two cores. The last line of a benchmark, a JSON object, goes into
benchmark/results/NAME.json with the command, machine, commit and seconds; benchmarks also write
their rows there. The exit status is 1 when one of them failed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmark"))  # the scripts there import each other by bare names

TRACES = "test/data/tiny_reasoner_300x40.jsonl.gz"
CHAINS = "test/data/tiny_reasoner_think_200x8.jsonl.gz"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One command after the interpreter's name; `label` says what kind of figures it makes."""

    name: str
    minutes: int
    command: str
    label: str = "measured (CPU)"


SERVING = "benchmark/serving.py"
BENCHMARKS = (
    Benchmark("demo", 8, "-m sglang_dynasor.cli demo --problems 1000"),
    Benchmark("attention", 8, "benchmark/attention.py"),
    Benchmark("schedule_pass", 1, "benchmark/schedule_pass.py"),
    Benchmark("overhead", 25, "benchmark/overhead.py"),
    Benchmark("overhead_http", 10, "benchmark/overhead.py --http"),
    Benchmark("replay", 6, f"benchmark/replay.py --traces {TRACES} --seeds 200", "replayed"),
    Benchmark("chains_replay", 2, f"benchmark/replay.py --traces {CHAINS} --seeds 100", "replayed"),
    Benchmark("token_deprivation", 25, "benchmark/token_deprivation.py --problems 1000"),
    Benchmark("search", 90, "benchmark/search.py --problems 1000"),
    Benchmark(
        "certainty",
        1,
        f"benchmark/certainty_study.py --traces {TRACES} --max-branches 16",
        "replayed",
    ),
    Benchmark("soak", 12, "benchmark/soak.py --minutes 10 --policy gang-sjf"),
    Benchmark("soak_fcfs", 12, "benchmark/soak.py --minutes 10 --policy fcfs"),
    Benchmark(
        "serving",
        67,
        f"{SERVING} --arrival-seeds 5 --programs 67 --overload-programs 150 --skip-rate-gain",
    ),
    Benchmark(
        "serving_default",
        20,
        f"{SERVING} --full '{{}}' --systems lpm_fixed,client_side,full --loads 0.25,0.5,0.9,1.2 "
        "--arrival-seeds 2 --programs 67 --overload-programs 150 --skip-rate-gain",
    ),
    Benchmark(
        "serving_mix",
        8,
        f"{SERVING} --mix --systems client_side,full --loads 0.9 --programs 60 --skip-rate-gain",
    ),
    Benchmark("serving_rate", 33, f"{SERVING} --systems client_side,gang_sjf_fixed,full"),
)


def run(benchmark: Benchmark) -> bool:
    """Run one and keep its last line; whether it succeeded."""
    started = time.monotonic()
    command = [sys.executable, *shlex.split(benchmark.command)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    lines = done.stdout.splitlines()
    try:
        result = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        print(f"{benchmark.name}: no JSON in its last line, status {done.returncode}")
        return False
    kept = {
        "command": f"python {benchmark.command}",
        **facts(benchmark),
        "seconds": round(time.monotonic() - started),
        "ok": done.returncode == 0,
        "result": result,
    }
    path = ROOT / "benchmark" / "results" / f"{benchmark.name}.json"
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    print(f"{benchmark.name}: {kept['seconds']} s, {path.relative_to(ROOT)}")
    return kept["ok"] is True


def facts(benchmark: Benchmark) -> dict[str, object]:
    """What a reader needs to make the figures again, in the words of the benchmarks' rows."""
    from serving_report import facts as facts_of

    options = argparse.Namespace(model_path=Path("tiny_reasoner"), seed=0)
    return {**facts_of(options), "label": benchmark.label}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; none: all")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"names: {', '.join(sorted(unknown))}: must be of {', '.join(names)}")
    chosen = [item for item in BENCHMARKS if not options.names or item.name in options.names]
    for item in chosen:
        print(f"{item.minutes:4d} minutes  {item.name:14} python {item.command}")
    failed = [item.name for item in chosen if not run(item)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
