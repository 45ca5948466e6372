"""Which requests of a program wait until another has prefilled their prompt."""

from __future__ import annotations

from types import SimpleNamespace

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.managers.scheduler import DynasorScheduler
from sglang_dynasor.scheduling import ProgramKey, ProgramTable

THRESHOLD = 64
LONG, OTHER, SHORT = range(100), range(1, 101), range(THRESHOLD - 1)


def held(table: ProgramTable) -> set[str]:
    config = DynasorConfig(prefix_hold_tokens=THRESHOLD)
    scheduler = SimpleNamespace(dynasor_config=config, program_table=table)
    return DynasorScheduler._siblings_to_hold(scheduler)  # type: ignore[arg-type]


def table_with(**prompts: range) -> ProgramTable:
    """One program of requests that wait, by name."""
    table = ProgramTable()
    for rid, prompt in prompts.items():
        ids = list(prompt)
        table.add(ProgramKey("", "p"), rid, prompt_tokens=len(ids), prompt_ids=ids)
        request = SimpleNamespace(rid=rid, origin_input_ids=ids, arrival=table.next_arrival())
        table.enqueue(request)
    return table


def test_siblings_wait_for_the_first_until_their_prompt_is_cached() -> None:
    table = table_with(a=LONG, b=LONG, c=LONG)
    assert held(table) == {"b", "c"}
    table.admit("a")
    assert held(table) == {"b", "c"}
    table.cache_prompt("a")
    assert held(table) == set()


def test_the_next_goes_when_the_first_is_gone_before_it_was_prefilled() -> None:
    table = table_with(a=LONG, b=LONG, c=LONG)
    table.admit("a")
    table.retire("a", 0)
    assert held(table) == {"c"}


def test_requests_with_another_beginning_or_a_short_prompt_do_not_wait() -> None:
    assert held(table_with(a=LONG, b=OTHER, c=LONG)) == {"c"}
    assert held(table_with(a=SHORT, b=SHORT)) == set()
    assert held(table_with(a=LONG)) == set()
