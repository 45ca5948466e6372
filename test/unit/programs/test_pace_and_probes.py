"""Self-consistency at a pace, and with votes of branches that still run; live and replayed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.offline import Sample, Samples
from sglang_dynasor.offline.contenders import contenders
from sglang_dynasor.offline.traces import TraceProbe, TraceProblem
from sglang_dynasor.programs import (
    Finished,
    Outcome,
    Probed,
    ProgramRun,
    ProgramSpec,
    Replayed,
    Start,
    Trimmed,
    Watch,
    replay_nodes,
)
from sglang_dynasor.programs.params import RequestTraits
from support.fake_nodes import FakeNodes, FakeSample, run_fake
from support.probe_traces import made_up_problem
from support.virtual_time import run_virtual

RUN = {"algorithm": "self_consistency", "max_branches": 16}
NOT_DRAWING = DynasorConfig(speculative_share=0.0)


def program_of(traits: RequestTraits = RequestTraits(), **fields: Any) -> Any:  # noqa: B008
    return ProgramSpec.parse({**RUN, **fields}).resolve(NOT_DRAWING, traits).build()


def needed(actions: Any) -> list[str]:
    return [a.node for a in actions if isinstance(a, Start) and a.value is None]


def watched(actions: Any) -> dict[str, int]:
    return {action.node: action.every for action in actions if isinstance(action, Watch)}


def finished(node: str, answer: str, n_tokens: int = 100) -> Finished:
    return Finished(node, "", n_tokens, "completed", answer, answer)


@pytest.mark.parametrize(("pace", "expected"), [(1.0, 3), (1.5, 5), (2.0, 6), (4.0, 12), (9.0, 16)])
def test_so_many_times_the_fewest_run(pace: float, expected: int) -> None:
    assert len(needed(program_of(pace=pace).start())) == expected


def test_a_finish_tops_up_what_runs() -> None:
    program, fewest = program_of(pace=2.0), program_of(pace=1.0)
    running, least = len(needed(program.start())), len(needed(fewest.start()))
    for branch, answer in enumerate("123"):
        running += len(needed(program.on([finished(str(branch), answer)]))) - 1
        least += len(needed(fewest.on([finished(str(branch), answer)]))) - 1
        assert running >= min(2 * least, 15 - branch)  # those to spare run on
    assert running > 6


def test_the_pace_is_the_servers_where_the_client_names_none() -> None:
    config = DynasorConfig(pace=2.0)
    program = ProgramSpec.parse(RUN).resolve(config).build()
    assert len(needed(program.start())) == 6


def fed(program: Any, answers: str) -> Any:
    """The actions after the branches have answered so."""
    program.start()
    step: Any = ()
    for branch, answer in enumerate(answers):
        step = program.on([finished(str(branch), answer)])
    return step


def test_probing_starts_once_four_branches_agree() -> None:
    program = program_of(max_branches=32, probe_interval=64, pace=5.0, rule="beta", threshold=0.999)
    program.start()
    steps = [program.on([finished(str(branch), "1")]) for branch in range(4)]
    assert [len(watched(step)) for step in steps[:3]] == [0, 0, 0]
    assert set(watched(steps[3]).values()) == {64} and "4" in watched(steps[3])


def test_probes_that_confirm_the_leader_settle_the_vote() -> None:
    program = program_of(max_branches=32, probe_interval=64, pace=9.0)
    fed(program, "1122121212")
    step: Any = program.on([finished("10", "1")])
    step = program.on([finished("11", "1")])
    for branch in range(12, 32):
        step = program.on([Probed(str(branch), 64, "1", "1")])
        if isinstance(step, Outcome):
            break
    assert isinstance(step, Outcome)
    assert (step.stop_reason, step.answer) == ("certain", "1")
    assert step.votes[0].count == 7  # what the client is told are the finished ones


@pytest.mark.parametrize(
    "probe",
    [
        {"answer": "2", "group": "2"},
        {"answer": "", "group": ""},
        {"answer": "1", "group": "1", "hedged": True},
    ],
)
def test_other_empty_and_doubted_probes_confirm_nothing(probe: dict[str, Any]) -> None:
    program = program_of(max_branches=32, probe_interval=64, pace=9.0)
    fed(program, "112212121211")
    for branch in range(12, 32):
        assert program.on([Probed(str(branch), 64, **probe)]) == ()


def test_a_branch_that_starts_anew_confirms_nothing_any_more() -> None:
    program = program_of(max_branches=32, probe_interval=64, pace=9.0)
    fed(program, "112212121211")
    confirming = 0
    for branch in range(12, 32):
        if isinstance(program.on([Probed(str(branch), 64, "1", "1")]), Outcome):
            break
        confirming += 1
    again = program_of(max_branches=32, probe_interval=64, pace=9.0)
    fed(again, "112212121211")
    for branch in range(12, 12 + confirming):
        again.on([Probed(str(branch), 64, "1", "1")])
    step = again.on([Trimmed("12")])
    assert "12" in needed(step)
    assert not isinstance(again.on([Probed(str(12 + confirming), 64, "1", "1")]), Outcome)


def test_a_grammar_is_not_probed_and_the_report_says_so() -> None:
    program = program_of(
        RequestTraits(grammar=True), max_branches=4, probe_interval=64, rule="decided"
    )
    program.start()
    step: Any = ()
    for branch in range(4):
        if not isinstance(step, Outcome):
            assert not watched(step)
            step = program.on([finished(str(branch), str(branch % 2))])
    assert "grammar" in step.inactive["probe_interval"]


def live(samples: list[FakeSample], **fields: Any) -> tuple[ProgramRun, FakeNodes]:
    async def scenario() -> tuple[ProgramRun, FakeNodes]:
        client = FakeNodes(samples)
        return await run_fake(program_of(max_branches=len(samples), **fields), client), client

    return run_virtual(scenario())


def split_vote(probed: str) -> list[FakeSample]:
    """Ten short branches that do not settle it, and long ones that would answer `probed`."""
    short = [FakeSample("1" if n % 3 else "2", 20 + n) for n in range(12)]
    return [*short, *(FakeSample(probed, 400 + n, probes={30: probed}) for n in range(20))]


def test_live_probes_end_a_vote_before_its_long_branches() -> None:
    without, _ = live(split_vote("1"), pace=20.0)
    result, client = live(split_vote("1"), pace=20.0, probe_interval=16)
    assert result.outcome.answer == without.outcome.answer == "1"
    assert result.sequential_tokens < without.sequential_tokens / 5
    assert 0 < result.probe_tokens < 200
    assert client.watches


def test_probe_tokens_are_in_the_report_and_in_the_total() -> None:
    from sglang_dynasor.programs import build_report

    fields = {**RUN, "max_branches": 32, "pace": 20.0, "probe_interval": 16}
    result, _ = live(split_vote("1"), pace=20.0, probe_interval=16)
    tokens = build_report(ProgramSpec.parse(fields).resolve(NOT_DRAWING), result, 5, 1.0)["tokens"]
    assert tokens["probe"] == result.probe_tokens
    parts = ("prompt", "branch", "cancelled", "probe", "idle")
    assert tokens["total"] == sum(tokens[part] for part in parts)


def replayed(seed: int, name: str) -> Replayed:
    problem = TraceProblem(**made_up_problem(seed, 32) | {"samples": ()})
    samples = [
        Sample(
            sample["answer"],
            sample["n_tokens"],
            probes=[TraceProbe(**probe) for probe in sample["probes"]],
        )
        for sample in made_up_problem(seed, 32)["samples"]
    ]
    assert problem.gold
    return Samples(samples).replay(contenders(32)[name])


@pytest.mark.parametrize("seed", range(4))
def test_pace_and_running_votes_trade_tokens_for_the_longest_path(seed: int) -> None:
    fewest, paced, running, at_once = (
        replayed(seed, name)
        for name in ("dynasor_offers", "dynasor_pace", "dynasor_running", "dynasor_all_at_once")
    )
    assert paced.sequential_tokens <= fewest.sequential_tokens
    assert running.sequential_tokens <= paced.sequential_tokens
    assert running.tokens - running.probe_tokens <= paced.tokens <= at_once.tokens
    assert paced.probe_tokens == 0


class Watcher:
    """Watches its one node, and stops at the third probe, or at its end."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[int] = []

    def start(self) -> Any:
        return [Start("0"), Watch("0", self.every, "so", 20)]

    def on(self, events: Any) -> Any:
        for event in events:
            if isinstance(event, Probed):
                self.seen.append(event.at)
        if isinstance(events[-1], Finished) or len(self.seen) == 3:
            return Outcome("completed", "", None, 0.0, (), {}, 1)
        return ()


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 300), unique=True, max_size=12),
    st.integers(1, 200),
    st.integers(1, 300),
)
def test_replayed_probes_come_in_order_no_nearer_than_asked_and_all_are_counted(
    places: list[int], every: int, n_tokens: int
) -> None:
    recorded = [Probed("0", at, "1", "1") for at in sorted(places)]
    program = Watcher(every)
    result = replay_nodes(
        program, lambda start: finished("0", "1", n_tokens), probes_of=lambda node: recorded
    )
    assert set(program.seen) <= {at for at in places if at < n_tokens}
    gaps = [b - a for a, b in zip([0, *program.seen], program.seen, strict=False)]
    assert all(gap >= every for gap in gaps)
    assert result.probe_tokens == 20 * len(program.seen)
    assert result.tokens == result.steps + result.probe_tokens


