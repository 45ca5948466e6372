"""On which data-parallel replica a program lives: the same one for all of its requests.

Rendezvous hashing (Thaler and Ravishankar, 1998) needs no table and moves few programs when a
replica comes or goes; the bound on a replica's load is that of consistent hashing with bounded
loads (Mirrokni et al., arXiv 1608.01350), against the mean of the others: of two replicas one can
be overloaded as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from sglang_dynasor.scheduling.program_entry import ProgramKey

OVERLOAD_FACTOR = 2.0
OVERLOAD_REQUESTS = 8.0  # below this no replica counts as overloaded


def replica_of(key: ProgramKey, loads: Mapping[int, float]) -> int:
    """Return the replica of a program: the first of its own order that is not overloaded.

    `loads` maps each replica that takes requests to how many it has. One is overloaded with more
    than OVERLOAD_FACTOR times the mean of the others, and at least OVERLOAD_REQUESTS. Raises
    ValueError without a replica.
    """
    if not loads:
        raise ValueError("loads: at least one replica must take requests")
    return max(
        (rank for rank in loads if not _overloaded(rank, loads)),
        key=lambda rank: (_score(key, rank), rank),
    )


def _overloaded(rank: int, loads: Mapping[int, float]) -> bool:
    if loads[rank] <= OVERLOAD_REQUESTS or len(loads) == 1:
        return False
    others = sum(load for other, load in loads.items() if other != rank)
    return loads[rank] > OVERLOAD_FACTOR * others / (len(loads) - 1)


def _score(key: ProgramKey, rank: int) -> int:
    digest = hashlib.blake2b(f"{key.tenant}/{key.program_id}/{rank}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


class Residences:
    """Where the programs live that have requests: a program that runs does not move."""

    def __init__(self) -> None:
        self._rank: dict[ProgramKey, int] = {}
        self._users: dict[ProgramKey, int] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._users

    def __len__(self) -> int:
        return len(self._users)

    def enter(self, key: ProgramKey, loads: Mapping[int, float]) -> int:
        """Return the replica of a program and keep it until each `enter` has its `leave`.

        A replica that is gone from `loads` keeps nobody.
        """
        if self._rank.get(key) not in loads:
            self._rank[key] = replica_of(key, loads)
        self._users[key] = self._users.get(key, 0) + 1
        return self._rank[key]

    def named(self, program_id: str, tenant: str | None) -> list[ProgramKey]:
        """Programs here that have this id, of one tenant or (None) of all."""
        if tenant is not None:
            return [key for key in (ProgramKey(tenant, program_id),) if key in self]
        return [key for key in self._users if key.program_id == program_id]

    def rank(self, key: ProgramKey) -> int:
        """The replica of a program that has entered. Raises KeyError for any other."""
        return self._rank[key]

    def leave(self, key: ProgramKey) -> None:
        """Undo one `enter`; after the last one nothing is kept."""
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key], self._rank[key]
