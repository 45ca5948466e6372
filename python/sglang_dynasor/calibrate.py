"""`sglang-dynasor calibrate`: a profile with a promise, from recorded and labelled samples."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sglang_dynasor.allocation import RULES
from sglang_dynasor.allocation.chain_profile import ChainProfile
from sglang_dynasor.allocation.chain_rule import ChainRule
from sglang_dynasor.allocation.profile import CalibrationProfile
from sglang_dynasor.allocation.profile_file import checkpoint_hash
from sglang_dynasor.certaindex import ANSWER_FORMATS, MathEquality
from sglang_dynasor.config import DRAWS, DynasorConfig
from sglang_dynasor.offline.recorded_bar import recorded_bar
from sglang_dynasor.offline.traces import TraceProblem, read_traces
from sglang_dynasor.programs import grouping_of

if TYPE_CHECKING:
    from sglang_dynasor.offline.calibration import Calibration

NOTHING_PROMISED = 3


def add_parser(commands: Any) -> None:
    """Add the subcommand to what `ArgumentParser.add_subparsers` returned."""
    defaults = DynasorConfig()
    parser = commands.add_parser(
        "calibrate", help="the most saving threshold whose harm against the full vote is bounded"
    )
    parser.add_argument(
        "--traces",
        type=Path,
        required=True,
        help="JSON lines, plain or .gz: id, gold, model, samples of answer, correct, n_tokens",
    )
    parser.add_argument(
        "--chains",
        action="store_true",
        help="of single chains of thought, from traces with probes: what each saving_effort may "
        "do, into a file for --dynasor-chain-profile",
    )
    parser.add_argument("--rule", choices=RULES, default=defaults.rule, help="default: %(default)s")
    parser.add_argument(
        "--max-harm",
        type=float,
        default=0.01,
        help="share of problems that may turn wrong, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="0 to 1 (default: %(default)s)"
    )
    parser.add_argument(
        "--min-branches",
        type=int,
        default=defaults.min_branches,
        help="finished branches below which nothing stops (default: %(default)s)",
    )
    parser.add_argument(
        "--max-branches",
        type=int,
        help="branches of the full vote "
        f"(default: {defaults.max_branches}, or as many as every problem has)",
    )
    parser.add_argument(
        "--keep-top",
        type=float,
        help="also fit the confidence bar of branch_rule deepconf, where this share of the most "
        "confident branches is, and prune the others in the replay: needs traces of `run --record`",
    )
    parser.add_argument(
        "--model-path",
        type=Path,
        help="folder of the checkpoint that gave the samples, to bind the profile to its content "
        "(default: to the name in the traces)",
    )
    parser.add_argument(
        "--draw",
        choices=DRAWS,
        default=defaults.draw,
        help="how branches start where the profile is going to serve (default: %(default)s)",
    )
    parser.add_argument(
        "--answer-format",
        choices=ANSWER_FORMATS,
        default="boxed",
        help="decides which answers are equal, as in a request (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="order of each problem's samples")
    parser.add_argument(
        "--out", type=Path, default=Path("profile.json"), help="default: %(default)s"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Calibrate and write the profile; the last line of stdout is one JSON object.

    Returns 3, and writes nothing, where nothing can be promised. Raises ValueError for unusable
    traces or options, FileNotFoundError where there are no traces.
    """
    from sglang_dynasor.offline.calibration import calibrate, default_thresholds  # loads scipy

    problems = read_traces(options.traces)
    model, checkpoint = _checkpoint(options.model_path, problems)
    if options.chains:
        return _calibrate_chains(options, problems, model, checkpoint)
    fewest = min(len(problem.samples) for problem in problems)
    max_branches = options.max_branches
    if max_branches is None:
        max_branches = min(DynasorConfig().max_branches, fewest)
    bar = group_tokens = None
    if options.keep_top is not None:
        bar, group_tokens = recorded_bar(problems, options.keep_top)
    config = DynasorConfig()
    with MathEquality(config.equality_time_limit_ms / 1000) as equality:
        result = calibrate(
            problems,
            options.rule,
            default_thresholds(options.rule),
            min_branches=options.min_branches,
            max_branches=max_branches,
            max_harm=options.max_harm,
            confidence=options.confidence,
            seed=options.seed,
            bar=bar,
            offers=options.draw == "offer",
            key_of=lambda: grouping_of(options.answer_format, config, equality).key,
        )
    console = Console(stderr=True)
    console.print(_table(result, options.rule))
    console.print(result.verdict, soft_wrap=True)
    if result.threshold is not None:
        CalibrationProfile(
            model=model,
            checkpoint_sha256=checkpoint,
            rule=options.rule,
            threshold=result.threshold,
            min_branches=options.min_branches,
            max_branches=max_branches,
            max_harm=options.max_harm,
            confidence=options.confidence,
            problems=result.n,
            harm=result.harm,
            harm_bound=result.harm_bound,
            tokens_saved=result.tokens_saved,
            created=datetime.now(UTC).date(),
            confidence_bar=bar,
            keep_top=options.keep_top,
            group_tokens=group_tokens,
        ).write(options.out)
    promised = result.threshold is not None
    summary: dict[str, Any] = {
        "rule": options.rule,
        "profile": str(options.out) if promised else None,
        "confidence_bar": bar,
    }
    print(json.dumps(summary | asdict(result)))
    return 0 if promised else NOTHING_PROMISED


