"""The order of the waiting queue: gangs, shortest first, worth, and nobody waits for ever."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.scheduling import POLICY_KEYS, ProgramKey, ProgramScheduler
from support.slot_engine import FakeRequest, SlotEngine

POLICIES = sorted(POLICY_KEYS)


def interleaved(engine: SlotEngine) -> tuple[list[FakeRequest], list[FakeRequest]]:
    """The paper's two programs of two requests, 4 and 5 ms, sent in turn."""
    (a,), (b,), (c,), (d,) = (engine.send(*args) for args in [("p", [4]), ("q", [5])] * 2)
    engine.drain()
    return [a, c], [b, d]


def mean_end(engine: SlotEngine) -> float:
    programs = interleaved(engine)
    return sum(engine.end_of(rids) for rids in programs) / len(programs)


def test_the_papers_example_takes_six_and_a_half_instead_of_nine() -> None:
    assert mean_end(SlotEngine(2, policy=None)) == 9.0
    for policy in POLICIES:
        assert mean_end(SlotEngine(2, policy)) == 6.5


def test_gang_takes_programs_that_run_first_and_then_by_arrival() -> None:
    engine = SlotEngine(1, "gang")
    engine.send("a", [9])
    engine.send("b", [9])
    engine.send("c", [9])
    engine.step()
    engine.send("b", [9])
    engine.send("a", [9])
    assert engine.order() == ["a", "b", "b", "c"]


def test_shortest_first_goes_by_the_work_a_program_has_left() -> None:
    engine = SlotEngine(1, "gang-sjf")
    engine.send("running", [50])
    engine.step()
    engine.send("three", [9, 9, 9])
    engine.send("one", [9])
    engine.send("two", [9, 9])
    engine.send("expects_four", [9], expected=4)
    assert engine.order() == ["one", "two", "two", "three", "three", "three", "expects_four"]


def test_a_program_of_short_branches_goes_before_one_of_long_branches() -> None:
    engine = SlotEngine(4, "gang-sjf")
    engine.send("long", [60, 60])
    engine.send("short", [3, 3])
    engine.drain()
    engine.send("filler", [9] * 4)
    engine.step()
    engine.send("long", [60])
    engine.send("short", [3])
    assert engine.order() == ["short", "long"]


def demanded(
    programs: ProgramScheduler, program: str, demand: Demand, kind: str = "self_consistency"
) -> None:
    key = ProgramKey("", program)
    programs.demand(key, demand, kind=kind, prompt_tokens=8, draws_seen=0)


def work_of(engine: SlotEngine, program: str) -> float:
    entry = engine.programs.table.find(ProgramKey("", program))
    assert entry is not None
    return engine.programs.table.remaining_tokens(entry)


def test_a_program_has_the_work_left_that_it_says() -> None:
    engine = SlotEngine(1)
    for name, work in (("open", 12.5), ("nearly done", 0.5)):
        demanded(engine.programs, name, Demand(work=work))
        engine.send(name, [9])
        assert work_of(engine, name) == pytest.approx((1 + work) * 256)


def test_running_branches_count_less_the_longer_they_have_run() -> None:
    engine = SlotEngine(2, "gang-sjf")
    engine.send("p", [300, 300])
    engine.step()
    before = work_of(engine, "p")
    for _ in range(40):
        engine.step()
    assert before - work_of(engine, "p") == pytest.approx(80)
    for _ in range(250):
        engine.step()
    assert work_of(engine, "p") > 0  # overdue, not done


def test_where_all_are_worth_the_same_value_is_shortest_first() -> None:
    orders = []
    for policy in ("value", "gang-sjf"):
        engine = SlotEngine(1, policy)
        for name, size in (("three", 3), ("one", 1), ("two", 2)):
            engine.send(name, [9] * size)
            demanded(engine.programs, name, Demand(worth=0.3))
        orders.append(engine.order())
    assert orders[0] == orders[1] == ["one", "two", "two", "three", "three", "three"]


def test_where_all_cost_the_same_too_value_keeps_gangs_in_the_order_of_arrival() -> None:
    orders = []
    for policy in ("value", "gang"):
        engine = SlotEngine(1, policy)
        for _ in range(3):
            for name in ("b", "a", "c"):
                engine.send(name, [9])
        orders.append(engine.order())
    assert orders[0] == orders[1] == ["b"] * 3 + ["a"] * 3 + ["c"] * 3


def test_value_prefers_what_adds_most_for_its_tokens() -> None:
    engine = SlotEngine(1, "value")
    engine.send("almost_settled", [9])
    demanded(engine.programs, "almost_settled", Demand(worth=0.01))
    engine.send("new", [9] * 4)
    assert engine.order() == ["new"] * 4 + ["almost_settled"]


