"""Self-consistency as a pure program: grants, votes, stops, and what shadow mode notes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import CertaindexTracker
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import (
    Demand,
    Expired,
    Failed,
    Finished,
    Outcome,
    ProgramRun,
    ProgramSpec,
    Regrouped,
    ResolvedProgram,
    Start,
    replay_nodes,
)
from sglang_dynasor.programs.params import RequestTraits
from support.fake_nodes import FakeNodes, FakeSample, Spelling, run_fake
from support.virtual_time import run_virtual

DRAWING = DynasorConfig(speculative_share=0.5)
NOT_DRAWING = DynasorConfig(speculative_share=0.0)

samples_of_a_program = st.lists(
    st.builds(
        FakeSample,
        st.sampled_from(["1", "1", "1", "2", "3", ""]),
        st.integers(1, 30),
    ),
    min_size=1,
    max_size=16,
)
rules = st.sampled_from(
    [
        {"rule": "dynasor"},
        {"rule": "dynasor", "threshold": 0.6},
        {"rule": "threshold"},
        {"rule": "threshold", "threshold": 0.3},
        {"rule": "decided"},
        {"rule": "beta"},
        {"rule": "beta", "threshold": 0.75},
        {"rule": "dirichlet", "threshold": 0.8},
        {"rule": "esc"},
        {"rule": "sprt", "threshold": 0.8},
        {"rule": "e_process", "threshold": 0.5},
        {"rule": "deepconf", "threshold": 0.8},
        {"rule": "hopeless"},
    ]
)
grant_lists = st.sampled_from(["", "1", "4,3,3,6", "16", "2,5"])


def resolved(
    samples: list[FakeSample], fields: dict[str, Any], config: DynasorConfig | None = None
) -> ResolvedProgram:
    asked = {"algorithm": "self_consistency", "max_branches": len(samples), **fields}
    spec = ProgramSpec.parse({k: v for k, v in asked.items() if v != ""})
    return spec.resolve(config or DynasorConfig())


def full_vote(samples: list[FakeSample]) -> str:
    tracker = CertaindexTracker(len(samples))
    for branch, sample in enumerate(samples):
        tracker.add(branch, sample.answer)
    return tracker.leader.answer if tracker.leader else ""


def run(samples: list[FakeSample], **fields: Any) -> tuple[ProgramRun, FakeNodes]:
    async def scenario() -> tuple[ProgramRun, FakeNodes]:
        client = FakeNodes(samples)
        return await run_fake(resolved(samples, fields).build(), client), client

    return run_virtual(scenario())


def names(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def tokens_of(result: ProgramRun) -> int:
    return sum(b.n_tokens for b in [*result.finished.values(), *result.cancelled.values()])


@settings(max_examples=150, deadline=None)
@given(samples_of_a_program, rules, grant_lists, st.integers(1, 16))
def test_branch_bounds_always_hold(
    samples: list[FakeSample], rule: dict[str, Any], grants: str, minimum: int
) -> None:
    minimum = min(minimum, len(samples))
    result, client = run(samples, grants=grants, min_branches=minimum, **rule)
    assert client.started == names(len(client.started))
    assert len(client.started) <= len(samples)
    if result.outcome.stop_reason != "completed":
        assert len(result.finished) >= minimum
    assert result.finished.keys() | result.cancelled.keys() == set(client.started)


@settings(max_examples=150, deadline=None)
@given(samples_of_a_program, rules, grant_lists, st.sampled_from(["rounds", "offer"]))
def test_shadow_runs_every_branch_and_notes_what_acting_does(
    samples: list[FakeSample], rule: dict[str, Any], grants: str, draw: str
) -> None:
    fields = {"grants": grants, **rule} if grants else {"draw": draw, **rule}
    shadow, _ = run(samples, mode="shadow", **fields)
    acting, client = run(samples, **fields)
    noted = shadow.outcome.shadow
    assert noted is not None and acting.outcome.shadow is None
    assert shadow.outcome.stop_reason == "completed"
    assert len(shadow.finished) == len(samples)
    assert shadow.outcome.answer == full_vote(samples)
    assert noted.stop_reason == acting.outcome.stop_reason
    assert noted.answer == acting.outcome.answer
    assert noted.branches == len(client.started)
    assert noted.rounds == acting.outcome.rounds
    assert noted.tokens == tokens_of(acting)


@settings(max_examples=150, deadline=None)
@given(samples_of_a_program, rules, grant_lists, st.sampled_from(["rounds", "offer"]))
def test_a_replay_is_what_a_run_of_the_same_nodes_is(
    samples: list[FakeSample], rule: dict[str, Any], grants: str, draw: str
) -> None:
    fields = {"grants": grants, **rule} if grants else {"draw": draw, **rule}
    acting, client = run(samples, **fields)
    nodes = {
        str(i): Finished(str(i), "", sample.n_tokens, "completed", sample.answer, sample.answer)
        for i, sample in enumerate(samples)
    }
    replayed = replay_nodes(resolved(samples, fields).build(), lambda start: nodes[start.node])
    assert replayed.outcome == acting.outcome
    assert replayed.tokens == tokens_of(acting)
    assert replayed.started == len(client.started)
    assert replayed.finished == len(acting.finished)
    assert replayed.sequential_tokens == acting.sequential_tokens


@settings(max_examples=100, deadline=None)
@given(samples_of_a_program, grant_lists)
def test_a_decided_program_answers_as_the_full_vote(samples: list[FakeSample], grants: str) -> None:
    result, _ = run(samples, rule="decided", grants=grants, min_branches=1)
    assert result.outcome.answer == full_vote(samples)


def run_offered(
    samples: list[FakeSample], draws: list[tuple[int, int]], **fields: Any
) -> tuple[ProgramRun, FakeNodes]:
    """Run with draws of so many branches at so many seconds."""

    async def scenario() -> tuple[ProgramRun, FakeNodes]:
        client = FakeNodes(samples)
        program = resolved(samples, {"draw": "offer", **fields}, DRAWING).build()
        task = asyncio.create_task(run_fake(program, client))
        await asyncio.sleep(0)
        for at, count in draws:
            asyncio.get_running_loop().call_at(at + 0.5, client.draw, count)
        return await task, client

    return run_virtual(scenario())


draw_times = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=6)


@settings(max_examples=100, deadline=None)
@given(samples_of_a_program, draw_times)
def test_whatever_is_drawn_a_decided_program_answers_as_the_full_vote(
    samples: list[FakeSample], draws: list[tuple[int, int]]
) -> None:
    result, client = run_offered(samples, draws, rule="decided", min_branches=1)
    assert result.outcome.answer == full_vote(samples)
    assert client.started == names(len(client.started))
    assert not client.running


@settings(max_examples=100, deadline=None)
@given(samples_of_a_program, rules, draw_times, st.integers(1, 16))
def test_branch_bounds_hold_for_offers_too(
    samples: list[FakeSample], rule: dict[str, Any], draws: list[tuple[int, int]], minimum: int
) -> None:
    minimum = min(minimum, len(samples))
    result, client = run_offered(samples, draws, min_branches=minimum, **rule)
    if result.outcome.stop_reason != "completed":
        assert len(result.finished) >= minimum
    assert len(client.started) <= len(samples)
    assert result.finished.keys() | result.cancelled.keys() == set(client.started)


def test_without_draws_agreeing_branches_cost_what_they_cost_in_rounds() -> None:
    samples = [FakeSample("7", 10)] * 16
    (offered, _), (rounds, _) = run_offered(samples, []), run(samples)
    assert tokens_of(offered) == tokens_of(rounds)
    assert offered.outcome.stop_reason == rounds.outcome.stop_reason


def test_a_branch_that_disagrees_makes_more_needed_at_once() -> None:
    """In rounds the next branch would wait for the slowest of the first grant."""
    samples = [FakeSample("1", 5), FakeSample("7", 40), *[FakeSample("7", 10)] * 14]
    _, client = run_offered(samples, [])
    needed = [demand.needed for demand, _ in client.demands]
    first = needed[0]
    assert first == 3
    assert needed[2] > first - 2  # two have finished and disagree: the slow one is not enough
    assert len(client.started) > first


def test_every_program_offers_what_it_may_need_and_the_first_is_worth_most() -> None:
    samples = [FakeSample("7", 10)] * 16
    _, client = run_offered(samples, [])
    first = client.demands[0][0]
    assert first.needed == 3 and len(first.values) == 6  # three times the fewest in all
    assert list(first.values) == sorted(first.values, reverse=True)
    assert 0 < first.worth <= 1


def test_rounds_take_the_sizes_that_were_asked_for() -> None:
    samples = [FakeSample(str(index), 5) for index in range(12)]
    result, client = run(samples, grants="4,3,2")
    assert result.outcome.rounds == 5  # 4 + 3 + 2 + 2 + 1
    assert len(client.started) == 12


def test_a_branch_cut_off_by_length_has_no_answer_and_lowers_certaindex() -> None:
    samples = [FakeSample("7", 10), FakeSample("7", 10), FakeSample("7", 99)]
    whole, _ = run(samples)
    cut, _ = run(samples, max_total_tokens=90)
    assert whole.outcome.certaindex == 1.0
    assert cut.outcome.answers == {"0": "7", "1": "7", "2": ""}
    assert cut.outcome.certaindex < 1.0


def test_without_any_answer_the_lowest_branch_is_shown() -> None:
    result, _ = run([FakeSample("", 5)] * 4)
    assert result.outcome.answer == ""
    assert result.outcome.node == "0"
    assert result.outcome.votes == ()


@pytest.mark.parametrize("lengths", [(5, 9, 7), (9, 7, 5), (7, 5, 9)])
def test_a_tie_goes_to_the_lowest_branch_not_to_the_first_to_finish(
    lengths: tuple[int, ...],
) -> None:
    samples = [FakeSample(str(i), n) for i, n in enumerate(lengths)]
    result, _ = run(samples)
    assert result.outcome.answer == "0"
    assert result.outcome.node == "0"


def test_the_branch_shown_gave_the_winning_answer() -> None:
    samples = [FakeSample("1", 5), FakeSample("2", 5), FakeSample("2", 5)]
    result, _ = run(samples)
    assert result.outcome.node == "1"
    assert result.outcome.answers["1"] == result.outcome.answer == "2"


def run_with_groups(samples: list[FakeSample], grouping: Spelling, **fields: Any) -> ProgramRun:
    async def scenario() -> ProgramRun:
        program = resolved(samples, fields).build()
        return await run_fake(program, FakeNodes(samples), grouping=grouping)

    return run_virtual(scenario())


@pytest.mark.parametrize("mode", ["on", "shadow"])
def test_answers_that_only_algebra_finds_equal_vote_together(mode: str) -> None:
    """Two forms of one answer win against two of another, in both modes."""
    samples = [FakeSample(answer, 5) for answer in ("9", "x+1", "9", "1+x", "x+1")]
    result = run_with_groups(samples, Spelling({"1+x": "x+1"}), rule="decided", mode=mode)
    outcome = result.outcome
    assert (outcome.answer, [vote.count for vote in outcome.votes]) == ("x+1", [3, 2])
    if mode == "shadow":
        assert outcome.shadow is not None and outcome.shadow.answer == "x+1"


def test_a_rule_that_cannot_judge_is_reported_with_its_reason() -> None:
    samples = [FakeSample("7", 5)] * 4
    result, _ = run([certain("7", 9.0)] * 4, rule="hopeless", vote="weighted")
    assert result.outcome.inactive == {}
    result, _ = run(samples, rule="deepconf", vote="weighted", mode="shadow")
    assert "vote" in result.outcome.inactive
    result, _ = run(samples, rule="decided")
    assert result.outcome.inactive == {}


def certain(answer: str, confidence: float, stopped: Any = None) -> FakeSample:
    return FakeSample(answer, 5, confidence=confidence, stopped=stopped)


def test_a_pruned_branch_has_no_vote_and_leaves_the_others_certain() -> None:
    samples = [certain("7", 9.0), certain("8", 1.0, "pruned"), certain("7", 9.0)]
    outcome = run(samples, branch_rule="deepconf", rule="hopeless")[0].outcome
    assert (outcome.answer, outcome.certaindex, outcome.answers) == ("7", 1.0, {"0": "7", "2": "7"})
    assert [(vote.answer, vote.count) for vote in outcome.votes] == [("7", 2)]


def test_a_loop_counts_as_an_answer_that_never_came() -> None:
    samples = [certain("7", 9.0), certain("8", 9.0, "loop"), certain("7", 9.0)]
    looped = run(samples, stop_loops=True, rule="hopeless")[0].outcome
    assert looped.answers == {"0": "7", "1": "", "2": "7"} and looped.certaindex < 1


def test_collapsed_entropy_keeps_the_answer_that_was_written() -> None:
    samples = [certain("7", 9.0, "certain")] * 3
    assert run(samples, entropy_floor=0.1)[0].outcome.answers == {"0": "7", "1": "7", "2": "7"}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            FakeSample,
            st.sampled_from(["1", "2", ""]),
            st.integers(1, 30),
            confidence=st.floats(1, 20),
            stopped=st.sampled_from([None, None, "pruned", "loop"]),
        ),
        min_size=1,
        max_size=16,
    ),
    rules,
    st.sampled_from(["rounds", "offer"]),
)
def test_branch_bounds_hold_whatever_is_pruned(
    samples: list[FakeSample], rule: dict[str, Any], draw: str
) -> None:
    result, client = run(samples, draw=draw, branch_rule="deepconf", min_branches=1, **rule)
    assert len(client.started) <= len(samples)
    if result.outcome.stop_reason == "completed":
        assert sorted(client.started, key=int) == names(len(samples))
    pruned = {i for i, b in result.finished.items() if b.stop_reason == "pruned"}
    assert pruned.isdisjoint(result.outcome.answers)
    assert sum(vote.count for vote in result.outcome.votes) <= len(result.finished) - len(pruned)


@pytest.mark.parametrize("mode", ["on", "shadow"])
@pytest.mark.parametrize(
    ("fields", "answer", "weights"),
    [
        ({"vote": "majority"}, "1", [3.0, 1.0]),
        ({"vote": "weighted"}, "2", [9.0, 6.0]),
        ({"vote": "filtered", "keep_top": 0.25}, "2", [9.0, 0.0]),
        ({"vote": "filtered", "keep_top": 0.9}, "2", [9.0, 6.0]),
    ],
)
def test_the_vote_is_weighted_as_asked(
    fields: dict[str, Any], answer: str, weights: list[float], mode: str
) -> None:
    samples = [certain("1", 2.0), certain("1", 2.0), certain("1", 2.0), certain("2", 9.0)]
    outcome = run(samples, min_branches=4, mode=mode, **fields)[0].outcome
    assert outcome.answer == answer
    assert [vote.weight for vote in outcome.votes] == weights
    assert outcome.inactive == {}
    if mode == "shadow":
        assert outcome.shadow is not None and outcome.shadow.answer == answer


def test_consensus_of_the_weight_ends_a_weighted_program() -> None:
    result, client = run([certain("7", 9.0)] * 8, vote="weighted")
    assert result.outcome.stop_reason == "consensus" and len(client.started) == 4


def test_branches_without_certainty_fall_back_to_the_majority_and_the_report_says_so() -> None:
    samples = [FakeSample("1", 5), FakeSample("2", 5), FakeSample("2", 5)]
    outcome = run(samples, vote="weighted", branch_rule="deepconf")[0].outcome
    assert outcome.answer == "2"
    assert "3 branches have no token certainty" in outcome.inactive["vote"]
    assert "3 branches have no token certainty" in outcome.inactive["branch_rule"]
    shadow = run(samples, mode="shadow", stop_loops=True)[0].outcome
    assert shadow.inactive == {"branch_rule": "shadow mode stops no branch"}


def test_branches_that_were_stopped_before_they_answered_are_reported() -> None:
    samples = [FakeSample("", 5, stopped="certain"), FakeSample("1", 5, stopped="certain")]
    outcome = run(samples, max_branches=2, entropy_floor=0.5)[0].outcome
    assert outcome.inactive["entropy_floor"] == "1 branch was stopped before an answer"
    outcome = run(samples[:1] * 3, max_branches=3, entropy_floor=0.5)[0].outcome
    assert (outcome.stop_reason, outcome.answer) == ("completed", "")
    assert outcome.inactive["entropy_floor"].startswith("3 branches were stopped")
    answered = run(samples[1:] * 2, max_branches=2, entropy_floor=0.5)[0].outcome
    assert "entropy_floor" not in answered.inactive


def finished(node: str, answer: str, group: str | None = None) -> Finished:
    return Finished(node, "", 5, "completed", answer, answer if group is None else group)


def test_a_group_that_is_split_is_counted_again() -> None:
    """A 3 and "x = 3" are one answer until "y = 3" tells apart."""
    samples = [FakeSample("", 1)] * 8
    program = resolved(samples, {"rule": "decided", "min_branches": 8}).build()
    program.start()
    program.on([finished("0", "3", "3"), finished("1", "x = 3", "3"), finished("2", "4")])
    split = Regrouped({"0": "3", "1": "3x", "2": "4"})
    program.on([split, finished("3", "4"), finished("4", "4")])
    outcome = program.on([Expired()])
    assert isinstance(outcome, Outcome)
    assert [(vote.answer, vote.count) for vote in outcome.votes] == [
        ("4", 3),
        ("3", 1),
        ("x = 3", 1),
    ]


def test_a_failed_branch_leaves_the_vote_smaller() -> None:
    program = resolved([FakeSample("", 1)] * 3, {"min_branches": 1, "rule": "decided"}).build()
    program.start()
    program.on([Failed("0", "refused"), finished("1", "7")])
    outcome = program.on([finished("2", "7")])
    assert isinstance(outcome, Outcome)
    assert (outcome.stop_reason, outcome.certaindex, outcome.node) == ("completed", 1.0, "1")


def test_a_decision_is_not_lost_to_a_deadline_in_the_same_batch() -> None:
    program = resolved([FakeSample("", 1)] * 8, {"rule": "decided"}).build()
    program.start()
    votes = [finished(str(index), "7") for index in range(5)]
    outcome = program.on([*votes, Expired()])
    assert isinstance(outcome, Outcome) and outcome.stop_reason == "decided"


def test_nothing_is_offered_where_the_engine_may_not_draw() -> None:
    samples = [FakeSample(str(index), 5 + index) for index in range(16)]
    program = resolved(samples, {"draw": "offer"}, NOT_DRAWING).build()
    assert all(start.value is None for start in program.start() if isinstance(start, Start))


def test_more_is_offered_where_more_may_be_needed() -> None:
    samples = [FakeSample(str(index), 5) for index in range(16)]
    _, client = run_offered(samples, [])
    offered = [len(demand.values) for demand, _ in client.demands]
    assert offered[0] == 6 < max(offered)


def test_a_program_of_512_offers_a_few_of_its_branches() -> None:
    program = resolved([FakeSample("", 1)] * 512, {"draw": "offer"}, DRAWING).build()
    offered = [a for a in program.start() if isinstance(a, Start) and a.value is not None]
    assert [int(start.node) for start in offered] == list(range(4, 12))


def test_what_is_no_longer_needed_can_be_spared() -> None:
    """A drawn branch brings the stop nearer than the needed ones that still run."""
    fields = {"draw": "offer", "rule": "beta"}
    program = resolved([FakeSample("", 1)] * 16, fields, DRAWING).build()
    first = program.start()
    assert [a.node for a in first if isinstance(a, Start) and a.value is None] == names(4)
    actions = program.on([finished("4", "7")])
    assert not isinstance(actions, Outcome)
    spared = next(a for a in actions if isinstance(a, Start) and a.node == "3")
    assert spared.value is not None


def test_greedy_branches_are_one_branch_and_the_report_says_so() -> None:
    spec = ProgramSpec.parse({"algorithm": "self_consistency", "max_branches": 8})
    program = spec.resolve(DynasorConfig(), RequestTraits(greedy=True))
    assert program.settings.max_branches == 1
    demand, start = program.build().start()
    assert isinstance(demand, Demand) and isinstance(start, Start)
    outcome = program.build()
    outcome.start()
    found = outcome.on([finished("0", "7")])
    assert isinstance(found, Outcome)
    assert (found.answer, found.certaindex) == ("7", 0.0)
    assert "temperature 0" in found.inactive["max_branches"]
