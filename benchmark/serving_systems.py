"""What the serving benchmark compares, and the kinds of programs it can mix."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal

from serving_clients import STEP_STOP


@dataclass(frozen=True, slots=True)
class System:
    """What is compared: who runs the programs, and the settings of the engine.

    `client`: "fixed" and "loop" send ordinary requests to the stock engine under `policy`;
    "program" sends one program to ours, with `settings` and the request fields `fields`.
    """

    client: Literal["fixed", "loop", "program"]
    policy: str = "fcfs"
    settings: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


NEVER_STOPS = {"mode": "shadow"}  # every branch runs; the rule's decision is only noted
SYSTEMS = {
    "lpm_fixed": System("fixed", "lpm"),
    "fcfs_fixed": System("fixed", "fcfs"),
    "client_side": System("loop", "lpm"),
    "gang_fixed": System("program", settings={"policy": "gang"}, fields=NEVER_STOPS),
    "gang_sjf_fixed": System("program", settings={"policy": "gang-sjf"}, fields=NEVER_STOPS),
    "certaindex_lpm": System("program", "lpm", settings={"policy": "lpm", "draw": "rounds"}),
    "certaindex_gang": System("program", settings={"policy": "gang", "draw": "rounds"}),
    "full": System("program"),
}
MIXABLE = ("full",)  # beside the clients of the stock engine
KINDS = ("vote", "chain", "rebase")
# Of a mix, in an engine of its own for each system.
REWARDS = {"reward_model_path": "tiny_reward"}


def kind_of(index: int, mix: bool) -> str:
    """What a problem is asked as: by chance, for difficulties come in turn."""
    return random.Random(f"kind:{index}").choice(KINDS) if mix else "vote"


def kind_fields(kind: str, max_branches: int) -> dict[str, Any]:
    """The fields of a program of ours: the defaults, and the knob that all systems have."""
    return {
        "vote": {"algorithm": "self_consistency", "max_branches": max_branches},
        "chain": {"algorithm": "cot"},
        "rebase": {"algorithm": "rebase", "width": max_branches, "step_stop": STEP_STOP},
    }[kind]
