"""The order of the waiting queue: gangs, shortest first, worth, and nobody waits for ever."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.scheduling import POLICY_KEYS, ProgramKey, ProgramOrder, ProgramTable
from support.slot_engine import FakeRequest, SlotEngine

POLICIES = sorted(POLICY_KEYS)


def interleaved(engine: SlotEngine) -> tuple[list[str], list[str]]:
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


def order_of(engine: SlotEngine) -> list[str]:
    assert engine.order
    engine.order.sort(engine.queue)
    return [request.rid.split("::")[0] for request in engine.queue]


def test_gang_takes_programs_that_run_first_and_then_by_arrival() -> None:
    engine = SlotEngine(1, "gang")
    engine.send("a", [9])
    engine.send("b", [9])
    engine.send("c", [9])
    engine.step()
    engine.send("b", [9])
    engine.send("a", [9])
    assert order_of(engine) == ["a", "b", "b", "c"]


def test_shortest_first_goes_by_the_work_a_program_has_left() -> None:
    engine = SlotEngine(1, "gang-sjf")
    engine.send("running", [50])
    engine.step()
    engine.send("three", [9, 9, 9])
    engine.send("one", [9])
    engine.send("two", [9, 9])
    engine.send("expects_four", [9], max_branches=4)
    assert order_of(engine) == ["one", "two", "two", "three", "three", "three", "expects_four"]


def test_a_program_of_short_branches_goes_before_one_of_long_branches() -> None:
    engine = SlotEngine(4, "gang-sjf")
    engine.send("long", [60, 60])
    engine.send("short", [3, 3])
    engine.drain()
    engine.send("filler", [9] * 4)
    engine.step()
    engine.send("long", [60])
    engine.send("short", [3])
    assert order_of(engine) == ["short", "long"]


def test_a_nearly_certain_program_is_nearly_done() -> None:
    table = ProgramTable()
    for name, certaindex in (("open", 0.2), ("certain", 0.95)):
        key = ProgramKey("", name)
        table.open(key, "self_consistency", 8, 16)
        table.add(key, f"{name}::0")
        table.enqueue(FakeRequest(f"{name}::0"))
        table.report(key, certaindex=certaindex, needed=None, worth=1.0, values=(), draws_seen=0)
    work = {entry: table.remaining_tokens(entry) for entry in table.changed.values()}
    by_name = {entry.key.program_id: tokens for entry, tokens in work.items()}
    assert by_name["certain"] < 2.0 * table.prior.tokens("self_consistency", 8)
    assert by_name["open"] == pytest.approx((1 + 15 * 0.8) * 256)


def test_running_branches_count_less_the_longer_they_have_run() -> None:
    engine = SlotEngine(2, "gang-sjf")
    rids = engine.send("p", [300, 300])
    entry = engine.table.program_of(rids[0])
    assert entry is not None
    engine.step()
    before = engine.table.remaining_tokens(entry)
    for _ in range(40):
        engine.step()
    assert before - engine.table.remaining_tokens(entry) == pytest.approx(80)
    for _ in range(250):
        engine.step()
    assert engine.table.remaining_tokens(entry) > 0  # overdue, not done


def reported(engine: SlotEngine, program: str, worth: float, needed: int | None = None) -> None:
    key = ProgramKey("", program)
    engine.table.report(key, certaindex=0.0, needed=needed, worth=worth, values=(), draws_seen=0)


def test_where_all_are_worth_the_same_value_is_shortest_first() -> None:
    orders = []
    for policy in ("value", "gang-sjf"):
        engine = SlotEngine(1, policy)
        for name, size in (("three", 3), ("one", 1), ("two", 2)):
            engine.send(name, [9] * size)
            reported(engine, name, worth=0.3)
        orders.append(order_of(engine))
    assert orders[0] == orders[1] == ["one", "two", "two", "three", "three", "three"]


def test_where_all_cost_the_same_too_value_keeps_gangs_in_the_order_of_arrival() -> None:
    orders = []
    for policy in ("value", "gang"):
        engine = SlotEngine(1, policy)
        for _ in range(3):
            for name in ("b", "a", "c"):
                engine.send(name, [9])
        orders.append(order_of(engine))
    assert orders[0] == orders[1] == ["b"] * 3 + ["a"] * 3 + ["c"] * 3


def test_value_prefers_what_adds_most_for_its_tokens() -> None:
    engine = SlotEngine(1, "value")
    engine.send("almost_settled", [9])
    reported(engine, "almost_settled", worth=0.01)
    engine.send("new", [9] * 4)
    assert order_of(engine) == ["new"] * 4 + ["almost_settled"]


@pytest.mark.parametrize("policy", POLICIES)
def test_branches_beyond_the_needed_ones_wait_for_everybody_else(policy: str) -> None:
    engine = SlotEngine(1, policy)
    first = engine.send("a", [9] * 3)
    reported(engine, "a", worth=1.0, needed=2)
    engine.send("b", [9] * 8)
    engine.send(None, [9])
    assert engine.order
    engine.order.sort(engine.queue)
    assert engine.queue[-1].rid == first[-1]
    assert engine.table.is_late(first[-1]) and not engine.table.is_late(first[0])


def test_plain_requests_are_programs_of_their_own() -> None:
    engine = SlotEngine(1, "gang-sjf")
    engine.send("p", [9] * 16)
    engine.send(None, [9])
    engine.send("q", [9] * 16)
    engine.send(None, [9])
    assert order_of(engine) == ["plain"] * 2 + ["p"] * 16 + ["q"] * 16


def test_a_queue_in_which_nothing_changed_is_not_touched() -> None:
    engine = SlotEngine(1, "gang")
    engine.send("a", [9] * 3)
    assert engine.order
    engine.order.sort(engine.queue)
    engine.queue.reverse()
    reversed_queue = list(engine.queue)
    engine.order.sort(engine.queue)
    assert engine.queue == reversed_queue
    engine.send("b", [9])
    engine.order.sort(engine.queue)
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
        sent += engine.send(name, lengths)
        assert engine.order
        before = sorted(request.rid for request in engine.queue)
        engine.order.sort(engine.queue)
        assert sorted(request.rid for request in engine.queue) == before
        for _ in range(gap):
            engine.step()
    engine.drain()
    assert sorted(engine.finished_at) == sorted(sent)
    assert len(engine.table) == 0 and engine.table.num_requests == 0


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
    entry = engine.table.program_of(victim[0])
    assert entry is not None
    need = engine.table.remaining_tokens(entry)
    since = engine.table.progress
    attackers = 0
    while any(rid not in engine.admitted for rid in victim):
        for _ in range(rng.randint(1, slots + 1)):
            attackers += 1
            engine.send(f"attacker{attackers}", [rng.randint(1, 5)])
        # Everybody the victim may have to wait for: what runs, and who lost patience before it.
        ahead = 5 * slots + 5 * attackers
        assert engine.table.progress - since <= factor * need + ahead + 10 * 8 + slots
        engine.step()
    # It was really overtaken as long as it was allowed to be.
    assert engine.table.progress - since >= factor * need


def test_an_escalated_program_is_overtaken_by_nobody_who_came_to_patience_later() -> None:
    engine = SlotEngine(1, "gang-sjf", starvation_factor=0.05)
    engine.send("running", [200])
    engine.step()
    engine.send("victim", [9] * 8)
    for _ in range(150):
        engine.step()
    engine.send("short", [1])
    assert order_of(engine) == ["victim"] * 8 + ["short"]


def test_retracted_requests_go_back_to_their_program() -> None:
    engine = SlotEngine(2, "gang")
    engine.send("a", [9])
    engine.step()
    engine.send("b", [9] * 2)
    request = engine.running.pop()
    engine.table.enqueue(request)
    engine.queue.append(request)
    assert order_of(engine) == ["a", "b", "b"]
    assert isinstance(engine.order, ProgramOrder)


def test_a_request_that_came_while_no_program_was_there_is_ordered_all_the_same() -> None:
    engine = SlotEngine(1, "gang-sjf")
    plain = FakeRequest("plain::0", 1, engine.table.next_arrival())
    engine.queue.append(plain)  # upstream's own: the table has not heard of it
    engine.send("p", [9] * 4)
    assert order_of(engine) == ["plain"] + ["p"] * 4


def test_requests_that_are_held_back_stay_out_of_the_queue() -> None:
    engine = SlotEngine(1, "gang-sjf")
    engine.send("a", [9] * 3)
    held = engine.queue.pop()
    engine.send("b", [9])
    assert order_of(engine) == ["b", "a", "a"]
    engine.queue.append(held)
    engine.send("c", [9])
    assert order_of(engine) == ["b", "c", "a", "a", "a"]
