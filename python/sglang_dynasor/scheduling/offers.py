"""Offer and draw: which speculative branches start while the machine has room, which end first.

A program offers branches that may turn out to be needed, each with what it would add to P(the vote
is right). An offer is a number in the program table and no request: it costs nothing until it is
drawn. The draw goes by value per token over all programs.
"""

from __future__ import annotations

import heapq

from sglang_dynasor.scheduling.program_entry import ProgramEntry, ProgramKey
from sglang_dynasor.scheduling.program_table import ProgramTable


def draw(table: ProgramTable, room: int) -> list[tuple[ProgramKey, int]]:
    """Draw up to `room` offered branches and note them as drawn: (program, count), best first.

    Branches drawn before that are still underway are taken off the room.
    """
    room -= sum(entry.underway for entry in table.offering())
    best = [
        (_negative_value(table, entry), entry.arrival, entry)
        for entry in table.offering()
        if entry.values
    ]
    heapq.heapify(best)
    counts: dict[ProgramKey, int] = {}
    while best and room > 0:
        _, arrival, entry = heapq.heappop(best)
        table.draw(entry)
        counts[entry.key] = counts.get(entry.key, 0) + 1
        room -= 1
        if entry.values:
            heapq.heappush(best, (_negative_value(table, entry), arrival, entry))
    return list(counts.items())


def surplus_running(table: ProgramTable, count: int) -> list[str]:
    """Up to `count` running requests that their programs do not need now, youngest program first.

    These make room when a needed request has to wait.
    """
    if count <= 0:
        return []
    rids: list[str] = []
    for entry in sorted(table.with_surplus(), key=lambda entry: -entry.arrival):
        rids += [rid for rid in entry.surplus() if rid in entry.running]
        if len(rids) >= count:
            break
    return rids[:count]


def _negative_value(table: ProgramTable, entry: ProgramEntry) -> float:
    return -entry.values[0] / table.branch_tokens(entry)
