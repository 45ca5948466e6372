"""Which requests of a program wait until another has prefilled their prompt."""

from __future__ import annotations

from types import SimpleNamespace

from sglang_dynasor.scheduling import ProgramKey, ProgramTable

THRESHOLD = 64
LONG, OTHER, SHORT = range(100), range(1, 101), range(THRESHOLD - 1)


def table_with(**prompts: range) -> ProgramTable:
    """One program of requests that wait, by name."""
    table = ProgramTable(hold_tokens=THRESHOLD)
    for rid, prompt in prompts.items():
        ids = list(prompt)
        table.add(ProgramKey("", "p"), rid, prompt_ids=ids)
        request = SimpleNamespace(rid=rid, origin_input_ids=ids, arrival=table.next_arrival())
        table.enqueue(request)
    return table


def test_siblings_wait_for_the_first_until_their_prompt_is_cached() -> None:
    table = table_with(a=LONG, b=LONG, c=LONG)
    assert table.held() == {"b", "c"}
    table.admit("a")
    assert table.held() == {"b", "c"}
    table.cache_prompt("a")
    assert table.held() == set()


def test_the_next_goes_when_the_first_is_gone_before_it_was_prefilled() -> None:
    table = table_with(a=LONG, b=LONG, c=LONG)
    table.admit("a")
    table.retire("a", 0)
    assert table.held() == {"c"}


def test_requests_with_another_beginning_or_a_short_prompt_do_not_wait() -> None:
    assert table_with(a=LONG, b=OTHER, c=LONG).held() == {"c"}
    assert table_with(a=SHORT, b=SHORT).held() == set()
    assert table_with(a=LONG).held() == set()
