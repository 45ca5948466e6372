from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sglang_dynasor.allocation import BetaRule
from sglang_dynasor.allocation.budget_pool import BudgetPool
from sglang_dynasor.allocation.value import branch_values
from sglang_dynasor.certaindex import CertaindexTracker, Evidence
from sglang_dynasor.offline import Sample, full_vote

BRANCH_TOKENS = 100
Value = Callable[[Evidence, float], Sequence[float]]


def test_what_a_program_saves_goes_to_the_request_of_highest_value() -> None:
    pool = BudgetPool(40)
    for name in "abcd":
        pool.register(name, 10)
    pool.request("b", 5, 0.1)
    pool.request("c", 5, 0.3)
    assert pool.serve() == {}
    pool.settle("a", 3)
    assert pool.serve() == {"c": 5, "b": 2}
    assert (pool.granted("b"), pool.granted("c"), pool.free_tokens) == (12, 15, 0)
    pool.settle("d", 4)
    assert pool.serve() == {"b": 3}  # what still waited
    assert pool.free_tokens == 3


def test_equal_values_are_served_in_order_of_registration() -> None:
    pool = BudgetPool(10)
    for name in "ba":
        pool.register(name, 0)
    pool.request("a", 8, 0.5)
    pool.request("b", 8, 0.5)
    assert pool.serve() == {"b": 8, "a": 2}


def test_a_later_request_replaces_the_one_that_waits() -> None:
    pool = BudgetPool(10)
    for name in "abc":
        pool.register(name, 0)
        pool.request(name, 4, 0.5)
    pool.request("b", 1, 0.9)
    pool.request("a", 0, 0.5)
    assert pool.serve() == {"b": 1, "c": 4}


def test_a_settled_program_gets_nothing_more() -> None:
    pool = BudgetPool(10)
    for name in "ab":
        pool.register(name, 5)
        pool.request(name, 9, 1.0)
    pool.settle("a", 0)
    assert pool.serve() == {"b": 5}
    for call in (lambda: pool.request("a", 1, 1.0), lambda: pool.settle("a", 0)):
        with pytest.raises(KeyError, match="a"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pool: BudgetPool(-1), "total_tokens"),
        (lambda pool: pool.register("a", 0), "registered already"),
        (lambda pool: pool.register("b", -1), "reserve_tokens"),
        (lambda pool: pool.register("b", 5), "reserve_tokens must be at most 4"),
        (lambda pool: pool.request("a", -1, 1.0), "tokens"),
        (lambda pool: pool.request("a", 1, -0.1), "value_per_token"),
        (lambda pool: pool.request("a", 1, float("nan")), "value_per_token"),
        (lambda pool: pool.request("a", 1, float("inf")), "value_per_token"),
        (lambda pool: pool.settle("a", -1), "spent_tokens"),
        (lambda pool: pool.settle("a", 7), "spent_tokens must be at most 6"),
    ],
)
def test_amounts_out_of_range_are_refused_and_change_nothing(call, message: str) -> None:
    pool = BudgetPool(10)
    pool.register("a", 6)
    with pytest.raises(ValueError, match=message):
        call(pool)
    assert (pool.free_tokens, pool.granted("a")) == (4, 6)


