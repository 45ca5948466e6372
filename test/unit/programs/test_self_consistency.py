"""Self-consistency as a pure program: grants, votes, stops, and what shadow mode notes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.allocation import Sample, full_vote, replay
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import Offer, ProgramRun, ProgramSpec, run_program, self_consistency
from support.fake_branches import FakeBranches, FakeSample
from support.virtual_time import run_virtual

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


def spec_for(samples: list[FakeSample], fields: dict[str, Any]) -> ProgramSpec:
    asked = {"algorithm": "self_consistency", "max_branches": len(samples), **fields}
    return ProgramSpec.parse({k: v for k, v in asked.items() if v != ""}).resolve(DynasorConfig())


def run(samples: list[FakeSample], **fields: Any) -> tuple[ProgramRun, FakeBranches]:
    async def scenario() -> tuple[ProgramRun, FakeBranches]:
        client = FakeBranches(samples)
        return await run_program(self_consistency(spec_for(samples, fields), 0.05), client), client

    return run_virtual(scenario())


def tokens_of(result: ProgramRun) -> int:
    return sum(b.n_tokens for b in [*result.finished.values(), *result.cancelled.values()])


@settings(max_examples=150, deadline=None)
@given(samples_of_a_program, rules, grant_lists, st.integers(1, 16))
def test_branch_bounds_always_hold(
    samples: list[FakeSample], rule: dict[str, Any], grants: str, minimum: int
) -> None:
    minimum = min(minimum, len(samples))
    result, client = run(samples, grants=grants, min_branches=minimum, **rule)
    assert client.started == list(range(len(client.started)))
    assert len(client.started) <= len(samples)
    assert len(result.finished) >= minimum
    assert result.finished.keys() | result.cancelled.keys() == set(client.started)


@settings(max_examples=150, deadline=None)
@given(samples_of_a_program, rules, grant_lists)
def test_shadow_runs_every_branch_and_notes_what_acting_in_rounds_does(
    samples: list[FakeSample], rule: dict[str, Any], grants: str
) -> None:
    shadow, _ = run(samples, mode="shadow", grants=grants, **rule)
    acting, client = run(samples, grants=grants, **(rule if grants else {"draw": "rounds", **rule}))
    noted = shadow.outcome.shadow
    assert noted is not None and acting.outcome.shadow is None
    assert shadow.outcome.stop_reason == "completed"
    assert len(shadow.finished) == len(samples)
    plain_samples = [Sample(sample.answer, sample.n_tokens) for sample in samples]
    assert shadow.outcome.answer == full_vote(plain_samples)
    assert noted.stop_reason == acting.outcome.stop_reason
    assert noted.answer == acting.outcome.answer
    assert noted.branches == len(client.started)
    assert noted.rounds == acting.outcome.rounds
    assert noted.tokens == tokens_of(acting)


@settings(max_examples=100, deadline=None)
@given(samples_of_a_program, rules, grant_lists)
def test_the_noted_decision_is_that_of_replay(
    samples: list[FakeSample], rule: dict[str, Any], grants: str
) -> None:
    noted = run(samples, mode="shadow", grants=grants, **rule)[0].outcome.shadow
    spec = spec_for(samples, {"grants": grants, **rule})
    stop_rule = spec.stop_rule()
    plain_samples = [Sample(sample.answer, sample.n_tokens) for sample in samples]
    replayed = replay(plain_samples, stop_rule, spec.grant_policy(stop_rule))
    assert noted is not None
    assert noted.tokens == replayed.tokens
    assert noted.answer == replayed.answer
    assert noted.stop_reason == (
        replayed.decision.stop_reason if replayed.decision else "completed"
    )


@settings(max_examples=100, deadline=None)
@given(samples_of_a_program, grant_lists)
def test_a_decided_program_answers_as_the_full_vote(samples: list[FakeSample], grants: str) -> None:
    result, _ = run(samples, rule="decided", grants=grants, min_branches=1)
    assert result.outcome.answer == full_vote([Sample(s.answer, s.n_tokens) for s in samples])


def run_offered(
    samples: list[FakeSample], draws: list[tuple[int, int]], **fields: Any
) -> tuple[ProgramRun, FakeBranches]:
    """Run with draws of so many branches at so many seconds."""

    async def scenario() -> tuple[ProgramRun, FakeBranches]:
        client = FakeBranches(samples)
        program = self_consistency(spec_for(samples, {"draw": "offer", **fields}), 0.05)
        task = asyncio.create_task(run_program(program, client))
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
    assert result.outcome.answer == full_vote([Sample(s.answer, s.n_tokens) for s in samples])
    assert client.started == list(range(len(client.started)))
    assert not client.running


@settings(max_examples=100, deadline=None)
@given(samples_of_a_program, rules, draw_times, st.integers(1, 16))
def test_branch_bounds_hold_for_offers_too(
    samples: list[FakeSample], rule: dict[str, Any], draws: list[tuple[int, int]], minimum: int
) -> None:
    minimum = min(minimum, len(samples))
    result, client = run_offered(samples, draws, min_branches=minimum, **rule)
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
    needed = [step.needed for step, _ in client.reports if isinstance(step, Offer)]
    first = needed[0]
    assert first == 3
    assert needed[2] > first - 2  # two have finished and disagree: the slow one is not enough
    assert len(client.started) > first


def test_every_program_offers_what_it_may_need_and_the_first_is_worth_most() -> None:
    samples = [FakeSample("7", 10)] * 16
    _, client = run_offered(samples, [])
    first = client.reports[0][0]
    assert isinstance(first, Offer)
    assert first.needed + len(first.values) == 16
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
    assert cut.outcome.answers == {0: "7", 1: "7", 2: ""}
    assert cut.outcome.certaindex < 1.0


def test_without_any_answer_the_lowest_branch_is_shown() -> None:
    result, _ = run([FakeSample("", 5)] * 4)
    assert result.outcome.answer == ""
    assert result.outcome.branch == 0
    assert result.outcome.votes == ()


@pytest.mark.parametrize("lengths", [(5, 9, 7), (9, 7, 5), (7, 5, 9)])
def test_a_tie_goes_to_the_lowest_branch_not_to_the_first_to_finish(
    lengths: tuple[int, ...],
) -> None:
    samples = [FakeSample(str(i), n) for i, n in enumerate(lengths)]
    result, _ = run(samples)
    assert result.outcome.answer == "0"
    assert result.outcome.branch == 0


def test_the_branch_shown_gave_the_winning_answer() -> None:
    samples = [FakeSample("1", 5), FakeSample("2", 5), FakeSample("2", 5)]
    result, _ = run(samples)
    assert result.outcome.branch == 1
    assert result.outcome.answers[1] == result.outcome.answer == "2"


class Sums:
    """1+x is x+1."""

    revision = 0
    inactive = ""

    def key(self, answer: str) -> str:
        return {"1+x": "x+1"}.get(answer, answer)

    async def prepare(self, answer: str) -> None:
        raise AssertionError("its key takes no time")


def run_grouped(samples: list[FakeSample], **fields: Any) -> ProgramRun:
    async def scenario() -> ProgramRun:
        program = self_consistency(spec_for(samples, fields), 0.05, Sums())
        return await run_program(program, FakeBranches(samples))

    return run_virtual(scenario())


@pytest.mark.parametrize("mode", ["on", "shadow"])
def test_answers_that_only_algebra_finds_equal_vote_together(mode: str) -> None:
    """Two forms of one answer win against two of another, in both modes."""
    samples = [FakeSample(answer, 5) for answer in ("9", "x+1", "9", "1+x", "x+1")]
    outcome = run_grouped(samples, rule="decided", mode=mode).outcome
    assert (outcome.answer, [vote.count for vote in outcome.votes]) == ("x+1", [3, 2])
    if mode == "shadow":
        assert outcome.shadow is not None and outcome.shadow.answer == "x+1"


def test_a_rule_that_cannot_judge_is_reported_with_its_reason() -> None:
    samples = [FakeSample("7", 5)] * 4
    result, _ = run(samples, rule="hopeless")
    assert result.outcome.inactive == {"rule": "there is no reward model"}
    result, _ = run(samples, rule="decided")
    assert result.outcome.inactive == {}


def certain(answer: str, confidence: float, stopped: Any = None) -> FakeSample:
    return FakeSample(answer, 5, confidence=confidence, stopped=stopped)


def test_a_pruned_branch_has_no_vote_and_leaves_the_others_certain() -> None:
    samples = [certain("7", 9.0), certain("8", 1.0, "pruned"), certain("7", 9.0)]
    outcome = run(samples, branch_rule="deepconf", rule="hopeless")[0].outcome
    assert (outcome.answer, outcome.certaindex, outcome.answers) == ("7", 1.0, {0: "7", 2: "7"})
    assert [(vote.answer, vote.count) for vote in outcome.votes] == [("7", 2)]


def test_a_loop_counts_as_an_answer_that_never_came() -> None:
    samples = [certain("7", 9.0), certain("8", 9.0, "loop"), certain("7", 9.0)]
    looped = run(samples, stop_loops=True, rule="hopeless")[0].outcome
    assert looped.answers == {0: "7", 1: "", 2: "7"} and looped.certaindex < 1


def test_collapsed_entropy_keeps_the_answer_that_was_written() -> None:
    samples = [certain("7", 9.0, "certain")] * 3
    assert run(samples, entropy_floor=0.1)[0].outcome.answers == {0: "7", 1: "7", 2: "7"}


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
        assert sorted(client.started) == list(range(len(samples)))
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
