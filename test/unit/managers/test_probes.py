"""What a probe tells its program, and boxed answers that a chain writes by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH, FINISH_MATCHED_TOKEN

from sglang_dynasor.managers.probes import EngineProbes, _closes_box, _Probe
from sglang_dynasor.managers.program_messages import (
    CANCELLED_MESSAGE,
    CUT_MESSAGE,
    ProbedReqOutput,
    WatchReqInput,
)
from sglang_dynasor.scheduling.probe_schedule import ProbeSchedule

ASKED = WatchReqInput(tenant="t", program_id="p", rid="r", every=10, input_ids=[1], max_tokens=20)


class Letters:
    """A token is a letter."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))

    def get_vocab(self) -> dict[str, int]:
        return {chr(number): number for number in range(32, 127)}


class Req:
    def __init__(self, text: str = "", reason: Any = None) -> None:
        self.rid = "r"
        self.output_ids = list(map(ord, text))
        self.finished_reason = reason
        self.to_finish: Any = None


@pytest.fixture
def engine() -> Any:
    engine = SimpleNamespace(
        tokenizer=Letters(),
        programs=SimpleNamespace(probes=ProbeSchedule(64)),
        certainty=SimpleNamespace(payloads=lambda reqs: [None], close=lambda rid, why: None),
        sent=[],
    )
    engine.send_control_output = lambda output, received: engine.sent.append(output)
    engine.probes = EngineProbes(engine)
    return engine


def forked(engine: Any, text: str, reason: Any = None) -> Any:
    probe = Req(text, reason)
    engine.probes._probes[probe] = _Probe(Req(), ASKED, 30)
    return probe


@pytest.mark.parametrize(
    ("text", "closes"),
    [
        ("42}", True),
        ("\\frac{1}{2}", False),
        ("\\frac{1}{2}}", True),
        ("", False),
        ("{{}", False),
    ],
)
def test_a_box_closes_with_a_brace_that_was_not_opened_in_it(text: str, closes: bool) -> None:
    assert _closes_box(text) is closes


@pytest.mark.parametrize(
    ("text", "reason", "told", "is_whole"),
    [
        ("42}", FINISH_ABORT(CUT_MESSAGE), "42}", True),
        ("42", FINISH_LENGTH(2), "42", False),
        ("42}x", FINISH_LENGTH(4), "42}x", True),
        ("42", FINISH_MATCHED_TOKEN(0), "42", True),
        ("42", FINISH_ABORT(CANCELLED_MESSAGE), None, True),
        ("", FINISH_ABORT("somebody"), None, True),
    ],
)
def test_a_probe_that_has_ended_says_so_once(
    engine: Any, text: str, reason: Any, told: str | None, is_whole: bool
) -> None:
    probe = forked(engine, text, reason)
    engine.probes.take(probe)
    (answer,) = engine.sent
    assert isinstance(answer, ProbedReqOutput)
    assert (answer.text, answer.is_whole, answer.at) == (told, is_whole, 30)
    assert answer.n_tokens == len(text) and not len(engine.probes)


def test_a_probe_ends_once_its_box_is_closed(engine: Any) -> None:
    probe = forked(engine, "4")
    engine.probes.end_if_answered(probe)
    assert probe.to_finish is None
    probe.output_ids.append(ord("}"))
    engine.probes.end_if_answered(probe)
    assert probe.to_finish.message == CUT_MESSAGE


def test_the_probability_is_the_mean_over_what_was_generated(engine: Any) -> None:
    rows = [[0, 0, 0.5, 0, 0, 0], [0, 0, 1.0, 0, 0, 0]]
    engine.certainty.payloads = lambda reqs: [{"values": rows}]
    engine.probes.take(forked(engine, "4}", FINISH_ABORT(CUT_MESSAGE)))
    assert engine.sent[0].confidence == 0.75


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("so \\boxed{42}", "\\boxed{42}"),
        ("\\boxed{\\frac{1}{2}}", "\\boxed{\\frac{1}{2}}"),
        ("\\boxed{\\frac{1}", None),
        ("f{x}", None),
        ("\\boxed{42} so", None),  # told when it was written
    ],
)
def test_an_answer_that_a_watched_chain_writes_is_told_as_it_appears(
    engine: Any, text: str, told: str | None
) -> None:
    req = Req(text)
    engine.probes.read_own_answer(req)
    assert not engine.sent  # nobody watches
    engine.programs.probes.watch(req, 10, 21, ASKED)
    engine.probes.read_own_answer(req)
    assert [answer.text for answer in engine.sent] == ([] if told is None else [told])
    if told is not None:
        (answer,) = engine.sent
        assert (answer.is_own, answer.n_tokens, answer.at) == (True, 0, len(text))


def test_a_probe_without_an_answer_is_forgotten(engine: Any) -> None:
    probe = forked(engine, "4")
    engine.probes.drop(probe)
    engine.probes.drop(probe)
    assert not len(engine.probes) and not engine.sent
