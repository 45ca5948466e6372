"""The runner: whatever happens to a program, no branch is left running and every token counts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import (
    FinishedBranch,
    Grant,
    Offer,
    Outcome,
    ProgramRun,
    ProgramSpec,
    ReasoningProgram,
    run_program,
    self_consistency,
)
from support.fake_branches import UNSEEN_TOKENS, FakeBranches, FakeSample
from support.virtual_time import run_virtual


def program_of(**fields: object) -> ReasoningProgram:
    spec = ProgramSpec.parse({"algorithm": "self_consistency", "max_branches": 8, **fields})
    return self_consistency(spec.resolve(DynasorConfig()), 0.05)


def run(
    samples: list[FakeSample], deadline_s: float | None = None, **fields: object
) -> tuple[ProgramRun, FakeBranches]:
    async def scenario() -> tuple[ProgramRun, FakeBranches]:
        client = FakeBranches(samples)
        return await run_program(program_of(**fields), client, deadline_s), client

    result, client = run_virtual(scenario())
    assert not client.running
    return result, client


def agreeing(*lengths: int) -> list[FakeSample]:
    return [FakeSample("7", length) for length in lengths]


def outcome_of(branch: FinishedBranch) -> Outcome:
    return Outcome("completed", branch.text, branch.index, 0.0, (), {branch.index: branch.text}, 1)


def test_a_certain_program_cancels_its_running_branches_and_counts_their_tokens() -> None:
    samples = agreeing(10, 11, 12, 40, 50)
    result, client = run(samples, max_branches=5, grants="5", rule="threshold", threshold=1.0)
    assert result.outcome.stop_reason == "completed"  # threshold asks from five branches on
    result, client = run(samples, max_branches=5, grants="5", rule="dynasor", threshold=0.9)
    assert result.outcome.stop_reason in ("certain", "decided")
    assert result.outcome.answer == "7"
    assert sorted(result.finished) == [0, 1, 2]
    assert {index: part.n_tokens for index, part in result.cancelled.items()} == {3: 12, 4: 12}
    assert {part.stop_reason for part in result.cancelled.values()} == {"cancelled"}
    assert client.times_ended == 1


def test_counts_of_cancelled_branches_are_the_engines_not_what_was_streamed() -> None:
    result, _ = run(agreeing(10, 10, 10, 40), max_branches=4, grants="4", rule="decided")
    part = result.cancelled[3]
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
    assert sorted(result.finished) == [0, 1]
    assert {part.n_tokens for part in result.cancelled.values()} == {20}
    assert result.outcome.answer == "1"


def test_a_deadline_before_the_first_answer_leaves_no_branch_to_show() -> None:
    result, _ = run(agreeing(*[50] * 8), deadline_s=0.001)
    assert result.outcome.stop_reason == "deadline"
    assert result.outcome.branch is None
    assert result.outcome.answer == ""
    assert not result.finished


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
    assert None not in client.token_limits


def test_an_aborted_branch_aborts_the_program() -> None:
    samples = [FakeSample("1", 5, aborted=True), *agreeing(*[50] * 7)]
    result, _ = run(samples, grants="8")
    assert result.outcome.stop_reason == "aborted"
    assert len(result.cancelled) == 7


def test_an_error_in_a_branch_ends_the_program_and_is_raised() -> None:
    async def scenario() -> FakeBranches:
        samples = [*agreeing(60), FakeSample("7", 5, error=ValueError("too long")), *agreeing(60)]
        client = FakeBranches(samples)
        with pytest.raises(ValueError, match="too long"):
            await run_program(program_of(max_branches=3, grants="3"), client)
        return client

    client = run_virtual(scenario())
    assert not client.running
    assert client.times_ended == 1


def test_an_error_in_the_program_itself_ends_its_branches() -> None:
    def broken() -> ReasoningProgram:
        yield Grant(2)
        raise ZeroDivisionError
        yield Grant(0)

    async def scenario() -> FakeBranches:
        client = FakeBranches(agreeing(5, 60))
        with pytest.raises(ZeroDivisionError):
            await run_program(broken(), client)
        return client

    client = run_virtual(scenario())
    assert client.started == [0, 1]
    assert not client.running
    assert client.times_ended == 1


def test_cancelling_the_caller_leaves_no_branch_running() -> None:
    async def scenario() -> tuple[FakeBranches, set[int]]:
        client = FakeBranches(agreeing(*[100] * 8))
        task = asyncio.create_task(run_program(program_of(grants="8"), client))
        await asyncio.sleep(3)
        running = set(client.running)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return client, running

    client, running = run_virtual(scenario())
    assert running == set(range(8))
    assert not client.running
    assert client.times_ended == 1


def first_of(branches: int) -> ReasoningProgram:
    first = yield Grant(branches)
    assert first is not None
    return outcome_of(first)


def test_a_branch_is_prepared_before_the_program_sees_it_and_the_others_run_on() -> None:
    async def prepare(branch: FinishedBranch) -> FinishedBranch:
        await asyncio.sleep(5)
        return replace(branch, text=f"{branch.text}, prepared")

    async def scenario() -> ProgramRun:
        return await run_program(first_of(2), FakeBranches(agreeing(3, 100)), prepare=prepare)

    result = run_virtual(scenario())
    assert result.outcome.answer == "so \\boxed{7}, prepared"
    assert result.cancelled[1].n_tokens == 8


def test_a_branch_still_being_prepared_at_the_deadline_counts_as_it_is() -> None:
    async def scenario() -> tuple[ProgramRun, float]:
        client = FakeBranches(agreeing(3, 100))
        run = await run_program(first_of(2), client, 10.5, prepare=never)
        return run, asyncio.get_running_loop().time()

    result, ended_at = run_virtual(scenario())
    assert result.outcome.answer == "so \\boxed{7}"
    assert result.cancelled[1].n_tokens == 10
    assert ended_at == 10.5


async def never(branch: FinishedBranch) -> FinishedBranch:
    await asyncio.get_running_loop().create_future()
    return branch


def test_cancelling_the_caller_while_a_branch_is_prepared_leaves_no_branch_running() -> None:
    async def scenario() -> FakeBranches:
        client = FakeBranches(agreeing(3, 600))
        task = asyncio.create_task(run_program(first_of(2), client, prepare=never))
        await asyncio.sleep(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return client

    client = run_virtual(scenario())
    assert not client.running
    assert client.times_ended == 1


def test_a_client_that_is_gone_ends_the_program_soon() -> None:
    async def scenario() -> tuple[FakeBranches, float]:
        client = FakeBranches(agreeing(*[100] * 8), unwanted_after_s=4.0)
        with pytest.raises(ValueError, match="client gone"):
            await run_program(program_of(grants="8"), client)
        return client, asyncio.get_running_loop().time()

    client, gave_up_at = run_virtual(scenario())
    assert not client.running
    assert gave_up_at < 5.0


def test_branches_that_finish_together_are_counted_in_index_order() -> None:
    seen: list[int] = []

    def watching() -> ReasoningProgram:
        branch = yield Grant(4)
        while True:
            assert isinstance(branch, FinishedBranch)
            seen.append(branch.index)
            if len(seen) == 4:
                return Outcome("completed", "", None, 0.0, (), {}, 1)
            branch = yield Grant(0)

    async def scenario() -> None:
        await run_program(watching(), FakeBranches(agreeing(9, 9, 3, 9)))

    run_virtual(scenario())
    assert seen == [2, 0, 1, 3]


def offering(needed: int, values: int, until: int) -> ReasoningProgram:
    """Needs up to `needed` at a time, offers `values` beyond, and is done after `until` of them."""
    finished: list[FinishedBranch] = []
    while len(finished) < until:
        now = min(needed, until - len(finished))
        branch = yield Offer(now, (0.5,) * values, worth=1.0, certaindex=0.0)
        assert branch is not None
        finished.append(branch)
    return Outcome("completed", "", None, 0.0, (), {}, 1)


def run_offering(
    program: ReasoningProgram, samples: list[FakeSample], *events: tuple[float, str, int]
) -> tuple[ProgramRun, FakeBranches]:
    """Run with draws and trims at their (virtual) seconds."""

    async def scenario() -> tuple[ProgramRun, FakeBranches]:
        client = FakeBranches(samples)
        task = asyncio.create_task(run_program(program, client))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        for at, verb, argument in events:
            loop.call_at(at, getattr(client, verb), argument)
        return await task, client

    result, client = run_virtual(scenario())
    assert not client.running
    return result, client


def test_an_offer_starts_only_what_is_needed_until_branches_are_drawn() -> None:
    result, client = run_offering(offering(2, 6, until=2), agreeing(10, 10))
    assert client.started == [0, 1]
    assert result.drawn == frozenset()
    assert client.times_ended == 0


def test_drawn_branches_run_beside_the_needed_ones_and_count_when_they_finish() -> None:
    result, client = run_offering(
        offering(1, 3, until=3), agreeing(10, 10, 10, 10), (4.5, "draw", 2)
    )
    assert client.started[:3] == [0, 1, 2]
    assert result.drawn == {1, 2}
    assert {0, 1, 2} <= result.finished.keys()


def test_a_drawn_branch_is_the_needed_one_of_the_next_step() -> None:
    _, client = run_offering(offering(1, 3, until=2), agreeing(10, 10, 10), (4.5, "draw", 1))
    assert client.started == [0, 1]  # the second was under way when it became needed


def test_more_draws_than_offers_start_no_more_than_was_offered() -> None:
    _, client = run_offering(offering(1, 2, until=1), agreeing(10, 90, 90), (1.0, "draw", 40))
    assert client.started == [0, 1, 2]


def test_the_engine_hears_of_every_draw_the_program_has_seen() -> None:
    _, client = run_offering(
        offering(1, 5, until=1), agreeing(10, 90, 90), (1.0, "draw", 1), (2.0, "draw", 1)
    )
    seen = [draws for _, draws in client.reports]
    assert seen == [0, 1, 2]
    assert [len(step.values) for step, _ in client.reports if isinstance(step, Offer)] == [5, 4, 3]


def test_a_branch_that_made_room_is_sampled_again_when_it_is_needed() -> None:
    result, client = run_offering(
        offering(1, 3, until=2), agreeing(10, 10), (2.0, "draw", 1), (5.0, "trim", 1)
    )
    assert client.started == [0, 1, 1]
    assert [(part.index, part.n_tokens) for part in result.trimmed] == [(1, 3)]
    assert sorted(result.finished) == [0, 1]


def test_a_branch_that_made_room_is_not_lost_when_the_program_ends() -> None:
    result, client = run_offering(
        offering(1, 3, until=1), agreeing(10, 90), (2.0, "draw", 1), (5.0, "trim", 1)
    )
    assert client.started == [0, 1]
    assert [part.n_tokens for part in result.trimmed] == [3]
    assert not result.cancelled


def test_draws_that_arrive_after_the_end_start_nothing() -> None:
    async def scenario() -> FakeBranches:
        client = FakeBranches(agreeing(5, 5))
        await run_program(offering(1, 1, until=1), client)
        client.draw(1)
        return client

    assert run_virtual(scenario()).started == [0]


def test_a_program_that_ends_with_nothing_running_tells_the_engine() -> None:
    _, client = run_offering(offering(1, 0, until=1), agreeing(5))
    assert client.closed and client.times_ended == 0
