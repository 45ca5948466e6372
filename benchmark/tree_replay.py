"""Stop rules replayed on recorded trees of searches.

    python benchmark/tree_replay.py --traces trees.jsonl.gz
    python benchmark/tree_replay.py --traces tree_game24_gpt4_tot_b5.jsonl.gz --game24

Trees are what `sglang-dynasor run --record` writes of a search, or, with `--game24`, those of
GPT-4's tree of thoughts, whose last step holds the answers and whose values are the rewards. The
rule is asked after each leaf, in the order of their start. `harm` counts problems that the whole
tree has right and the rule wrong, `gain` the reverse. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sglang_dynasor.allocation import make_rule
from sglang_dynasor.offline.traces import read_lines
from sglang_dynasor.offline.trees import RecordedNode, RecordedTree, read_trees, replay_tree

# Name, threshold, reward threshold, leaves at least: the package's rules, the paper's points.
RULES: dict[str, tuple[str, float | None, float | None, int]] = {
    "dynasor": ("dynasor", None, None, 3),
    "beta": ("beta", None, None, 3),
    "decided": ("decided", None, None, 3),
    "threshold 0.75 at 16 (rebase math)": ("threshold", 0.75, None, 16),
    "threshold 0.85, reward 0.99 at 16 (rebase gsm8k)": ("threshold", 0.85, 0.99, 16),
    "threshold 0.99, reward 0.4 at 3 (mcts gsm8k)": ("threshold", 0.99, 0.4, 3),
    "reward 0.4 at 3 (mcts asdiv)": ("threshold", 0.0, 0.4, 3),
}
HIGHEST_VALUE = 60.0  # of a state that GPT-4 calls sure three times


def read_game24(path: Path) -> list[RecordedTree]:
    """Trees of the GPT-4 traces: a candidate's parent is the selected state it begins with."""
    problems = [json.loads(line) for _, line in read_lines(path)]
    return [RecordedTree(str(given["id"]), _nodes(given)) for given in problems]


def _nodes(given: dict[str, Any]) -> list[RecordedNode]:
    nodes: list[RecordedNode] = []
    selected: list[tuple[str, str, int]] = []  # text, name, tokens
    last = len(given["steps"]) - 1
    for step in given["steps"]:
        states = []
        for index, candidate in enumerate(step["candidates"]):
            text, name = candidate["text"], f"{step['step']}x{index}"
            above = [state for state in selected if text.startswith(state[0])]
            parent = max(above, key=lambda state: len(state[0]), default=None)
            before = parent[2] if parent else 0
            answer = (
                text.strip().splitlines()[-1] if step["step"] == last and text.strip() else None
            )
            nodes.append(
                RecordedNode(
                    node=name,
                    parent=parent[1] if parent else None,
                    n_tokens=max(1, candidate["n_tokens_total"] - before),
                    reward=min(1.0, max(0.0, float(candidate["value"])) / HIGHEST_VALUE),
                    answer=answer,
                    # Only the problem's verdict is recorded: its best leaf stands for it.
                    correct=bool(given["solved"]) and bool(candidate["selected"]),
                )
            )
            if candidate["selected"]:
                states.append((text, name, candidate["n_tokens_total"]))
        selected = states
    return nodes


def main() -> None:
    """Replay every rule, print a table, end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--game24", action="store_true", help="of GPT-4's tree of thoughts")
    parser.add_argument("--vote", default="weighted", choices=("weighted", "majority", "best"))
    parser.add_argument("--aggregate", default="max", choices=("max", "mean"))
    options = parser.parse_args()
    trees = read_game24(options.traces) if options.game24 else read_trees(options.traces)
    how: dict[str, Any] = {"vote": options.vote, "aggregate": options.aggregate}
    whole = [replay_tree(tree, None, **how) for tree in trees]
    spent = sum(one.tokens for one in whole)
    rows: dict[str, dict[str, Any]] = {"whole tree": _row(whole, whole, spent)}
    for title, (name, threshold, reward, leaves) in RULES.items():
        rule = make_rule(name, threshold=threshold, min_branches=leaves)
        found = [replay_tree(tree, rule, **how, reward_threshold=reward) for tree in trees]
        rows[title] = _row(found, whole, spent)
    table = Table(title=f"{len(trees)} recorded trees (replayed)")
    for column in ("rule", *next(iter(rows.values()))):
        table.add_column(column.replace("_", " "))
    for title, row in rows.items():
        table.add_row(title, *map(str, row.values()))
    Console(width=150).print(table)
    print(json.dumps({"trees": len(trees), "rules": rows, "label": "replayed"}))


def _row(found: list[Any], whole: list[Any], spent: int) -> dict[str, Any]:
    pairs = list(zip(whole, found, strict=True))
    return {
        "accuracy": round(sum(one.is_right for one in found) / len(found), 4),
        "tokens_saved": round(1 - sum(one.tokens for one in found) / spent, 4),
        "leaves": round(sum(one.leaves for one in found) / len(found), 2),
        "harm": sum(w.is_right and not f.is_right for w, f in pairs),
        "gain": sum(f.is_right and not w.is_right for w, f in pairs),
    }


if __name__ == "__main__":
    main()
