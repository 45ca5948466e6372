"""What a program has come to: its outcome, and every node it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sglang_dynasor.programs.client import Generated
from sglang_dynasor.programs.protocol import Finished, Outcome


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """An outcome and the nodes it cost, by name; `n_tokens` of each is exact.

    `started` are all nodes in the order of their first start. `cancelled` ones had not ended, or
    too late to be counted; `trimmed` ones were cancelled before to make room, and may have been
    started again; `failed` maps a node to its error; `drawn` ran only because there was room.

    `sequential_tokens` is the longest path that had to be waited for: the path of a node is its own
    tokens on top of the longest path that had ended when it was started. Nodes that were
    cancelled count where they were waited for in vain, up to the deadline. `inactive` says which
    answers could not be compared, or "". `probe_tokens` are what probes generated, `reward_tokens`
    what the reward model has read; `continued` nodes are the parents of others, so that no path
    ends with them. `parents` and `rewards` are those of the nodes that have one.
    """

    outcome: Outcome
    finished: dict[str, Finished]
    cancelled: dict[str, Generated] = field(default_factory=dict)
    trimmed: tuple[tuple[str, Generated], ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    drawn: frozenset[str] = frozenset()
    started: tuple[str, ...] = ()
    sequential_tokens: int = 0
    inactive: str = ""
    probe_tokens: int = 0
    reward_tokens: int = 0
    continued: frozenset[str] = frozenset()
    parents: Mapping[str, str] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)
