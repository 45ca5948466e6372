"""Every recorded branch as a chain alone: whole, under each window, under plain budgets."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from typing import Any

import numpy as np
from rich.table import Table

from sglang_dynasor.allocation.chain_rule import ChainRule
from sglang_dynasor.offline.chains import (
    ChainEffects,
    budget_figures,
    promised_levels,
    replay_chains,
    spacing_of,
)
from sglang_dynasor.offline.traces import TraceProblem

CHAIN_WINDOWS = (20, 16, 10, 8, 5, 3, 2)
CHAIN_CONFIDENCE = 0.9
BUDGET_SHARES = (0.25, 0.5, 0.75)


def chains_of(problems: list[TraceProblem]) -> dict[str, Any]:
    """Each recorded branch as a chain alone: whole, under each window, under plain budgets."""
    interval = spacing_of(problems)
    rules = [ChainRule(window) for window in CHAIN_WINDOWS]
    workers = min(os.cpu_count() or 1, len(problems))
    parts = [problems[worker::workers] for worker in range(workers)]
    with ProcessPoolExecutor(workers) as pool:
        done = [pool.submit(replay_chains, part, rules, interval) for part in parts]
        effects = joined([future.result() for future in done])
    rows: dict[str, Any] = {
        "whole": {
            "accuracy": float(effects.full_accuracy.mean()),
            "tokens": float(effects.full_tokens.mean()),
        }
    }
    for row, window in enumerate(CHAIN_WINDOWS):
        rows[f"window_{window}"] = effects.figures(row)
    longest = max(sample.n_tokens for problem in problems for sample in problem.samples)
    for share in BUDGET_SHARES:
        budget = int(share * longest)
        rows[f"budget_{budget}"] = budget_figures(problems, budget)
    promised = promised_levels(effects, interval, CHAIN_CONFIDENCE, CHAIN_WINDOWS)
    rows["promised"] = {effort: level.model_dump() for effort, level in promised.items()}
    return rows


def joined(parts: list[ChainEffects]) -> ChainEffects:
    """The effects on disjoint sets of problems, as one."""
    names = [item.name for item in fields(ChainEffects)]
    return ChainEffects(
        *(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names)
    )


def chains_table(rows: dict[str, Any]) -> Table:
    table = Table(title="single chains; every branch is one, harm by the mean of each problem's")
    columns = ("accuracy", "harm", "gain", "tokens", "tokens_saved", "probe_token_share")
    for column in ("rule", *columns):
        table.add_column(column.replace("_", " "), justify="left" if column == "rule" else "right")
    for name, row in rows.items():
        if name != "promised":
            texts = [
                ""
                if column not in row
                else f"{row[column]:.1f}"
                if column == "tokens"
                else f"{row[column]:.2%}"
                for column in columns
            ]
            table.add_row(name, *texts)
    return table
