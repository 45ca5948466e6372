"""A program and a policy of one's own do the same on a fake engine and in replay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.allocation import BetaRule
from sglang_dynasor.programs import (
    Failed,
    Finished,
    NodeError,
    ProgramRun,
    ReasoningProgram,
    Replayed,
    SelfConsistency,
    SelfConsistencySettings,
    Start,
    replay_nodes,
)
from support.fake_nodes import FakeNodes, FakeSample, run_fake
from support.own_programs import SUFFIX, Doubling, TwoLevels
from support.virtual_time import run_virtual

NODES = [f"s{step}" for step in range(3)]
NODES += [f"{step}l{leaf}" for step in NODES[:3] for leaf in range(3)]
samples_of_a_tree = st.fixed_dictionaries(
    {
        node: st.builds(FakeSample, st.sampled_from(["1", "2", "3", ""]), st.integers(1, 30))
        for node in NODES
    }
)


def run(
    program: ReasoningProgram, samples: dict[str, FakeSample], deadline_s: float | None = None
) -> tuple[ProgramRun, FakeNodes]:
    async def scenario() -> tuple[ProgramRun, FakeNodes]:
        client = FakeNodes(samples)
        return await run_fake(program, client, deadline_s), client

    result, client = run_virtual(scenario())
    assert not client.running
    return result, client


def replayed(program: ReasoningProgram, samples: dict[str, FakeSample]) -> Replayed:
    def recorded(start: Start) -> Finished | Failed:
        sample = samples[start.node]
        done = (sample.n_tokens, "completed", sample.answer, sample.answer)
        return Finished(start.node, "", *done)  # type: ignore[arg-type]

    return replay_nodes(program, recorded)


def tokens_of(run: ProgramRun) -> int:
    parts = [*run.finished.values(), *run.cancelled.values()]
    return sum(part.n_tokens for part in parts)


def alike(run: ProgramRun, replay: Replayed) -> None:
    assert run.outcome == replay.outcome
    assert tokens_of(run) == replay.tokens
    assert len(run.started) == replay.started
    assert run.sequential_tokens == replay.sequential_tokens


@settings(max_examples=200, deadline=None)
@given(samples_of_a_tree)
def test_a_tree_does_the_same_in_every_world(samples: dict[str, FakeSample]) -> None:
    live, client = run(TwoLevels(), samples)
    alike(live, replayed(TwoLevels(), samples))
    children = [start for start in client.starts if start.parent is not None]
    assert all(start.node.startswith(start.parent or "?") for start in children)
    assert {start.suffix for start in children} == {SUFFIX}


def test_a_tree_by_hand() -> None:
    """s2 and s0 are the first to finish; two leaves agree at 4 + 6, and the rest is cancelled."""
    samples = {node: FakeSample("", 50) for node in NODES}
    samples |= {"s0": FakeSample("", 5), "s1": FakeSample("", 9), "s2": FakeSample("", 4)}
    samples |= {"s2l0": FakeSample("7", 3), "s2l2": FakeSample("7", 6)}
    live, client = run(TwoLevels(), samples)
    assert (live.outcome.answer, live.outcome.stop_reason) == ("7", "certain")
    assert client.started == ["s0", "s1", "s2", "s2l0", "s2l1", "s2l2", "s0l0", "s0l1", "s0l2"]
    assert {n: part.n_tokens for n, part in live.cancelled.items()} == {
        "s1": 5,
        "s2l1": 6,
        "s0l0": 5,
        "s0l1": 5,
        "s0l2": 5,
    }
    assert live.sequential_tokens == 4 + 6
    assert [demand.needed for demand, _ in client.demands] == [3, 5, 6]


def test_a_tree_ends_with_what_it_has_at_its_deadline() -> None:
    samples = {node: FakeSample("7", 10) for node in NODES}
    live, _ = run(TwoLevels(), samples, deadline_s=5.5)
    assert (live.outcome.stop_reason, live.outcome.answer) == ("deadline", "")
    assert live.sequential_tokens == 5


def test_a_tree_goes_on_without_a_node_that_failed() -> None:
    samples = {node: FakeSample("7", 10) for node in NODES}
    samples["s0"] = FakeSample("", 2, error=NodeError("refused", status_code=503))
    live, _ = run(TwoLevels(), samples)
    assert (live.outcome.answer, live.failed) == ("7", {"s0": "refused"})


@pytest.mark.parametrize("offers", [False, True])
@settings(max_examples=100, deadline=None)
@given(
    drawn=st.lists(
        st.builds(FakeSample, st.sampled_from(["1", "2", ""]), st.integers(1, 30)),
        min_size=1,
        max_size=12,
    )
)
def test_a_policy_of_ones_own_is_followed_in_every_world(
    drawn: list[FakeSample], offers: bool
) -> None:
    samples = {str(index): sample for index, sample in enumerate(drawn)}
    settings_ = SelfConsistencySettings(
        max_branches=len(samples), rule=BetaRule(), grants=Doubling(), offers=offers
    )
    live, client = run(SelfConsistency(settings_), samples)
    alike(live, replayed(SelfConsistency(settings_), samples))
    if not offers and live.outcome.stop_reason == "completed":
        needed = [demand.needed for demand, _ in client.demands]
        assert needed[:-1] == [1, 2, 4, 8][: len(needed) - 1]
