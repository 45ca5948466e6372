"""Recorded trees: what a search came to, and what a stop rule would have made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_dynasor.allocation import AdaptiveGrants, DecidedRule, StopRule
from sglang_dynasor.certaindex import canonical_key
from sglang_dynasor.certaindex.reward import RewardAggregate
from sglang_dynasor.offline.traces import read_lines
from sglang_dynasor.programs.leaf_votes import Leaf, LeafVotes
from sglang_dynasor.programs.protocol import Finished
from sglang_dynasor.programs.search_params import SearchSettings, SearchVote


@dataclass(frozen=True, slots=True)
class RecordedNode:
    """A step of a recorded path; `answer` is None where the path went on."""

    node: str
    parent: str | None
    n_tokens: int
    reward: float | None
    answer: str | None
    correct: bool


@dataclass(frozen=True, slots=True)
class RecordedTree:
    """A problem's nodes in the order in which they were started."""

    id: str
    nodes: Sequence[RecordedNode]


@dataclass(frozen=True, slots=True)
class ReplayedTree:
    """Where a rule stops: whether the answer is right, what had been spent, how many leaves."""

    is_right: bool
    tokens: int
    leaves: int


def read_trees(path: Path) -> list[RecordedTree]:
    """Read what `sglang-dynasor run --record` writes of a search.

    Raises ValueError naming file and line.
    """
    trees = []
    for number, line in read_lines(path):
        try:
            given = json.loads(line)
            nodes = [
                RecordedNode(
                    node=str(node["node"]),
                    parent=node["parent"],
                    n_tokens=int(node["n_tokens"]),
                    reward=node["reward"],
                    answer=node.get("answer"),
                    correct=bool(node.get("correct", False)),
                )
                for node in given["nodes"]
            ]
            trees.append(RecordedTree(str(given["id"]), nodes))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: {type(error).__name__}: {error}") from None
    if not trees:
        raise ValueError(f"{path}: has no trees")
    return trees


def replay_tree(
    tree: RecordedTree,
    rule: StopRule | None,
    *,
    vote: SearchVote = "weighted",
    aggregate: RewardAggregate = "max",
    reward_threshold: float | None = None,
) -> ReplayedTree:
    """Ask `rule` after each leaf, None: never; what was started before it is paid for.

    Answers are grouped by their canonical key.
    """
    leaves = [node for node in tree.nodes if node.answer is not None]
    if not leaves:
        return ReplayedTree(False, sum(node.n_tokens for node in tree.nodes), 0)
    judge = rule or DecidedRule()
    votes = LeafVotes(
        SearchSettings(
            max_branches=len(leaves),
            rule=judge,
            grants=AdaptiveGrants(judge),
            vote=vote,
            aggregate=aggregate,
            reward_threshold=reward_threshold,
            judged=any(node.reward is not None for node in leaves),
        )
    )
    correct: dict[str, bool] = {}
    tokens = 0
    for node in tree.nodes:
        tokens += node.n_tokens
        if node.answer is None:
            continue
        group = canonical_key(node.answer)
        correct[group] = correct.get(group, False) or node.correct
        event = Finished(node.node, "", node.n_tokens, "completed", node.answer, group)
        votes.add(Leaf(event, node.reward))
        if rule is not None and votes.decide():
            break
    leader = votes.leader
    is_right = leader is not None and correct[canonical_key(leader.answer)]
    return ReplayedTree(is_right, tokens, len(votes.leaves))
