"""Full load with every fault that clients and operators cause, and what is left afterwards.

    python benchmark/soak.py --minutes 10 --policy gang-sjf

Two tenants that use the same program ids keep a server full for that time, over HTTP on loopback:
programs of every kind, own loops that only send an id, streams, batches, plain requests; aborts by
program id and by request id, clients that vanish at every stage, malformed and repeated requests,
deadlines, fresh grammars, prompts longer than a prefill chunk, a bounded queue that refuses, a KV
pool so small that branches are retracted; half of a tenant's programs aborted at once, everything
aborted, pauses. The sums asked tell the tenant (soak_answers.py). It is seeded; the order of events
is the machine's.

The last line of stdout is one JSON object:
  programs          sent, those of vanished clients included
  unanswered        requests without a proper answer (a full queue's 503 is one) in 90 s
  wrong_tenant      answers with the other tenant's content, or ended by the other one's abort
  kv_tokens_leaked  of the pool, a minute after the last client at most
  table_entries     programs, requests and offers the scheduler then remembers
  rss_growth_mb     median over the run's second half less the first's, all server processes
`ok` says that these are 0, 0, 0, 0 and at most 8 MB, that no other fault was seen, and that the
server lives, also after requests that end SGLang itself. So does the exit status.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from serving_report import facts
from sglang_dynasor.config import POLICIES
from soak_clients import SoakClients
from soak_server import SoakServer, drained, started_server

RSS_GROWTH_LIMIT_MB = 8.0
SHOWN = 20  # kinds of fault


async def soak(server: SoakServer, options: argparse.Namespace) -> dict[str, Any]:
    """Run the clients and look at what they left."""
    before = server.pool()
    clients = SoakClients(server, options)
    watch = asyncio.create_task(server.watch_memory())
    await clients.run()
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    leaked = entries = -1  # a server that has ended says nothing
    if server.alive:
        leaked, entries = await drained(server, before)
        await clients.ask_again()
    log = server.log_counts()
    if server.alive:
        await clients.send_deadly()
    verdicts = clients.verdicts
    return {
        "programs": clients.programs,
        "unanswered": len(verdicts.unanswered),
        "wrong_tenant": len(verdicts.wrong_tenant),
        "kv_tokens_leaked": leaked,
        "table_entries": entries,
        "rss_growth_mb": server.growth["all"],
        "alive": server.alive,
        "faults": len(verdicts.faults),
        "refused": verdicts.refused,
        "deadline_overrun_s": round(verdicts.deadline_overrun_s, 2),
        "rss_growth_by_process_mb": server.growth,
        "rss_mb": [
            round(sum(sample.values()))
            for sample in server.memory[:: max(1, len(server.memory) // 10)]
        ],
        "log": log,
        "counts": dict(sorted(verdicts.counts.items())),
        "examples": {
            "unanswered": tally(verdicts.unanswered),
            "wrong_tenant": tally(verdicts.wrong_tenant),
            "faults": tally(verdicts.faults),
        },
    }


def tally(found: Iterable[str]) -> dict[str, int]:
    """How often each kind was seen; numbers and ids make no kind of their own."""
    return dict(Counter(re.sub(r"\d+", "#", text) for text in found).most_common(SHOWN))


def is_clean(result: dict[str, Any]) -> bool:
    """Whether every bar is met."""
    zeros = ("unanswered", "wrong_tenant", "kv_tokens_leaked", "table_entries", "faults")
    calm = result["rss_growth_mb"] <= RSS_GROWTH_LIMIT_MB
    return bool(result["alive"]) and calm and not any(result[name] for name in zeros)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--policy", choices=POLICIES, default="gang-sjf")
    parser.add_argument("--in-flight", type=int, default=32, help="clients at any time")
    parser.add_argument("--model-path", default="tiny_reasoner", help="directory or embedded name")
    parser.add_argument("--temperature", type=float, default=1.6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-running-requests", type=int, default=32)
    parser.add_argument("--max-queued-requests", type=int, default=256)
    parser.add_argument("--max-total-tokens", type=int, default=3072, help="of the KV pool")
    parser.add_argument("--chunked-prefill-size", type=int, default=64)
    parser.add_argument("--log", type=Path, help="keep the server's log here")
    options = parser.parse_args()
    if options.minutes <= 0 or options.in_flight < 1:
        parser.error("--minutes and --in-flight must be positive")
    return options


def main() -> None:
    """Start a server, soak it, print what happened, end with one line of JSON."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        log = options.log or Path(folder) / "server.log"
        with started_server(options, log) as server:
            result = asyncio.run(soak(server, options))
            if not server.alive:
                print(server.log_end(), file=sys.stderr)
    Console(stderr=True).print(result["counts"], result["examples"])
    told = {"ok": is_clean(result), "minutes": options.minutes, "policy": options.policy}
    options.model_path = Path(options.model_path)
    print(json.dumps({**result, **told, **facts(options)}))
    sys.exit(0 if told["ok"] else 1)


if __name__ == "__main__":
    main()