def test_a_probe_that_comes_after_its_branch_has_ended_confirms_nothing() -> None:
    """It was forked before: its branch votes already, and would count twice."""
    program = program_of(max_branches=32, probe_interval=64, pace=9.0)
    fed(program, "1122121212")
    program.on([finished("10", "1")])
    program.on([finished("11", "1")])
    for branch in range(12):
        assert not program.on([Probed(str(branch), 64, "1", "1")])


def test_a_probe_that_was_overtaken_by_a_later_answer_changes_nothing() -> None:
    program = program_of(max_branches=32, probe_interval=64, pace=9.0)
    fed(program, "1122121212")
    program.on([finished("10", "1")])
    program.on([finished("11", "1")])
    for branch in range(12, 32):
        assert not program.on([Probed(str(branch), 70, "2", "2")])
        assert not program.on([Probed(str(branch), 64, "1", "1")])


def test_what_is_recorded_of_a_branch_is_in_order_each_place_once() -> None:
    program = program_of(max_branches=4, probe_interval=16, mode="shadow")
    program.start()
    for at, answer in ((16, "1"), (113, "7"), (108, "2"), (113, "7")):
        program.on([Probed("0", at, answer, answer)])
    outcome: Any = None
    for branch in range(4):
        outcome = program.on([finished(str(branch), "7")])
    assert [probe.at for probe in outcome.probes["0"]] == [16, 108, 113]
