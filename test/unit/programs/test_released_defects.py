"""The faults of the released code (Dynasor 0d2f1b9 and what copied it), one test for each.

Those of its answers are in `test/unit/certaindex/test_equality.py`, those of its HTTP streams in
`test/e2e/test_chains.py`.
"""

from __future__ import annotations

from typing import Any

import pytest

from sglang_dynasor.certaindex.hedges import is_hedged
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import Cancel, Finished, Outcome, Probed, ProgramSpec, Start, Watch
from sglang_dynasor.programs.params import RequestTraits
from support.fake_nodes import FakeNodes, FakeSample, run_fake
from support.virtual_time import run_virtual

MID = {"algorithm": "cot", "probe_interval": 64, "window": 3}


def resolved(fields: dict[str, Any]) -> Any:
    return ProgramSpec.parse(fields).resolve(DynasorConfig(), RequestTraits(opens_thought=True))


def after(*answers: str) -> Any:
    """What follows the last of these probes."""
    program = resolved(MID).build()
    program.start()
    step: Any = ()
    for index, answer in enumerate(answers, 1):
        step = program.on([Probed("0", 64 * index, answer, answer)])
    return step


@pytest.mark.parametrize(
    "answers", [("1", "2", "3"), ("", "", ""), ("4", "4", ""), ("4", "5", "4")]
)
def test_answers_that_differ_or_are_empty_end_no_chain(answers: tuple[str, ...]) -> None:
    """`should_early_exit` ended with `return True` (issue 25)."""
    assert not after(*answers)
    assert after("4", "4", "4") == [Cancel(("0",), keep_kv=True)]


def test_a_chain_that_has_ended_generates_no_further() -> None:
    """Its servers asked for the next piece without a look at the end of the last."""
    client = FakeNodes([FakeSample("46", 100, text="</think>\\boxed{46}")])
    run = run_virtual(run_fake(resolved(MID).build(), client))
    assert client.started == ["0"]
    assert run.outcome.stop_reason == "completed"


@pytest.mark.parametrize("text", ["nonzero}", "the north}", "a button}", "threshold}", "normal}"])
def test_a_hedge_is_a_whole_word(text: str) -> None:
    """Words were looked for as substrings: these could never be certain."""
    assert not is_hedged(text, text.rstrip("}"))


def test_the_effort_of_a_request_is_that_of_the_request() -> None:
    """Its proxy dropped the field: every request got the effort of the command line."""
    for effort in ("mild", "crazy"):
        parsed = ProgramSpec.parse({"algorithm": "cot", "saving_effort": effort})
        assert parsed.params.saving_effort == effort  # type: ignore[attr-defined]


def test_no_probe_comes_before_the_first_interval() -> None:
    """Its clients probed the prompt alone: two equal guesses ended a chain of 32 tokens."""
    probes: dict[int, str] = {0: "7"}
    client = FakeNodes([FakeSample("46", 1000, probes=probes, text="x")])
    run_virtual(run_fake(resolved(MID).build(), client, deadline_s=130))
    watches = [watch for watch in client.watches if watch.every]
    assert watches == [Watch("0", 64, watches[0].text, watches[0].max_tokens, False, 0)]


def test_tokens_of_probes_are_counted() -> None:
    """Published savings left them out."""
    client = FakeNodes(
        {
            "0": FakeSample("", 1000, probes={0: "46"}, text="so"),
            "1": FakeSample("46", 5, text="</think>\\boxed{46}"),
        }
    )
    run = run_virtual(run_fake(resolved(MID).build(), client))
    assert run.probe_tokens > 0


def test_three_equal_probes_end_a_chain_that_then_answers() -> None:
    """What the released preset `mid` was meant to do."""
    program = resolved(MID).build()
    program.start()
    for at in (64, 128, 192):
        step = program.on([Probed("0", at, "46", "46")])
    assert step == [Cancel(("0",), keep_kv=True)]
    step = program.on([Finished("0", "12+34 is 46", 200, "cut")])
    assert isinstance(step[0], Start) and step[0].parent == "0"
    outcome = program.on([Finished("1", "</think>\\boxed{46}", 5, "completed", "46", "46")])
    assert isinstance(outcome, Outcome)
    assert (outcome.stop_reason, outcome.answer) == ("certain", "46")
