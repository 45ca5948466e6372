"""The runner: whatever happens to a program, no node is left running and every token counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import (
    Aborted,
    Action,
    Cancel,
    ClientGone,
    Demand,
    Event,
    Expired,
    Failed,
    Finished,
    NodeError,
    Outcome,
    ProgramAborted,
    ProgramRun,
    ProgramSpec,
    ReasoningProgram,
    Start,
    Trimmed,
)
from support.fake_nodes import UNSEEN_TOKENS, FakeNodes, FakeSample, Spelling, run_fake
from support.virtual_time import run_virtual

REFUSED = NodeError("the queue is full", status_code=503)
NOTHING = Outcome("completed", "", None, 0.0, (), {}, 1)


def program_of(**fields: object) -> ReasoningProgram:
    spec = ProgramSpec.parse({"algorithm": "self_consistency", "max_branches": 8, **fields})
    return spec.resolve(DynasorConfig()).build()


def run(
    samples: list[FakeSample], deadline_s: float | None = None, **fields: object
) -> tuple[ProgramRun, FakeNodes]:
    return run_own(program_of(**fields), samples, deadline_s)


def run_own(
    program: ReasoningProgram,
    samples: list[FakeSample],
    deadline_s: float | None = None,
    grouping: Spelling | None = None,
) -> tuple[ProgramRun, FakeNodes]:
    async def scenario() -> tuple[ProgramRun, FakeNodes]:
        client = FakeNodes(samples)
        return await run_fake(program, client, deadline_s, grouping), client

    result, client = run_virtual(scenario())
    assert not client.running
    return result, client


def agreeing(*lengths: int) -> list[FakeSample]:
    return [FakeSample("7", length) for length in lengths]


class Scripted:
    """Starts some nodes and keeps every batch of events; `answer` says what to do with one."""

    def __init__(self, nodes: int, until: int | None = None) -> None:
        self.batches: list[Sequence[Event]] = []
        self.finished = 0
        self._nodes = nodes
        self._until = nodes if until is None else until

    def start(self) -> Sequence[Action]:
        return [Start(str(node)) for node in range(self._nodes)]

    def on(self, events: Sequence[Event]) -> Sequence[Action] | Outcome:
        self.batches.append(events)
        self.finished += sum(isinstance(event, Finished) for event in events)
        if self.finished >= self._until or isinstance(events[-1], Expired | Aborted):
            return NOTHING
        return self.answer(events)

    def answer(self, events: Sequence[Event]) -> Sequence[Action]:
        return ()

    @property
    def nodes_seen(self) -> list[str]:
        return [e.node for batch in self.batches for e in batch if isinstance(e, Finished)]


def test_a_certain_program_cancels_its_running_branches_and_counts_their_tokens() -> None:
    samples = agreeing(10, 11, 12, 40, 50)
    result, client = run(samples, max_branches=5, grants="5", rule="threshold", threshold=1.0)
    assert result.outcome.stop_reason == "completed"  # threshold asks from five branches on
    result, client = run(samples, max_branches=5, grants="5", rule="dynasor", threshold=0.9)
    assert result.outcome.stop_reason in ("certain", "decided")
    assert result.outcome.answer == "7"
    assert sorted(result.finished) == ["0", "1", "2"]
    assert {node: part.n_tokens for node, part in result.cancelled.items()} == {"3": 12, "4": 12}
    assert {part.stop_reason for part in result.cancelled.values()} == {"cancelled"}
    assert client.times_ended == 1


def test_counts_of_cancelled_branches_are_the_engines_not_what_was_streamed() -> None:
    result, _ = run(agreeing(10, 10, 10, 40), max_branches=4, grants="4", rule="decided")
    part = result.cancelled["3"]
    assert part.n_tokens == 10
    assert len(part.text) == 10 - UNSEEN_TOKENS


def test_a_program_that_needs_every_branch_ends_nothing() -> None:
    result, client = run(agreeing(5, 6, 7), max_branches=3, min_branches=3)
    assert result.outcome.stop_reason == "completed"
    assert not result.cancelled
    assert client.times_ended == 0


def test_the_deadline_ends_the_program_in_time_with_what_it_has() -> None:
    samples = [FakeSample("1", 3), FakeSample("2", 4), *agreeing(100, 100)]
    result, _ = run(samples, deadline_s=20.25, max_branches=4, grants="4")
    assert result.outcome.stop_reason == "deadline"
    assert sorted(result.finished) == ["0", "1"]
    assert {part.n_tokens for part in result.cancelled.values()} == {20}
    assert result.outcome.answer == "1"
    assert result.sequential_tokens == 20  # it waited for the long ones, in vain


def test_a_deadline_before_the_first_answer_leaves_no_branch_to_show() -> None:
    result, _ = run(agreeing(*[50] * 8), deadline_s=0.001)
    assert result.outcome.stop_reason == "deadline"
    assert result.outcome.node is None
    assert result.outcome.answer == ""
    assert not result.finished


class Slow(Spelling):
    """A grouping that takes its time for every answer, as algebra may."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def prepare(self, answer: str) -> None:
        await asyncio.sleep(self._seconds)


