"""Recorded trees: read, and replayed under any stop rule."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sglang_dynasor.allocation import make_rule
from sglang_dynasor.offline.trees import RecordedNode, RecordedTree, read_trees, replay_tree


def leaf(name: str, answer: str, reward: float | None = 0.9, tokens: int = 5) -> RecordedNode:
    return RecordedNode(name, "s", tokens, reward, answer, answer == "7")


def tree(*leaves: RecordedNode) -> RecordedTree:
    return RecordedTree("t", [RecordedNode("s", None, 10, 0.8, None, False), *leaves])


AGREEING = tree(*(leaf(str(index), "7") for index in range(16)))


def test_without_a_rule_the_whole_tree_is_paid_for_and_votes() -> None:
    replayed = replay_tree(AGREEING, None)
    assert (replayed.is_right, replayed.tokens, replayed.leaves) == (True, 90, 16)


def test_a_rule_is_asked_after_each_leaf_and_pays_for_what_was_started() -> None:
    replayed = replay_tree(AGREEING, make_rule("dynasor", min_branches=3))
    assert replayed.leaves == 3
    assert replayed.tokens == 10 + 3 * 5


def test_a_reward_that_is_too_low_stops_nothing() -> None:
    doubtful = tree(*(leaf(str(index), "7", 0.3) for index in range(16)))
    rule = make_rule("dynasor", min_branches=3)
    assert replay_tree(doubtful, rule, reward_threshold=0.5).leaves == 16
    assert replay_tree(doubtful, rule, reward_threshold=0.2).leaves == 3


def test_the_heaviest_answer_wins_and_the_best_leaf_where_that_is_asked_for() -> None:
    mixed = tree(leaf("0", "8", 0.4), leaf("1", "8", 0.4), leaf("2", "7", 0.5), leaf("3", "9", 0.6))
    assert not replay_tree(mixed, None).is_right
    assert not replay_tree(mixed, None, vote="best").is_right
    assert replay_tree(tree(leaf("0", "8", 0.1), leaf("1", "7", 0.9)), None, vote="best").is_right


def test_a_tree_without_a_leaf_answers_nothing() -> None:
    replayed = replay_tree(tree(), make_rule("dynasor"))
    assert (replayed.is_right, replayed.tokens, replayed.leaves) == (False, 10, 0)


def test_what_was_recorded_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trees.jsonl.gz"
    nodes: list[dict[str, Any]] = [
        {"node": "0", "parent": None, "n_tokens": 10, "reward": 0.8},
        {"node": "1", "parent": "0", "n_tokens": 5, "reward": None, "answer": "7", "correct": True},
    ]
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"id": "a", "nodes": nodes}) + "\n")
    (read,) = read_trees(path)
    assert read == RecordedTree(
        "a",
        [
            RecordedNode("0", None, 10, 0.8, None, False),
            RecordedNode("1", "0", 5, None, "7", True),
        ],
    )


@pytest.mark.parametrize("line", ["{", '{"id": 1}', '{"id": 1, "nodes": [{"node": "0"}]}'])
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trees.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"trees\.jsonl:1"):
        read_trees(path)
