"""What the paper's evaluation compares: its own baselines and ladder, and the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from paper_trees import STEP_STOP, SearchWorkload
from paper_workloads import Workload
from sglang_dynasor.allocation import ThresholdRule
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs.params import Envelope, RequestTraits
from sglang_dynasor.programs.registry import ALGORITHMS, Algorithm
from sglang_dynasor.programs.self_consistency import SelfConsistency
from sglang_dynasor.programs.self_consistency_params import (
    SelfConsistencyParams,
    SelfConsistencySettings,
)

STATIC, UNIFORM = "paper_static", "paper_uniform"


@dataclass(frozen=True, slots=True)
class System:
    """`client`: a program of ours with these `settings` and `fields`, or a loop of the client's own
    over ordinary requests, each round a round trip later.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    client: Literal["program", "loop"] = "program"


def systems(cap: int, detect: int) -> dict[str, System]:
    """All of them, for programs of at most `cap` branches.

    - lpm_fixed, parrot: all branches at once, under upstream's order and as gangs by arrival;
    - uniform_lpm, uniform_gang, certaindex_lpm, certaindex_gang, certaindex_sjf: the steps of the
      paper's Figure 18, whose client asks for `detect` branches first, then for the rest;
    - client_side: rounds of 4, 3, 3 and the rest, the Beta rule, over upstream's order;
    - stop_lpm: our stopping alone, no branch before it is needed, under upstream's order;
    - full_lpm, full_gang: with branches drawn ahead, under other orders; full: the defaults.
    """
    most = {"algorithm": "self_consistency", "max_branches": cap}
    rounds = {**most, "grants": f"{detect},{cap - detect}"}
    at_once = {**most, "mode": "shadow"}  # the rule's decision is only noted
    static, uniform = {**rounds, "algorithm": STATIC}, {**rounds, "algorithm": UNIFORM}
    return {
        **_under_each_order(at_once, static, most),
        "uniform_lpm": System({"policy": "lpm"}, uniform),
        "uniform_gang": System({"policy": "gang"}, uniform),
        "client_side": System({"policy": "lpm"}, most, "loop"),
    }


def _under_each_order(
    at_once: Mapping[str, Any], static: Mapping[str, Any], most: Mapping[str, Any]
) -> dict[str, System]:
    """What every algorithm is compared in: all at once, the paper's policy, and ours."""
    return {
        "lpm_fixed": System({"policy": "lpm"}, at_once),
        "parrot": System({"policy": "gang"}, at_once),
        "certaindex_lpm": System({"policy": "lpm"}, static),
        "certaindex_gang": System({"policy": "gang"}, static),
        # All are worth the same there, so that this is shortest first without running ones first.
        "certaindex_sjf": System({"policy": "value"}, static),
        "stop_lpm": System({"policy": "lpm", "draw": "rounds"}, most),
        "full_lpm": System({"policy": "lpm"}, most),
        "full_gang": System({"policy": "gang"}, most),
        "full_value": System({"policy": "value"}, most),
        "full": System(fields=most),
    }


KNOBS = {"mcts": "iterations", "rebase": "width"}


def search_systems(work: SearchWorkload) -> dict[str, System]:
    """The same for searches; the paper's client asks for its first leaves first too."""
    most = {
        "algorithm": work.algorithm,
        KNOBS[work.algorithm]: work.cap,
        "step_stop": STEP_STOP,
        "depth": work.depth[1],
    }
    at_once = {**most, "mode": "shadow"}
    static = {**most, "operating_point": work.operating_point}
    judged = {"reward_verifier": "paper_trees:reward_of"}
    return {
        name: replace(system, settings={**judged, **system.settings})
        for name, system in _under_each_order(at_once, static, most).items()
    }


def systems_of(work: Workload | SearchWorkload) -> dict[str, System]:
    return systems(work.cap, work.detect) if isinstance(work, Workload) else search_systems(work)


LADDER = ("uniform_lpm", "uniform_gang", "certaindex_lpm", "certaindex_gang", "certaindex_sjf")


def with_fixed_knob(system: System, knob: int) -> System:
    """A fixed system at another number of branches, or whatever its algorithm's knob is."""
    fields = {**system.fields, KNOBS.get(system.fields["algorithm"], "max_branches"): knob}
    return replace(system, fields=fields)


def register_static(detect: int, threshold: float, cap: int) -> None:
    """The paper's static policy as an algorithm: measured once, after the first branches.

    Asked after `cap` branches only, it is the uniform one.
    """
    for name, at in ((STATIC, detect), (UNIFORM, cap)):
        rule = ThresholdRule(threshold, at, recheck=False, min_branches=at)
        ALGORITHMS[name] = Algorithm(_params_with(rule), SelfConsistency)


def _params_with(rule: ThresholdRule) -> type[SelfConsistencyParams]:
    class StaticParams(SelfConsistencyParams):
        def resolve(
            self, envelope: Envelope, config: DynasorConfig, request: RequestTraits
        ) -> SelfConsistencySettings:
            return replace(super().resolve(envelope, config, request), rule=rule)

    return StaticParams