def test_a_deadline_loses_no_finished_branch_to_the_algebra_of_another() -> None:
    """8 have finished when the deadline passes while the first is still being grouped."""
    result, _ = run_own(program_of(grants="8"), agreeing(*[5] * 8), 6.0, grouping=Slow(100.0))
    assert result.outcome.stop_reason in ("certain", "decided", "deadline")
    assert sorted(result.finished) == list("01234567")
    assert not result.cancelled


def test_answers_are_grouped_one_after_another_in_finishing_order() -> None:
    program = Scripted(3)
    run_own(program, agreeing(9, 3, 6), grouping=Slow(20.0))
    assert program.nodes_seen == ["1", "2", "0"]
    assert [len(batch) for batch in program.batches] == [1, 1, 1]


def test_what_is_ready_comes_in_one_batch_and_the_deadline_last() -> None:
    program = Scripted(4)
    run_own(program, agreeing(5, 4, 3, 90), 6.0, grouping=Slow(100.0))
    kinds = [type(event).__name__ for event in program.batches[-1]]
    assert (program.nodes_seen, kinds) == (["2", "1", "0"], ["Finished"] * 3 + ["Expired"])


@pytest.mark.parametrize("cap", [1, 30, 100])
def test_the_token_cap_holds_over_all_branches(cap: int) -> None:
    samples = [FakeSample(str(index), 20 + index) for index in range(8)]
    result, _ = run(samples, max_total_tokens=cap, grants="3")
    spent = [*result.finished.values(), *result.cancelled.values()]
    assert sum(branch.n_tokens for branch in spent) <= cap
    assert result.outcome.stop_reason == "budget"


def test_a_roomy_token_cap_changes_nothing() -> None:
    samples = [FakeSample(str(index), 20) for index in range(8)]
    result, client = run(samples, max_total_tokens=10_000)
    assert result.outcome.stop_reason == "completed"
    assert None not in [start.max_tokens for start in client.starts]


def test_an_aborted_branch_aborts_the_program() -> None:
    samples = [FakeSample("1", 5, aborted=True), *agreeing(*[50] * 7)]
    result, _ = run(samples, grants="8")
    assert result.outcome.stop_reason == "aborted"
    assert len(result.cancelled) == 8


def test_a_program_aborted_by_its_id_answers_with_what_it_has() -> None:
    async def scenario() -> ProgramRun:
        client = FakeNodes([FakeSample("1", 1), *agreeing(*[100] * 7)], 4.0, ProgramAborted())
        return await run_fake(program_of(grants="8"), client)

    result = run_virtual(scenario())
    assert (result.outcome.stop_reason, result.outcome.answer) == ("aborted", "1")
    assert len(result.cancelled) == 7


def test_one_failed_branch_costs_one_branch() -> None:
    samples = [*agreeing(9), FakeSample("8", 5, error=REFUSED), *agreeing(10, 11, 12)]
    result, client = run(samples, max_branches=5, grants="3,1", rule="decided")
    assert (result.outcome.answer, result.outcome.stop_reason) == ("7", "decided")
    assert result.failed == {"1": "the queue is full"}
    assert sorted(result.finished) == ["0", "2", "3"]
    assert not client.running