class AnyUse(RuleBasedStateMachine):
    """Every legal order of calls keeps the books."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BudgetPool(100)
        self.granted: dict[str, int] = {}
        self.wanted: dict[str, int] = {}
        self.spent = 0
        self.programs = 0

    @rule(share=st.floats(0, 1))
    def register(self, share: float) -> None:
        self.programs += 1
        name = str(self.programs)
        self.granted[name] = int(share * self.pool.free_tokens)
        self.wanted[name] = 0
        self.pool.register(name, self.granted[name])

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), tokens=st.integers(0, 80), value=st.floats(0, 1))
    def request(self, data, tokens: int, value: float) -> None:
        name = data.draw(st.sampled_from(sorted(self.granted)))
        self.pool.request(name, tokens, value)
        self.wanted[name] = tokens

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def settle(self, data) -> None:
        name = data.draw(st.sampled_from(sorted(self.granted)))
        spent = data.draw(st.integers(0, self.granted.pop(name)))
        del self.wanted[name]
        self.spent += spent
        self.pool.settle(name, spent)

    @rule()
    def serve(self) -> None:
        for name, tokens in self.pool.serve().items():
            assert 0 < tokens <= self.wanted[name]
            self.granted[name] += tokens
            self.wanted[name] -= tokens
        # No token lies idle while a program waits.
        assert self.pool.free_tokens == 0 or not any(self.wanted.values())

    @invariant()
    def the_total_is_never_exceeded_and_no_token_is_lost(self) -> None:
        assert self.spent + sum(self.granted.values()) + self.pool.free_tokens == 100
        assert self.pool.free_tokens >= 0
        assert {name: self.pool.granted(name) for name in self.granted} == self.granted


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(derandomize=True, deadline=None, max_examples=60)


@pytest.mark.parametrize("branches_each", [5, 6, 8])
def test_a_pool_answers_more_questions_right_than_an_even_split_of_the_same_tokens(
    branches_each: int,
) -> None:
    problems = population(seed=0, size=600)
    even = sum(full_vote(samples[:branches_each]) == "a" for samples in problems)
    answers, spent = pooled(problems, branches_each)
    assert spent <= branches_each * BRANCH_TOKENS * len(problems)
    assert answers.count("a") > even


def test_serving_the_highest_values_first_beats_serving_the_lowest() -> None:
    def reversed_values(evidence: Evidence, mean_tokens: float) -> Sequence[float]:
        return (1 - branch_values(evidence, mean_tokens)[0],)

    problems = population(seed=0, size=600)
    by_value, _ = pooled(problems, 5)
    by_least, _ = pooled(problems, 5, reversed_values)
    assert by_value.count("a") > by_least.count("a")


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_a_pooled_batch_never_spends_more_than_the_even_split(seed: int, branches: int) -> None:
    problems = population(seed, size=20)
    answers, spent = pooled(problems, branches)
    assert spent <= branches * BRANCH_TOKENS * len(problems)
    assert all(answers)


def pooled(
    problems: list[list[Sample]], branches_each: int, value: Value = branch_values
) -> tuple[list[str], int]:
    """Run a batch, a branch of each program at a time: its answers and the tokens it spent."""
    reserve = branches_each * BRANCH_TOKENS
    pool = BudgetPool(reserve * len(problems))
    trackers = {str(index): CertaindexTracker(len(one)) for index, one in enumerate(problems)}
    for name in trackers:
        pool.register(name, reserve)
    running = dict(trackers)
    progress = True
    while progress:  # until all have ended, or nobody can pay for another branch
        progress = False
        for name, tracker in list(running.items()):
            evidence = tracker.evidence()
            spent = tracker.finished * BRANCH_TOKENS
            if BetaRule().decide(evidence) or not evidence.remaining:
                pool.settle(name, spent)
                del running[name]
            elif spent < pool.granted(name):
                tracker.add(tracker.finished, problems[int(name)][tracker.finished].answer)
                progress = True
            else:
                pool.request(name, BRANCH_TOKENS, value(evidence, BRANCH_TOKENS)[0])
        progress |= bool(pool.serve())
    answers = [tracker.leader.answer for tracker in trackers.values() if tracker.leader]
    return answers, sum(tracker.finished for tracker in trackers.values()) * BRANCH_TOKENS


def population(seed: int, size: int) -> list[list[Sample]]:
    """Problems of every difficulty, 32 samples each; "a" is right, the errors differ."""
    rng = random.Random(seed)
    problems = []
    for _ in range(size):
        right = rng.betavariate(3, 1)
        problems.append(
            [
                Sample("a" if rng.random() < right else rng.choice("bcde"), BRANCH_TOKENS)
                for _ in range(32)
            ]
        )
    return problems
