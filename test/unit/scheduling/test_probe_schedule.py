"""Which requests are probed now: due ones, together, within a share, and never at others' cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dynasor.scheduling import Load
from sglang_dynasor.scheduling.probe_schedule import ProbeSchedule

PLENTY = Load(running=8, waiting=0, kv_tokens=100_000)


@dataclass(eq=False)
class Req:
    rid: str = "r"
    origin_input_ids: list[int] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)

    def grow(self, tokens: int) -> Req:
        self.output_ids += [1] * tokens
        return self


def schedule(*tokens: int, every: int = 100, places: int = 64) -> tuple[ProbeSchedule, list[Req]]:
    made = ProbeSchedule(places)
    reqs = [Req() for _ in tokens]
    for index, (req, count) in enumerate(zip(reqs, tokens, strict=True)):
        made.watch(req, every, 30, index)
        req.grow(count)
    return made, reqs


def taken(made: ProbeSchedule, load: Load = PLENTY) -> list[int]:
    return [content for _, content in made.due(load)]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((99,), []),
        ((100,), [0]),
        ((99, 98), []),
        ((100, 80), [0, 1]),  # the second is due soon
        ((100, 74), [0]),
        ((100, 130), [1, 0]),  # the latest first
    ],
)
def test_what_is_due_is_probed_together_with_what_is_due_soon(
    tokens: tuple[int, ...], expected: list[int]
) -> None:
    assert taken(schedule(*tokens)[0]) == expected


def test_watching_starts_from_where_a_request_is() -> None:
    made = ProbeSchedule(64)
    req = Req().grow(250)
    made.watch(req, 100, 30, 0)
    assert taken(made) == []
    req.grow(50)
    assert taken(made) == [0]


def test_nothing_is_probed_before_its_warm_up() -> None:
    made = ProbeSchedule(64)
    req = Req().grow(299)
    made.watch(req, 100, 30, 0, after=450)
    assert [taken(made) for _ in range(2) if req.grow(75)] == [[], []]
    req.grow(1)
    assert taken(made) == [0]


def test_a_request_is_probed_once_at_a_time_and_again_after_its_interval() -> None:
    made, (req,) = schedule(100)
    assert taken(made) == [0]
    req.grow(150)
    assert taken(made) == []
    made.ended(req)
    assert taken(made) == [0]


@pytest.mark.parametrize(
    "load",
    [
        Load(running=64, waiting=0, kv_tokens=100_000),
        Load(running=8, waiting=0, kv_tokens=250),  # the branches will need it
        Load(running=8, waiting=0, kv_tokens=29),
    ],
)
def test_nothing_is_probed_where_running_requests_need_the_room(load: Load) -> None:
    made, _ = schedule(100)
    assert taken(made, load) == []
    assert taken(made) == [0]  # it stays due


@pytest.mark.parametrize(("places", "kept"), [(64, 8), (8, 1), (4, 1), (2, 1), (1, 0)])
def test_places_are_kept_for_probes_while_some_are_wanted(places: int, kept: int) -> None:
    made = ProbeSchedule(places)
    assert made.reserved == 0
    req = Req()
    made.watch(req, 100, 30, 0)
    assert made.reserved == kept
    req.grow(100)
    taken(made, Load(running=places - 1, waiting=9, is_full=True, kv_tokens=100_000))
    assert made.reserved == max(0, kept - 1)
    made.forget(req)
    assert made.reserved == 0


def test_probes_take_a_share_of_the_places_at_most() -> None:
    made, reqs = schedule(*[100] * 20, places=64)
    assert len(taken(made)) == 8
    assert taken(made) == []
    made.ended(reqs[0])
    reqs[0].grow(500)
    assert len(taken(made)) == 1


def test_no_more_probes_once_nobody_watches() -> None:
    made, (req, other) = schedule(100, 100)
    taken(made)
    made.watch(req, 0, 0, None)
    made.forget(other)
    assert (len(made), made.underway) == (0, 0)
    made.ended(req)
    assert made.underway == 0


def test_watching_anew_keeps_the_probe_that_is_underway() -> None:
    made, (req,) = schedule(100)
    taken(made)
    made.watch(req, 10, 30, 1)
    req.grow(500)
    assert (taken(made), made.underway) == ([], 1)
    made.ended(req)
    assert taken(made) == [1]


@given(st.lists(st.tuples(st.sampled_from("wgfe"), st.integers(0, 5)), max_size=60))
def test_the_count_of_probes_is_that_of_those_underway(steps: list[tuple[str, int]]) -> None:
    made = ProbeSchedule(32)
    reqs = [Req() for _ in range(6)]
    underway: set[Req] = set()
    for step, index in steps:
        req = reqs[index]
        if step == "w":
            made.watch(req, 10, 5, index)
        elif step == "f":
            made.forget(req)
            underway.discard(req)
        elif step == "e":
            made.ended(req)
            underway.discard(req)
        else:
            req.grow(7)
            underway.update(found for found, _ in made.due(PLENTY))
        assert made.underway == len(underway) <= 4
