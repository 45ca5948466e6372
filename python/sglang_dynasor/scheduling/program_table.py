"""Which requests belong to which program. Scheduler-side truth, pure bookkeeping.

Keys are (tenant, program_id): two tenants may use the same id and never meet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class ProgramKey(NamedTuple):
    tenant: str
    program_id: str


@dataclass(slots=True)
class ProgramEntry:
    """One program with requests in the engine."""

    key: ProgramKey
    rids: set[str] = field(default_factory=set)
    prompt_cached: bool = False  # a branch has been prefilled, so siblings can share its prompt


@dataclass(slots=True)
class EndedProgram:
    """A program being ended: branches that still drain, and the counts of those that are gone."""

    key: ProgramKey
    message_id: str
    draining: set[str]
    tokens_at_end: dict[str, int]
    tokens: dict[str, int] = field(default_factory=dict)


class ProgramTable:
    """Programs with live requests, and programs that are being ended."""

    def __init__(self) -> None:
        self._programs: dict[ProgramKey, ProgramEntry] = {}
        self._program_of: dict[str, ProgramEntry] = {}
        self._ending: list[EndedProgram] = []

    def __len__(self) -> int:
        return len(self._programs)

    def __contains__(self, rid: str) -> bool:
        return rid in self._program_of

    @property
    def num_requests(self) -> int:
        return len(self._program_of)

    def add(self, key: ProgramKey, rid: str) -> None:
        """Register a request; its program appears with the first one."""
        entry = self._programs.setdefault(key, ProgramEntry(key))
        entry.rids.add(rid)
        self._program_of[rid] = entry

    def program_of(self, rid: str) -> ProgramEntry | None:
        return self._program_of.get(rid)

    def rids(self, key: ProgramKey) -> frozenset[str]:
        """Requests of a program, empty when it has none."""
        entry = self._programs.get(key)
        return frozenset(entry.rids) if entry else frozenset()

    def all_rids(self) -> list[str]:
        return list(self._program_of)

    def retire(self, rid: str, tokens: int) -> None:
        """A request is gone, having generated `tokens`; its program goes with the last one."""
        entry = self._program_of.pop(rid, None)
        if entry is None:
            return
        entry.rids.discard(rid)
        if not entry.rids:
            self._programs.pop(entry.key, None)
        for ended in self._ending:
            if rid in ended.draining:
                ended.draining.discard(rid)
                ended.tokens[rid] = tokens

    def end(self, key: ProgramKey, message_id: str, tokens_now: dict[str, int]) -> None:
        """Start to end a program; `tokens_now` counts what each of its live requests generated."""
        self._ending.append(EndedProgram(key, message_id, set(self.rids(key)), tokens_now))

    def pop_ended(self) -> list[EndedProgram]:
        """Programs whose last branch has drained since the last call, in the order they ended."""
        if not self._ending:
            return []
        done = [ended for ended in self._ending if not ended.draining]
        self._ending = [ended for ended in self._ending if ended.draining]
        return done