def test_a_program_fails_with_the_first_error_when_nothing_can_answer() -> None:
    async def scenario() -> FakeNodes:
        first = FakeSample("7", 5, error=REFUSED)
        others = [FakeSample("7", 9, error=NodeError("later", status_code=500))] * 7
        client = FakeNodes([*others[:1], first, *others])
        with pytest.raises(NodeError, match="the queue is full") as caught:
            await run_fake(program_of(grants="3"), client)
        assert caught.value.status_code == 503
        return client

    client = run_virtual(scenario())
    assert client.started == ["0", "1", "2"] and client.closed


@pytest.mark.parametrize("grants", ["8", "4"])
def test_a_program_whose_every_branch_is_refused_fails_however_many_it_started(grants: str) -> None:
    async def scenario() -> None:
        with pytest.raises(NodeError, match="the queue is full") as caught:
            client = FakeNodes([FakeSample("7", 5, error=REFUSED)] * 8)
            await run_fake(program_of(grants=grants, max_branches=8), client)
        assert caught.value.status_code == 503

    run_virtual(scenario())


def test_a_deadline_beside_refused_branches_is_a_deadline() -> None:
    async def scenario() -> ProgramRun:
        client = FakeNodes([FakeSample("7", 50), *[FakeSample("7", 5, error=REFUSED)] * 7])
        return await run_fake(program_of(grants="8", max_branches=8), client, deadline_s=20)

    assert run_virtual(scenario()).outcome.stop_reason == "deadline"


def test_a_refused_program_starts_nothing_until_a_sibling_has_finished() -> None:
    """No storm of refusals: the queue has room again once something has left it."""
    refused = FakeSample("8", 1, error=REFUSED)
    samples = [FakeSample("7", 40), refused, refused, *agreeing(*[10] * 5)]
    result, client = run(samples, draw="offer")
    assert result.sequential_tokens > 40  # the others waited for the first
    assert client.started[:3] == ["0", "1", "2"]
    assert len(client.started) > 3
    assert [demand.needed for demand, _ in client.demands][:3] == [3, 2, 1]  # what still runs
    assert client.times_ended == 0


def test_with_nothing_running_what_was_refused_is_made_up_for_at_once() -> None:
    samples = [FakeSample("7", 1), FakeSample("8", 5, error=REFUSED), *agreeing(*[10] * 6)]
    result, client = run(samples, grants="2")
    assert len(client.started) > 2 and "1" in result.failed
    assert result.outcome.answer == "7"


def test_a_defect_of_the_client_ends_the_program_and_is_raised() -> None:
    async def scenario() -> FakeNodes:
        samples = [*agreeing(60), FakeSample("7", 5, error=ValueError("broken")), *agreeing(60)]
        client = FakeNodes(samples)
        with pytest.raises(ValueError, match="broken"):
            await run_fake(program_of(max_branches=3, grants="3"), client)
        return client

    client = run_virtual(scenario())
    assert not client.running
    assert client.times_ended == 1


def test_an_outcome_is_returned_whatever_happens_to_the_siblings() -> None:
    class Failing(FakeNodes):
        async def end(self) -> dict[str, int]:
            await super().end()
            return {}

        async def generate(self, start: Start):  # type: ignore[no-untyped-def]
            generated = await super().generate(start)
            if generated.stop_reason == "cancelled":
                raise ValueError("cancelled while it was sent")
            return generated

    async def scenario() -> ProgramRun:
        return await run_fake(program_of(grants="8", rule="decided"), Failing(samples))

    samples = agreeing(*[5] * 5, 90, 90, 90)
    result = run_virtual(scenario())
    assert result.outcome.stop_reason == "decided"
    assert set(result.failed) == {"4", "5", "6", "7"}


def test_an_error_in_the_program_itself_ends_its_branches() -> None:
    class Broken(Scripted):
        def answer(self, events: Sequence[Event]) -> Sequence[Action]:
            raise ZeroDivisionError

    async def scenario() -> FakeNodes:
        client = FakeNodes(agreeing(5, 60))
        with pytest.raises(ZeroDivisionError):
            await run_fake(Broken(2), client)
        return client

    client = run_virtual(scenario())
    assert client.started == ["0", "1"]
    assert not client.running
    assert client.times_ended == 1


class Deaf(Scripted):
    def on(self, events: Sequence[Event]) -> Sequence[Action] | Outcome:
        return ()


