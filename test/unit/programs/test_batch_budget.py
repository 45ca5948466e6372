"""One budget for programs that run side by side."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dynasor.programs.batch_budget import BatchBudget


async def settle_the_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_each_program_begins_with_an_even_share() -> None:
    assert BatchBudget(100, 8, lambda: None).share_tokens == 12


@pytest.mark.parametrize("total", [0, 7])
def test_a_budget_without_a_token_for_each_is_refused(total: int) -> None:
    with pytest.raises(ValueError, match="total_tokens: must be at least 8"):
        BatchBudget(total, 8, lambda: None)


def test_what_one_saves_goes_to_the_most_valuable_request() -> None:
    async def scenario() -> None:
        waits: list[None] = []
        budget = BatchBudget(300, 3, lambda: waits.append(None))
        low = asyncio.ensure_future(budget.of(0).more(50, 0.1))
        high = asyncio.ensure_future(budget.of(1).more(50, 0.2))
        await settle_the_loop()
        assert len(waits) == 2 and not low.done() and not high.done()  # the third still runs
        budget.settle(2, 40)  # 60 saved
        assert (await high, await low) == (50, 10)

    asyncio.run(scenario())


def test_whoever_gets_nothing_waits_for_what_the_served_ones_save() -> None:
    async def scenario() -> None:
        budget = BatchBudget(300, 3, lambda: None)
        low = asyncio.ensure_future(budget.of(0).more(50, 0.1))
        high = asyncio.ensure_future(budget.of(1).more(50, 0.2))
        await settle_the_loop()
        budget.settle(2, 60)  # 40 saved, less than the more valuable one wants
        assert await high == 40
        await settle_the_loop()
        assert not low.done()
        budget.settle(1, 130)  # 10 of its 140 left
        assert await low == 10

    asyncio.run(scenario())


def test_where_nothing_is_left_all_are_told() -> None:
    async def scenario() -> list[int]:
        budget = BatchBudget(20, 2, lambda: None)
        return await asyncio.gather(budget.of(0).more(5, 1.0), budget.of(1).more(5, 1.0))

    assert asyncio.run(scenario()) == [0, 0]


def test_a_program_that_gives_up_waiting_does_not_keep_the_others() -> None:
    async def scenario() -> int:
        budget = BatchBudget(20, 2, lambda: None)
        waiting = asyncio.ensure_future(budget.of(0).more(5, 1.0))
        await settle_the_loop()
        waiting.cancel()
        await settle_the_loop()
        budget.settle(0, 4)
        return await budget.of(1).more(9, 0.5)

    assert asyncio.run(scenario()) == 6


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(1, 80), st.floats(0, 1)), min_size=1, max_size=12
    ),
    st.integers(0, 40),
)
def test_the_whole_batch_never_spends_more_than_its_total(
    programs: list[tuple[int, int, float]], extra: int
) -> None:
    """Program i first needs some tokens, then asks once for more, and spends all it may."""
    total = 20 * len(programs) + extra

    async def run(budget: BatchBudget, index: int, needs: int, asks: int, value: float) -> int:
        may = budget.share_tokens
        if needs > may:
            may += await budget.of(index).more(asks, value)
        spent = min(needs, may)
        budget.settle(index, spent)
        return spent

    async def scenario() -> list[int]:
        budget = BatchBudget(total, len(programs), lambda: None)
        return await asyncio.gather(*(run(budget, i, *item) for i, item in enumerate(programs)))

    spent = asyncio.run(asyncio.wait_for(scenario(), 10))
    assert sum(spent) <= total
    saved = sum(max(0, total // len(programs) - needs) for needs, _, _ in programs)
    if any(needs > total // len(programs) for needs, _, _ in programs) and saved:
        assert sum(spent) > sum(min(needs, total // len(programs)) for needs, _, _ in programs)