@pytest.mark.parametrize("policy", POLICIES)
def test_branches_beyond_the_needed_ones_wait_for_everybody_else(policy: str) -> None:
    engine = SlotEngine(1, policy)
    first = engine.send("a", [9] * 3)
    demanded(engine.programs, "a", Demand(needed=2))
    engine.send("b", [9] * 8)
    engine.send(None, [9])
    engine.order()
    assert engine.queue[-1] is first[-1]


def test_plain_requests_are_programs_of_their_own() -> None:
    engine = SlotEngine(1, "gang-sjf")
    engine.send("p", [9] * 16)
    engine.send(None, [9])
    engine.send("q", [9] * 16)
    engine.send(None, [9])
    assert engine.order() == ["plain"] * 2 + ["p"] * 16 + ["q"] * 16


def test_a_queue_in_which_nothing_changed_is_not_touched() -> None:
    engine = SlotEngine(1, "gang")
    engine.send("a", [9] * 3)
    engine.order()
    engine.queue.reverse()
    reversed_queue = list(engine.queue)
    engine.order()
    assert engine.queue == reversed_queue
    engine.send("b", [9])
    engine.order()
    assert engine.queue != reversed_queue


@st.composite
def loads(draw: st.DrawFn) -> list[tuple[int, str | None, list[int]]]:
    names = st.one_of(st.none(), st.sampled_from([f"p{i}" for i in range(6)]))
    return draw(
        st.lists(
            st.tuples(
                st.integers(0, 5), names, st.lists(st.integers(1, 30), min_size=1, max_size=6)
            ),
            min_size=1,
            max_size=25,
        )
    )


@given(loads(), st.sampled_from(POLICIES), st.integers(1, 5), st.floats(0.01, 50))
@settings(max_examples=150, deadline=None)
def test_the_order_is_a_permutation_and_everything_is_served(
    load: list[tuple[int, str | None, list[int]]], policy: str, slots: int, factor: float
) -> None:
    engine = SlotEngine(slots, policy, factor)
    sent: list[str] = []
    for gap, name, lengths in load:
        sent += [request.rid for request in engine.send(name, lengths)]
        before = sorted(request.rid for request in engine.queue)
        engine.order()
        assert sorted(request.rid for request in engine.queue) == before
        for _ in range(gap):
            engine.step()
    engine.drain()
    assert sorted(engine.finished_at) == sorted(sent)
    assert len(engine.programs.table) == engine.programs.table.num_requests == 0