class Restarting(Scripted):
    def answer(self, events: Sequence[Event]) -> Sequence[Action]:
        return [Start("0")]


@pytest.mark.parametrize(
    ("program", "deadline_s", "error", "message"),
    [
        (Deaf(1), None, RuntimeError, "waits, and nothing is running"),
        (Deaf(1), 2.0, TypeError, "Expired.* wants an outcome"),
        (Restarting(2), None, ValueError, "node 0 has ended"),
    ],
)
def test_a_program_that_breaks_the_protocol_is_told(
    program: Scripted, deadline_s: float | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_own(program, agreeing(5, 60), deadline_s)


def test_cancelling_the_caller_leaves_no_branch_running() -> None:
    async def scenario() -> tuple[FakeNodes, set[str]]:
        client = FakeNodes(agreeing(*[100] * 8))
        task = asyncio.create_task(run_fake(program_of(grants="8"), client))
        await asyncio.sleep(3)
        running = set(client.running)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return client, running

    client, running = run_virtual(scenario())
    assert running == set("01234567")
    assert not client.running
    assert client.times_ended == 1


def test_cancelling_the_caller_while_an_answer_is_grouped_leaves_nothing_running() -> None:
    async def scenario() -> tuple[FakeNodes, float]:
        client = FakeNodes(agreeing(1, 100))
        task = asyncio.create_task(run_fake(Scripted(2), client, None, Slow(500.0)))
        await asyncio.sleep(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return client, asyncio.get_running_loop().time()

    client, ended_at = run_virtual(scenario())
    assert not client.running and client.times_ended == 1
    assert ended_at < 5


def test_a_client_that_is_gone_ends_the_program_soon() -> None:
    async def scenario() -> tuple[FakeNodes, float]:
        client = FakeNodes(agreeing(*[100] * 8), 4.0, ClientGone("client gone"))
        with pytest.raises(ClientGone, match="client gone"):
            await run_fake(program_of(grants="8"), client)
        return client, asyncio.get_running_loop().time()

    client, gave_up_at = run_virtual(scenario())
    assert not client.running
    assert gave_up_at < 5.0


def test_branches_that_finish_together_are_counted_in_index_order() -> None:
    program = Scripted(4)
    run_own(program, agreeing(9, 9, 3, 9))
    assert program.nodes_seen == ["2", "0", "1", "3"]


class Cancelling(Scripted):
    def answer(self, events: Sequence[Event]) -> Sequence[Action]:
        return [Cancel(("1", "7"))]


def test_a_cancelled_node_ends_without_an_event_and_its_tokens_count() -> None:
    program = Cancelling(3, until=2)
    result, client = run_own(program, agreeing(5, 90, 20))
    assert program.nodes_seen == ["0", "2"]
    assert {node: part.n_tokens for node, part in result.cancelled.items()} == {"1": 5}
    assert client.times_ended == 0


def test_the_sequential_tokens_are_the_longest_path_that_was_waited_for() -> None:
    rounds, _ = run(agreeing(10, 40, 5, 7, 9), max_branches=5, grants="2,2", rule="decided")
    assert rounds.outcome.stop_reason == "decided"
    assert rounds.sequential_tokens == 40 + 5  # the stop came with the third, not the fourth
    disagreeing = [FakeSample(str(index), 10 + index) for index in range(4)]
    all_at_once, _ = run(disagreeing, max_branches=4, grants="4")
    assert all_at_once.sequential_tokens == 13


class Offering(Scripted):
    """Needs up to `needed` at a time, offers `values` beyond, and is done after `until` of them."""

    def __init__(self, needed: int, values: int, until: int) -> None:
        super().__init__(0, until)
        self._needed = needed
        self._values = values
        self._ended: set[str] = set()

    def start(self) -> Sequence[Action]:
        return self.answer(())

    def answer(self, events: Sequence[Event]) -> Sequence[Action]:
        self._ended |= {event.node for event in events if isinstance(event, Finished)}
        left = [str(node) for node in range(20) if str(node) not in self._ended]
        needed = min(self._needed, self._until - self.finished)
        offered = left[needed : needed + self._values]
        return [
            Demand(),
            *(Start(node) for node in left[:needed]),
            *(Start(node, value=0.5) for node in offered),
        ]


def run_offering(
    program: Offering, samples: list[FakeSample], *events: tuple[float, str, object]
) -> tuple[ProgramRun, FakeNodes]:
    """Run with draws and trims at their (virtual) seconds."""

    async def scenario() -> tuple[ProgramRun, FakeNodes]:
        client = FakeNodes(samples)
        task = asyncio.create_task(run_fake(program, client))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        for at, verb, argument in events:
            loop.call_at(at, getattr(client, verb), argument)
        return await task, client

    result, client = run_virtual(scenario())
    assert not client.running
    return result, client


def test_an_offer_starts_only_what_is_needed_until_branches_are_drawn() -> None:
    result, client = run_offering(Offering(2, 6, until=2), agreeing(10, 10))
    assert client.started == ["0", "1"]
    assert result.drawn == frozenset()
    assert client.times_ended == 0


def test_drawn_branches_run_beside_the_needed_ones_and_count_when_they_finish() -> None:
    result, client = run_offering(
        Offering(1, 3, until=3), agreeing(10, 10, 10, 10), (4.5, "draw", 2)
    )
    assert client.started[:3] == ["0", "1", "2"]
    assert result.drawn == {"1", "2"}
    assert {"0", "1", "2"} <= result.finished.keys()


def test_a_drawn_branch_is_the_needed_one_of_the_next_step() -> None:
    _, client = run_offering(Offering(1, 3, until=2), agreeing(10, 10, 10), (4.5, "draw", 1))
    assert client.started == ["0", "1"]  # the second was under way when it became needed
    assert [demand.needed for demand, _ in client.demands] == [1, 1, 1]


def test_more_draws_than_offers_start_no_more_than_was_offered() -> None:
    _, client = run_offering(Offering(1, 2, until=1), agreeing(10, 90, 90), (1.0, "draw", 40))
    assert client.started == ["0", "1", "2"]


def test_the_engine_hears_of_every_draw_the_program_has_seen() -> None:
    _, client = run_offering(
        Offering(1, 5, until=1), agreeing(10, 90, 90), (1.0, "draw", 1), (2.0, "draw", 1)
    )
    assert [draws for _, draws in client.demands] == [0, 1, 2]
    assert [len(demand.values) for demand, _ in client.demands] == [5, 4, 3]


def test_a_demand_that_says_nothing_new_is_not_sent() -> None:
    class Repeating(Offering):
        def answer(self, events: Sequence[Event]) -> Sequence[Action]:
            return super().answer(())

    _, client = run_offering(
        Repeating(1, 0, until=1), agreeing(9, 5), (1.0, "trim", "0"), (2.0, "draw", 0)
    )
    assert len(client.demands) == 1


def test_a_branch_that_made_room_is_sampled_again_when_it_is_needed() -> None:
    result, client = run_offering(
        Offering(1, 3, until=2), agreeing(10, 10), (2.0, "draw", 1), (5.0, "trim", "1")
    )
    assert client.started == ["0", "1", "1"]
    assert [(node, part.n_tokens) for node, part in result.trimmed] == [("1", 3)]
    assert sorted(result.finished) == ["0", "1"]


def test_a_branch_that_made_room_is_not_lost_when_the_program_ends() -> None:
    program = Offering(1, 3, until=1)
    result, client = run_offering(program, agreeing(10, 90), (2.0, "draw", 1), (5.0, "trim", "1"))
    assert client.started == ["0", "1"]
    assert [part.n_tokens for _, part in result.trimmed] == [3]
    assert not result.cancelled
    assert Trimmed("1") in program.batches[0]


def test_draws_that_arrive_after_the_end_start_nothing() -> None:
    async def scenario() -> FakeNodes:
        client = FakeNodes(agreeing(5, 5))
        await run_fake(Offering(1, 1, until=1), client)
        client.draw(1)
        return client

    assert run_virtual(scenario()).started == ["0"]


def test_a_program_that_ends_with_nothing_running_tells_the_engine() -> None:
    _, client = run_offering(Offering(1, 0, until=1), agreeing(5))
    assert client.closed and client.times_ended == 0


def test_a_failed_node_is_an_event() -> None:
    program = Scripted(2, until=1)
    run_own(program, [FakeSample("7", 2, error=REFUSED), *agreeing(5)])
    assert program.batches[0] == [Failed("0", "the queue is full")]