def _calibrate_chains(
    options: argparse.Namespace, problems: list[TraceProblem], model: str, checkpoint: str | None
) -> int:
    from sglang_dynasor.offline.chains import WINDOWS, promised_levels, replay_chains, spacing_of

    if not 0 < options.confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1, not {options.confidence}")
    interval = spacing_of(problems)
    effects = replay_chains(problems, [ChainRule(window) for window in WINDOWS], interval)
    levels = promised_levels(effects, interval, options.confidence)
    console = Console(stderr=True)
    table = Table(title=f"chains of {len(problems)} problems, a probe each {interval} tokens")
    for column in ("window", "accuracy", "harm", "tokens saved", "probes", "promised as"):
        table.add_column(column, justify="right")
    for row, window in enumerate(WINDOWS):
        figures = effects.figures(row)
        efforts = [effort for effort, level in levels.items() if level.window == window]
        shares = ("accuracy", "harm", "tokens_saved", "probe_token_share")
        table.add_row(str(window), *(f"{figures[name]:.2%}" for name in shares), ", ".join(efforts))
    console.print(table)
    if levels:
        ChainProfile(
            model=model,
            checkpoint_sha256=checkpoint,
            confidence=options.confidence,
            problems=len(problems),
            created=datetime.now(UTC).date(),
            levels=levels,
        ).write(options.out)
    else:
        console.print(
            f"{len(problems)} problems promise nothing at {100 * options.confidence:g}% confidence"
        )
    windows = {
        str(window): effects.figures(row) | {"window": window} for row, window in enumerate(WINDOWS)
    }
    summary = {
        "profile": str(options.out) if levels else None,
        "probe_interval": interval,
        "full_accuracy": float(effects.full_accuracy.mean()),
        "levels": {effort: level.model_dump() for effort, level in levels.items()},
        "windows": windows,
    }
    print(json.dumps(summary))
    return 0 if levels else NOTHING_PROMISED


def _checkpoint(folder: Path | None, problems: list[TraceProblem]) -> tuple[str, str | None]:
    models = sorted({problem.model for problem in problems})
    if len(models) > 1:
        raise ValueError(f"--traces must be of one model, not of {', '.join(models)}")
    if folder is None:
        return models[0], None
    checkpoint = checkpoint_hash(folder)
    if checkpoint is None:
        raise ValueError(f"--model-path: no *.safetensors in {folder}")
    return folder.resolve().name, checkpoint


def _table(result: Calibration, rule: str) -> Table:
    table = Table(
        title=f"{rule} on {result.n} problems, replayed, most careful first",
        caption="for programs as they are replayed: nothing drawn beyond what the vote needs",
    )
    for column in ("threshold", "harm", "gain", "harm at most", "tokens saved", "promised"):
        table.add_column(column, justify="right")
    for setting in result.tested:
        table.add_row(
            f"{setting.threshold:g}",
            str(setting.harm),
            str(setting.gain),
            f"{setting.harm_bound:.2%}",
            f"{setting.tokens_saved:.1%}",
            "yes" if setting.promised else "no",
        )
    return table