@given(loads(), st.sampled_from(POLICIES), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_two_ranks_that_see_the_same_requests_order_them_alike(
    load: list[tuple[int, str | None, list[int]]], policy: str, slots: int
) -> None:
    admitted = []
    for _ in range(2):
        engine = SlotEngine(slots, policy, 3.0)
        for gap, name, lengths in load:
            engine.send(name, lengths)
            for _ in range(gap):
                engine.step()
        engine.drain()
        admitted.append(engine.admitted)
    assert admitted[0] == admitted[1]


@given(st.integers(0, 2**16), st.sampled_from(["gang-sjf", "value"]), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_no_stream_of_shorter_programs_keeps_a_long_one_waiting_for_ever(
    seed: int, policy: str, slots: int
) -> None:
    """The adversary always has shorter programs at hand, more than the engine can ever serve."""
    rng = random.Random(seed)
    factor = 2.0
    engine = SlotEngine(slots, policy, factor)
    engine.send("first", [5] * slots)  # so that a branch is known to take 5 tokens
    engine.drain()
    engine.send("running", [5] * slots)
    engine.step()
    victim = engine.send("victim", [10] * 8)
    table = engine.programs.table
    need = work_of(engine, "victim")
    since = table.progress
    attackers = 0
    while any(request.rid not in engine.admitted for request in victim):
        for _ in range(rng.randint(1, slots + 1)):
            attackers += 1
            engine.send(f"attacker{attackers}", [rng.randint(1, 5)])
        # Everybody the victim may have to wait for: what runs, and who lost patience before it.
        ahead = 5 * slots + 5 * attackers
        assert table.progress - since <= factor * need + ahead + 10 * 8 + slots
        engine.step()
    # It was really overtaken as long as it was allowed to be.
    assert table.progress - since >= factor * need


def test_an_escalated_program_is_overtaken_by_nobody_who_came_to_patience_later() -> None:
    engine = SlotEngine(1, "gang-sjf", starvation_factor=0.05)
    engine.send("first", [5])  # so that a branch is known to take 5 tokens
    engine.drain()
    engine.send("running", [200])
    engine.step()
    engine.send("victim", [9] * 8)
    for _ in range(150):
        engine.step()
    engine.send("short", [1])
    assert engine.order() == ["victim"] * 8 + ["short"]


def running_program(engine: SlotEngine) -> str:
    while not engine.running:
        engine.step()
    return engine.running[0].rid.split("::")[0]


@pytest.mark.parametrize("policy", ["gang", "gang-sjf"])
def test_in_a_long_queue_programs_that_run_still_go_first(policy: str) -> None:
    """All wait far longer than their own work times the factor: that alone is no starvation."""
    engine = SlotEngine(1, policy, starvation_factor=2.0)
    engine.send("first", [5])  # so that a branch is known to take 5 tokens
    engine.drain()
    for number in range(40):
        engine.send(f"later{number}", [5])
    for _ in range(60):
        engine.step()
    running = running_program(engine)
    engine.send(running, [5])
    assert engine.order()[0] == running


def test_the_shortest_of_a_long_queue_goes_first_however_long_the_others_have_waited() -> None:
    engine = SlotEngine(1, "gang-sjf", starvation_factor=2.0)
    engine.send("first", [5])
    engine.drain()
    for number in range(40):
        engine.send(f"long{number}", [5, 5, 5])
    for _ in range(200):
        engine.step()
    running = running_program(engine)
    engine.send("short", [1])
    assert next(name for name in engine.order() if name != running) == "short"


def test_what_is_there_is_counted_once_and_only_while_it_is_there() -> None:
    engine = SlotEngine(2, "gang-sjf", starvation_factor=2.0)
    for number in range(9):
        engine.send(f"p{number}", [3, 4, 5])
        engine.step()
        engine.send(f"p{number // 2}", [2])
    order = engine.programs._order
    there = list(engine.programs.table.programs())
    assert there and order._backlog == pytest.approx(sum(entry.need for entry in there))
    engine.drain()
    assert order._backlog == pytest.approx(0)


def test_retracted_requests_go_back_to_their_program() -> None:
    engine = SlotEngine(2, "gang")
    engine.send("a", [9])
    engine.step()
    engine.send("b", [9] * 2)
    request = engine.running.pop()
    engine.programs.queued(request)
    engine.queue.append(request)
    assert engine.order() == ["a", "b", "b"]


def test_a_request_that_came_while_no_program_was_there_is_ordered_all_the_same() -> None:
    engine = SlotEngine(1, "gang-sjf")
    engine.send(None, [9])
    engine.send("p", [9] * 4)
    assert engine.order() == ["plain"] + ["p"] * 4


def test_plain_requests_go_as_they_came_once_the_last_program_has_gone() -> None:
    engine = SlotEngine(1, "gang-sjf")
    engine.send(None, [3])
    engine.step()  # takes the only place
    plain = [engine.send(None, [3], prompt=prompt)[0] for prompt in (400, 8, 90)]
    engine.send("p", [9] * 2)
    for request, tokens in ((plain[0], 900), (plain[2], 200)):
        prior = engine.programs.table.prior
        prior.add("plain", len(request.origin_input_ids), tokens)
    engine.order()
    ours = [request for request in engine.queue if request in plain]
    assert ours != plain  # shortest first
    engine.end(engine.programs.end(ProgramKey("", "p"), "m"))
    engine.order()
    assert engine.queue == plain
    engine.send("q", [1])
    engine.order()
    assert [request for request in engine.queue if request in plain] == ours


@pytest.mark.parametrize("policy", [None, *POLICIES])
def test_held_siblings_keep_their_places_in_the_queue(policy: str | None) -> None:
    engine = SlotEngine(1, policy, hold_tokens=8)
    first = engine.send("a", [9] * 3)
    plain = engine.send(None, [9] * 2)
    expected = [first[0], first[1], first[2], *plain]
    if policy in ("gang-sjf", "value"):
        expected = [*plain, *first]
    engine.programs.order(engine.queue)
    engine.programs.hold(engine.queue)
    assert engine.queue == [request for request in expected if request not in first[1:]]
    came_meanwhile = engine.send(None, [9])
    engine.programs.release(engine.queue)
    assert engine.queue == expected + came_meanwhile


def test_nothing_is_held_where_the_first_has_been_prefilled() -> None:
    engine = SlotEngine(1, "gang", hold_tokens=8)
    engine.send("a", [3, 3])
    engine.send(None, [3] * 5)
    engine.step()  # the first is admitted and prefilled
    engine.programs.order(engine.queue)
    engine.programs.hold(engine.queue)
    assert engine.queue[0].rid == "a::2"
