"""The paper's evaluation on the real engine with a virtual clock: an A100 on any machine.

    python benchmark/paper.py --validate
    python benchmark/paper.py --ladder sc_gsm8k
    python benchmark/paper.py --workload sc_gsm8k

Needs aiconfigurator-core (extra `simulate`) for all but --validate and --step-times. Scheduler,
radix cache, programs and policies are the real ones; only the forward pass is predicted. Workloads
come from the frozen numbers of paper_workloads.json.

- --validate: how well the clock predicts (see `paper_validate`);
- --ladder: the paper's Figure 18, all programs at its rate: its printed seconds beside ours;
- --workload: for each system the highest rate at which 90% of the programs meet their deadline
  (the base deadline times the difficulty, 1 to 3), by bisection, `--minutes` of arrivals each, the
  first tenth of which is not counted; how much tighter deadlines could be at lpm_fixed's highest
  rate; and seconds at lower ones. `--arrivals` takes a recorded trace in place of chance, and
  `--vary` moves each assumption by a quarter and tells the lowest gains.

Every figure is virtual: it compares systems on the same predicted steps. The last line of stdout is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from paper_rates import setup_of, sweep, systems_option, vary
from paper_report import FIGURE_18, draw_ladder, write_rows
from paper_runs import served_all, spec_of
from paper_systems import LADDER, systems
from paper_workloads import device, names, programs_of, votes
from serving_report import facts
from sglang_dynasor.simulate import LABEL

RESULTS = Path(__file__).parent / "results"
LADDER_TOLERANCE = 0.2


def ladder(name: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The steps of Figure 18 beside the paper's."""
    work = votes(name)
    setup = setup_of(options, work)
    made = programs_of(work, work.rate, 0)
    every = systems(work.cap, work.detect)
    specs = [spec_of(work, made, every[step], setup) for step in LADDER]
    results = served_all(specs, options.jobs)
    rows = {}
    for step, result, printed in zip(LADDER, results, FIGURE_18[name], strict=True):
        rows[step] = {
            "mean_s": round(result.mean_s, 1),
            "paper_s": printed,
            "ratio": round(result.mean_s / printed, 3),
            "tokens": round(result.mean_tokens),
            "accuracy": round(result.accuracy, 4),
        }
    table = Table(title=f"{name}, {work.rate:g} programs/s; {LABEL}")
    for column in ("step", "mean s", "paper's s", "ratio", "tokens", "accuracy"):
        table.add_column(column)
    for step, row in rows.items():
        table.add_row(step, *map(str, row.values()))
    console.print(table)
    listed = [{"step": step, **row} for step, row in rows.items()]
    write_rows(options.output_dir / f"paper_{name}_ladder.csv", listed, facts(options))
    draw_ladder(options.output_dir / f"paper_{name}_ladder.png", name, rows)
    held = all(abs(row["ratio"] - 1) <= LADDER_TOLERANCE for row in rows.values())
    return {"workload": name, "ladder": rows, "ladder_held": held}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--validate",
        nargs="*",
        choices=("stub", "real", "digests"),
        help="how well the clock predicts; without names all three",
    )
    what.add_argument("--ladder", choices=list(FIGURE_18))
    what.add_argument("--workload", choices=names())
    parser.add_argument("--extra-ms", type=float, default=0.0, help="on each step (default: 0)")
    parser.add_argument("--step-times", type=Path, help="CSV of step_times.py, for the A100's")
    parser.add_argument("--coarse", type=int, help="steps that one stands for (votes 8, else 1)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of arrivals of each run")
    parser.add_argument("--systems", type=systems_option, help="those to rate (default: all)")
    parser.add_argument("--vary", action="store_true", help="each assumption by a quarter")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-rate", type=float, default=1.5, help="where the search begins")
    parser.add_argument("--arrivals", type=Path, help="CSV with a column TIMESTAMP, scaled")
    parser.add_argument("--jobs", type=int, default=2, help="simulations side by side")
    parser.add_argument("--output-dir", type=Path, default=RESULTS)
    parser.set_defaults(model_path=device().model, seed=0)
    return parser.parse_args()


def main() -> None:
    """Run, print, end with one line of JSON."""
    options = parse_options()
    console = Console(stderr=True)
    if options.validate is not None:
        from paper_validate import PARTS, validate

        result = validate(options.validate or list(PARTS))
    elif options.ladder:
        result = ladder(options.ladder, options, console)
    else:
        result = sweep(options.workload, options, console)
        if options.vary:
            result |= vary(options.workload, result, options, console)
    print(json.dumps(facts(options) | {"label": LABEL} | result))


if __name__ == "__main__":
    main()
