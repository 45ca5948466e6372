"""Programs stay on one replica, spread evenly, and pass over one that is overloaded."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dynasor.scheduling.affinity import (
    OVERLOAD_FACTOR,
    OVERLOAD_REQUESTS,
    Residences,
    replica_of,
)
from sglang_dynasor.scheduling.program_entry import ProgramKey

KEYS = [ProgramKey(tenant, f"p{i}") for tenant in ("", "a") for i in range(500)]


def idle(*ranks: int) -> dict[int, float]:
    return dict.fromkeys(ranks, 0.0)


def test_programs_spread_evenly() -> None:
    counts = Counter(replica_of(key, idle(0, 1, 2, 3)) for key in KEYS)
    assert set(counts) == {0, 1, 2, 3}
    assert all(200 <= count <= 300 for count in counts.values())


def test_tenants_with_the_same_program_id_are_placed_apart() -> None:
    ranks = [
        [replica_of(ProgramKey(tenant, f"p{i}"), idle(*range(8))) for i in range(50)]
        for tenant in ("", "a", "b")
    ]
    assert ranks[0] != ranks[1] != ranks[2] != ranks[0]


def test_a_replica_that_leaves_moves_only_its_own_programs() -> None:
    before = {key: replica_of(key, idle(0, 1, 2)) for key in KEYS}
    after = {key: replica_of(key, idle(0, 2)) for key in KEYS}
    assert all(after[key] == rank for key, rank in before.items() if rank != 1)
    assert {after[key] for key, rank in before.items() if rank == 1} == {0, 2}


def test_an_overloaded_replica_is_passed_over_for_the_next_of_the_programs_own_order() -> None:
    loads = {0: 100.0, 1: 10.0, 2: 10.0}
    for key in KEYS:
        home = replica_of(key, idle(0, 1, 2))
        expected = replica_of(key, idle(1, 2)) if home == 0 else home
        assert replica_of(key, loads) == expected


@pytest.mark.parametrize(
    ("loads", "overloaded"),
    [
        ({0: OVERLOAD_REQUESTS, 1: 0.0, 2: 0.0}, False),  # three times the mean, but few
        ({0: OVERLOAD_REQUESTS + 1, 1: 0.0, 2: 0.0}, True),
        ({0: 90.0, 1: 40.0, 2: 50.0}, False),  # exactly twice the mean of the others
        ({0: 91.0, 1: 40.0, 2: 50.0}, True),
    ],
)
def test_overload_starts_above_twice_the_others_mean_and_above_a_few_requests(
    loads: dict[int, float], overloaded: bool
) -> None:
    ranks = {replica_of(key, loads) for key in KEYS}
    assert ranks == ({1, 2} if overloaded else {0, 1, 2})


@given(
    st.dictionaries(st.integers(0, 7), st.floats(0, 1e6), min_size=1),
    st.text("ab/", max_size=3),
    st.text("ab/", max_size=3),
)
def test_there_is_always_a_replica_and_never_one_above_the_bound(
    loads: dict[int, float], tenant: str, program_id: str
) -> None:
    rank = replica_of(ProgramKey(tenant, program_id), loads)
    others = [load for other, load in loads.items() if other != rank]
    mean = sum(others) / len(others) if others else loads[rank]
    assert loads[rank] <= max(OVERLOAD_FACTOR * mean, OVERLOAD_REQUESTS)


def test_without_a_replica_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one replica"):
        replica_of(KEYS[0], {})


def test_a_program_that_runs_stays_where_it_is_whatever_the_load() -> None:
    residences = Residences()
    key = KEYS[0]
    home = residences.enter(key, idle(0, 1))
    crowded = {home: 1000.0, 1 - home: 0.0}
    assert residences.enter(key, crowded) == home == residences.rank(key)
    residences.leave(key)
    assert residences.rank(key) == home
    residences.leave(key)
    assert residences.enter(key, crowded) == 1 - home


def test_a_program_moves_from_a_replica_that_is_gone() -> None:
    residences = Residences()
    home = residences.enter(KEYS[0], idle(0, 1))
    assert residences.enter(KEYS[0], idle(1 - home)) == 1 - home == residences.rank(KEYS[0])


@given(st.lists(st.sampled_from(KEYS[:3])))
def test_nothing_is_kept_of_programs_that_have_left(keys: list[ProgramKey]) -> None:
    residences = Residences()
    for key in keys:
        residences.enter(key, idle(0, 1))
    assert len(residences) == len(set(keys))
    for key in reversed(keys):
        assert key in residences
        residences.leave(key)
    assert not len(residences)
    assert all(key not in residences for key in keys)


def test_programs_are_found_by_their_id_for_one_tenant_or_for_all() -> None:
    residences = Residences()
    keys = [ProgramKey("a", "p"), ProgramKey("b", "p"), ProgramKey("a", "q")]
    for key in keys:
        residences.enter(key, idle(0))
    assert residences.named("p", "a") == keys[:1]
    assert residences.named("p", None) == keys[:2]
    assert residences.named("p", "c") == residences.named("x", None) == []
