"""Search programs: what they widen, when they stop, and what they do without a reward model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.allocation import make_rule
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.errors import RequestError
from sglang_dynasor.programs import Finished, ProgramSpec, Start
from sglang_dynasor.programs.beam import widen_best, widen_best_of_trees
from sglang_dynasor.programs.params import RequestTraits
from sglang_dynasor.programs.protocol import (
    Aborted,
    Action,
    Ask,
    Expired,
    Failed,
    Granted,
    Outcome,
    Regrouped,
    Score,
    Scored,
    Trimmed,
)
from sglang_dynasor.programs.rebase import widen
from sglang_dynasor.programs.recorded import Replayed, replay_nodes
from sglang_dynasor.programs.search_params import SearchSettings
from sglang_dynasor.programs.tree_search import TreeNode
from support.arithmetic_world import RIGHT, ArithmeticWorld

JUDGED = DynasorConfig.parse({"reward_verifier": "some:function"})
KNOBS = {
    "best_of_n": "max_branches",
    "rebase": "width",
    "beam": "width",
    "dvts": "width",
    "mcts": "iterations",
}
SHARES_STEPS = ("rebase", "beam", "dvts")  # within a wave of leaves
STEPPED = [name for name in KNOBS if name != "best_of_n"]


def resolved(fields: dict[str, Any], config: DynasorConfig = JUDGED) -> Any:
    return ProgramSpec.parse(fields).resolve(config)


def search(fields: dict[str, Any], world: ArithmeticWorld, config: Any = JUDGED) -> Replayed:
    program = resolved(fields, config).build()
    return replay_nodes(program, world.generate, reward_of=world.reward)


def fixed(algorithm: str, knob: int) -> dict[str, Any]:
    return {
        "algorithm": algorithm,
        KNOBS[algorithm]: knob,
        "grants": str(knob),
        "mode": "shadow",
    }


def search_settings(**fields: Any) -> SearchSettings:
    made = resolved({"algorithm": "rebase", **fields}).settings
    assert isinstance(made, SearchSettings)
    return made


def layer_of(rewards: Sequence[float | None]) -> list[TreeNode]:
    return [
        TreeNode(Start(str(i)), None, 1, i, Finished(str(i), "", 9, "completed"), reward)
        for i, reward in enumerate(rewards)
    ]


@pytest.mark.parametrize("algorithm", KNOBS)
def test_a_fixed_search_comes_to_as_many_leaves_as_its_knob_says(algorithm: str) -> None:
    ran = search(fixed(algorithm, 8), ArithmeticWorld())
    assert len(ran.outcome.answers) == 8
    assert ran.outcome.answer == RIGHT


@pytest.mark.parametrize("algorithm", KNOBS)
def test_a_search_that_is_certain_begins_no_further_tree(algorithm: str) -> None:
    easy = search({"algorithm": algorithm}, ArithmeticWorld(p_right=1.0))
    hard = search({"algorithm": algorithm}, ArithmeticWorld(p_right=0.55))
    assert easy.outcome.stop_reason == "certain"
    fewest = 6 if algorithm in SHARES_STEPS else 3  # of 16 that agree and settle it
    assert len(easy.outcome.answers) == fewest
    assert len(hard.outcome.answers) > fewest


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(KNOBS)),
    st.integers(1, 20),
    st.integers(0, 10**6),
    st.floats(0.2, 1.0),
    st.integers(1, 5),
    st.booleans(),
)
def test_no_search_exceeds_its_cap_and_every_one_comes_to_an_end(
    algorithm: str, knob: int, seed: int, p_right: float, depth: int, dead: bool
) -> None:
    world = ArithmeticWorld(seed, depth, p_right, dead=dead)
    ran = search({"algorithm": algorithm, KNOBS[algorithm]: knob}, world)
    assert 1 <= len(ran.outcome.answers) <= knob
    assert ran.outcome.stop_reason in ("certain", "decided", "completed")
    assert ran.outcome.node in ran.outcome.answers
    names = [start.node for start in world.starts]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("algorithm", KNOBS)
def test_without_a_reward_model_a_search_answers_by_votes_and_says_so(algorithm: str) -> None:
    world = ArithmeticWorld()
    ran = search({"algorithm": algorithm}, world, DynasorConfig())
    assert ran.outcome.answer == RIGHT
    assert "no reward model" in ran.outcome.inactive["reward"]
    assert not world.rewards


def test_a_reward_model_that_fails_on_the_way_is_asked_no_more() -> None:
    program = resolved(fixed("best_of_n", 4)).build()
    nodes = [a.node for a in program.start() if isinstance(a, Start)]
    world = ArithmeticWorld()
    asked = program.on([world.generate(Start(nodes[0]))])
    assert asked == [Score((nodes[0],))]
    assert not program.on([Scored(nodes[0], None, "it is gone")])
    rest = program.on([world.generate(Start(node)) for node in nodes[1:]])
    assert isinstance(rest, Outcome)
    assert rest.inactive["reward"] == "it is gone"
    assert len(rest.answers) == 4


def test_rebase_gives_children_in_balance_with_rewards() -> None:
    shares = widen(layer_of([0.1, 0.9, 0.8]), 10, search_settings())
    counts = {node.name: count for node, count in shares}
    assert sum(counts.values()) == 10
    assert counts["1"] > counts["2"] > counts.get("0", 0)


@given(
    st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=20),
    st.integers(1, 40),
    st.sampled_from([widen, widen_best, widen_best_of_trees]),
)
def test_no_widening_gives_more_children_than_there_may_be_leaves(
    rewards: list[float | None], leaves: int, widening: Any
) -> None:
    shares = widening(layer_of(rewards), leaves, search_settings())
    counts = [count for _, count in shares]
    assert all(count > 0 for count in counts)
    assert sum(counts) <= leaves
    assert counts


def test_rebase_without_rewards_gives_all_alike() -> None:
    shares = widen(layer_of([None] * 4), 8, search_settings())
    assert [count for _, count in shares] == [2, 2, 2, 2]


def test_beam_keeps_the_best_and_dvts_the_best_of_each_subtree() -> None:
    layer = layer_of([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    best = widen_best(layer, 8, search_settings())
    assert [(node.name, count) for node, count in best] == [("0", 4), ("1", 4)]
    diverse = widen_best_of_trees(layer, 8, search_settings())
    assert [(node.name, count) for node, count in diverse] == [("0", 4), ("4", 4)]


@pytest.mark.parametrize("algorithm", STEPPED)
def test_good_steps_get_more_descendants_than_bad_ones(algorithm: str) -> None:
    children: Counter[bool] = Counter()
    for seed in range(30):
        world = ArithmeticWorld(seed, p_right=0.6)
        search(fixed(algorithm, 16), world)
        # Each step of mcts gets a rollout, whatever it is worth.
        grown = [s for s in world.starts if algorithm != "mcts" or s.kind == "step"]
        parents = [start.parent for start in grown if start.parent is not None]
        children.update(world.rewards[parent] > 0.5 for parent in parents)
    assert children[True] > 2 * children[False]


def test_a_step_is_no_leaf_and_a_path_at_its_depth_runs_to_its_end() -> None:
    world = ArithmeticWorld(depth=6)
    ran = search({**fixed("rebase", 4), "depth": 3}, world)
    assert {len(start.stop) for start in world.starts} == {0, 2}
    assert all(ran.outcome.answers.values())


def test_best_of_n_answers_with_the_leaf_of_highest_reward() -> None:
    program = resolved({**fixed("best_of_n", 3), "vote": "best"}).build()
    program.start()
    events = [
        Finished(str(i), "", 5, "completed", answer, group=answer)
        for i, answer in enumerate(["7", "7", "8"])
    ]
    program.on(events)
    outcome = program.on([Scored("0", 0.5), Scored("1", 0.6), Scored("2", 0.9)])
    assert isinstance(outcome, Outcome)
    assert (outcome.answer, outcome.node) == ("8", "2")


def test_a_search_whose_votes_and_rewards_disagree_is_not_certain() -> None:
    program = resolved({"algorithm": "best_of_n", "max_branches": 8}).build()
    program.start()
    events = [
        Finished(str(i), "", 5, "completed", answer, group=answer)
        for i, answer in enumerate(["7", "7", "8"])
    ]
    program.on(events)
    rewards = [Scored("0", 0.2), Scored("1", 0.2), Scored("2", 0.9)]
    assert not isinstance(program.on(rewards), Outcome)


@pytest.mark.parametrize(("reward", "stops"), [(0.995, True), (0.5, False)])
def test_an_operating_point_of_the_paper_needs_votes_and_reward(reward: float, stops: bool) -> None:
    fields = {"algorithm": "rebase", "operating_point": "gsm8k", "width": 32, "depth": 1}
    program = resolved(fields).build()
    nodes = [a.node for a in program.start() if isinstance(a, Start)]
    assert len(nodes) == 16
    program.on([Finished(node, "", 5, "completed", "7", group="7") for node in nodes])
    step = program.on([Scored(node, reward) for node in nodes])
    assert isinstance(step, Outcome) == stops


@pytest.mark.parametrize("end", [Expired(), Aborted()])
def test_a_search_without_a_leaf_ends_with_its_best_step(end: Any) -> None:
    program = resolved({"algorithm": "rebase"}).build()
    nodes = [a.node for a in program.start() if isinstance(a, Start)]
    step = [Finished(n, "", 9, "completed", matched_stop="\n\n") for n in nodes[:2]]
    program.on(step)
    program.on([Scored(nodes[0], 0.3), Scored(nodes[1], 0.7)])
    outcome = program.on([end])
    assert isinstance(outcome, Outcome)
    assert (outcome.node, outcome.answer) == (nodes[1], "")


def test_a_node_that_made_room_is_started_again() -> None:
    program = resolved({"algorithm": "rebase"}).build()
    started = [a for a in program.start() if isinstance(a, Start)]
    assert program.on([Trimmed(started[0].node)]) == [started[0]]


@pytest.mark.parametrize("algorithm", KNOBS)
def test_a_search_goes_on_without_the_nodes_that_failed(algorithm: str) -> None:
    world = ArithmeticWorld(p_right=1.0)
    program = resolved({**fixed(algorithm, 4)}).build()

    def recorded(start: Start) -> Finished | Failed:
        return Failed(start.node, "refused") if start.node == "1" else world.generate(start)

    ran = replay_nodes(program, recorded, reward_of=world.reward)
    assert ran.outcome.answer == RIGHT
    assert 2 <= len(ran.outcome.answers) <= 3


@pytest.mark.parametrize("algorithm", KNOBS)
def test_a_search_of_which_everything_failed_fails(algorithm: str) -> None:
    program = resolved({**fixed(algorithm, 2)}).build()
    ran = replay_nodes(program, lambda start: Failed(start.node, "refused"))
    assert ran.outcome.stop_reason == "failed"
    assert ran.outcome.node is None


@pytest.mark.parametrize("algorithm", KNOBS)
def test_shadow_mode_runs_all_leaves_and_notes_where_it_would_have_stopped(algorithm: str) -> None:
    world = ArithmeticWorld(p_right=1.0)
    ran = search({"algorithm": algorithm, "mode": "shadow", KNOBS[algorithm]: 9}, world)
    assert len(ran.outcome.answers) == 9
    assert ran.outcome.shadow is not None
    assert ran.outcome.shadow.stop_reason == "certain"
    assert ran.outcome.shadow.branches == (5 if algorithm in SHARES_STEPS else 3)  # of 9
    assert ran.outcome.shadow.tokens < ran.tokens


@pytest.mark.parametrize("algorithm", KNOBS)
def test_a_search_never_spends_more_tokens_than_it_may(algorithm: str) -> None:
    for cap in range(40, 240):
        fields = {"algorithm": algorithm, "max_total_tokens": cap}
        ran = search(fields, ArithmeticWorld(cap, p_right=0.4))
        assert ran.tokens <= cap
        assert ran.outcome.stop_reason in ("budget", "certain", "decided")


def test_a_search_asks_for_more_tokens_and_takes_what_it_is_granted() -> None:
    program = resolved({"algorithm": "best_of_n", "max_total_tokens": 60}).build()
    world = ArithmeticWorld(p_right=0.0)
    step: Sequence[Action] | Outcome = program.start()
    granted = 0
    while not isinstance(step, Outcome):
        events: list[Any] = []
        for action in step:
            if isinstance(action, Ask):
                granted += action.tokens
                events.append(Granted(action.tokens))
            elif isinstance(action, Score):
                events += [Scored(node, world.reward(node)) for node in action.nodes]
            elif isinstance(action, Start):
                events.append(world.generate(action))
        step = program.on(events)
    assert granted > 0
    assert len(step.answers) == 16


def test_a_later_answer_may_split_a_group_of_leaves() -> None:
    """Of two, one waits for its reward meanwhile."""
    program = resolved({**fixed("best_of_n", 3), "vote": "majority"}).build()
    program.start()
    for node in ("0", "1"):
        program.on([Finished(node, "", 5, "completed", f"a{node}", group="a")])
    program.on([Scored("0", 0.5)])
    program.on([Regrouped({"0": "a0", "1": "a1"}), Finished("2", "", 5, "completed", "b", "b")])
    program.on([Scored("1", 0.5)])
    outcome = program.on([Scored("2", 0.5)])
    assert isinstance(outcome, Outcome)
    assert [vote.count for vote in outcome.votes] == [1, 1, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"algorithm": "rebase", "operating_point": "asdiv"}, "must be one of gsm8k, math"),
        ({"algorithm": "dvts", "operating_point": "gsm8k"}, "has no such"),
        (
            {"algorithm": "mcts", "operating_point": "asdiv", "threshold": 0.5},
            "contradicts threshold",
        ),
        ({"algorithm": "mcts", "width": 4}, "rebase, beam, dvts, not mcts"),
        ({"algorithm": "rebase", "width": 0}, "dynasor.width"),
        ({"algorithm": "beam", "grants": "4,x"}, "grants must be"),
        ({"algorithm": "beam", "rule": "no"}, "rule must be one of"),
    ],
)
def test_a_contradiction_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ProgramSpec.parse(fields)


def test_a_greedy_search_is_one_path_and_a_grammar_leaves_it_one_step() -> None:
    spec = ProgramSpec.parse({"algorithm": "rebase", "width": 8})
    greedy = spec.resolve(JUDGED, RequestTraits(greedy=True))
    ran = replay_nodes(
        greedy.build(), (world := ArithmeticWorld()).generate, reward_of=world.reward
    )
    assert [start.stop for start in world.starts] == [""]
    assert "temperature 0" in ran.outcome.inactive["search"]
    bound = spec.resolve(JUDGED, RequestTraits(grammar=True))
    assert isinstance(bound.settings, SearchSettings)
    assert bound.settings.depth == 1
    assert "steps" in bound.settings.inactive


@pytest.mark.parametrize("algorithm", KNOBS)
def test_where_leaves_share_steps_the_default_rule_has_to_be_surer(algorithm: str) -> None:
    own = resolved({"algorithm": algorithm}).settings.rule
    assert (own.confidence == 0.998) == (algorithm in SHARES_STEPS)
    given = resolved({"algorithm": algorithm, "threshold": 0.9}).settings.rule
    assert given.confidence == 0.9
    other = resolved({"algorithm": algorithm, "rule": "beta"}).settings.rule
    assert other == make_rule("beta", min_branches=other.min_branches)
    server = DynasorConfig.parse({"reward_verifier": "some:function", "threshold": 0.97})
    assert resolved({"algorithm": algorithm}, server).settings.rule.confidence == 0.97
