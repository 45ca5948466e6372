"""What the scheduler keeps of measured branches: every committed token once, nobody else's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.managers.auxiliary_output import CommittedTokens
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH

from sglang_dynasor.allocation import BranchRule
from sglang_dynasor.certaindex import CERTAINTY_GROUP_TOKENS
from sglang_dynasor.kernels.token_certainty import COLUMNS
from sglang_dynasor.managers.branch_certainty import BranchCertainty, DynasorOutputStreamer
from sglang_dynasor.managers.certainty_observer import HostCertainty
from sglang_dynasor.managers.program_messages import (
    CERTAINTY,
    STOP_MESSAGES,
    BranchParams,
    stop_reason_of,
)

CONFIDENCE = COLUMNS.index("confidence")


class FakeReq:
    """A request as far as certainty looks at it."""

    def __init__(self, rid: str) -> None:
        self.rid = rid
        self.output_ids: list[int] = []
        self.finished_reason: Any = None
        self.to_finish: Any = None
        self.skip_radix_cache_insert = False

    def finished(self) -> bool:
        return self.finished_reason is not None


def values_of(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.random((rows, len(COLUMNS))).astype(np.float32)


def certain(values: np.ndarray, chosen_logprob: np.ndarray | None = None) -> HostCertainty:
    rows = torch.from_numpy(values)
    logit = None
    if chosen_logprob is not None:
        logit = (
            torch.from_numpy(chosen_logprob)[:, None] + rows[:, COLUMNS.index("logsumexp"), None]
        )
    return HostCertainty(rows, True, logit, None)  # type: ignore[arg-type]


def commit(req: FakeReq, token: int) -> CommittedTokens:
    req.output_ids.append(token)
    return CommittedTokens(len(req.output_ids) - 1, (token,))


def test_a_branch_folds_its_own_committed_tokens_whatever_the_batch_is() -> None:
    rng, choice = np.random.default_rng(1), random.Random(1)
    certainty = BranchCertainty()
    reqs = [FakeReq(f"p::{index}") for index in range(7)]
    folded: dict[str, list[float]] = {req.rid: [] for req in reqs[:5]}
    for rid in folded:  # the last two are plain requests
        certainty.open(rid, None, keeps_values=rid == "p::2")
    sent: list[list[float]] = []
    expected_values: list[list[float]] = []
    for step in range(200):
        batch = choice.sample(reqs, k=choice.randint(1, len(reqs)))
        values = values_of(rng, len(batch))
        commits = [None if choice.random() < 0.2 else commit(req, step) for req in batch]
        certainty.consume(batch, commits, certain(values))  # type: ignore[arg-type]
        for req, committed, row in zip(batch, commits, values, strict=True):
            if committed is not None and req.rid in folded:
                folded[req.rid].append(float(row[CONFIDENCE]))
                if req.rid == "p::2":
                    expected_values.append(row.tolist())
        (payload,) = certainty.payloads([reqs[2]])  # type: ignore[list-item]
        sent += (payload or {}).get("values", [])
    assert sent == expected_values
    for req in reqs:
        req.finished_reason = FINISH_LENGTH(len(req.output_ids))
    for req, payload in zip(reqs, certainty.payloads(reqs), strict=True):  # type: ignore[arg-type]
        if req.rid not in folded:
            assert payload is None
            continue
        assert payload is not None and list(payload) == ["summary"]
        tokens = np.array(folded[req.rid])
        groups = np.convolve(tokens, np.ones(CERTAINTY_GROUP_TOKENS), "valid")
        groups /= CERTAINTY_GROUP_TOKENS
        expected = {"mean": tokens.mean(), "tail": groups[-1], "lowest_group": groups.min()}
        assert payload["summary"]["tokens"] == len(tokens)
        for name, value in expected.items():
            assert payload["summary"][name] == pytest.approx(value, abs=1e-6)
    assert len(certainty) == 0


@pytest.mark.parametrize("rule", [None, BranchRule(loop=True)])
@pytest.mark.parametrize("keeps_values", [False, True])
def test_steps_are_folded_when_somebody_needs_them(
    rule: BranchRule | None, keeps_values: bool
) -> None:
    certainty = BranchCertainty()
    req, other = FakeReq("p::0"), FakeReq("p::1")
    certainty.open(req.rid, rule, keeps_values)
    certainty.open(other.rid, None, keeps_values=False)
    values = values_of(np.random.default_rng(2), 2)
    for step in range(20):
        commits = [commit(req, step), commit(other, step)]
        certainty.consume([req, other], commits, certain(values))  # type: ignore[list-item]
        assert len(certainty._unfolded) == (0 if rule else (step + 1) % 16)
    (payload,) = certainty.payloads([req])  # type: ignore[list-item]
    assert len(payload["values"] if payload else []) == (20 if keeps_values else 0)
    assert len(certainty._unfolded) == (0 if rule or keeps_values else 4)
    certainty.close(other.rid, "aborted")
    assert certainty._unfolded == []
    # The slot that came free is another branch's now, and none of the old tokens are.
    third = FakeReq("p::2")
    certainty.open(third.rid, None, keeps_values=False)
    alone = certain(values[:1])
    certainty.consume([third], [commit(third, 9)], alone)  # type: ignore[list-item]
    third.finished_reason = FINISH_LENGTH(1)
    req.finished_reason = FINISH_LENGTH(20)
    payloads = certainty.payloads([third, req])  # type: ignore[list-item]
    assert [payload and payload["summary"]["tokens"] for payload in payloads] == [1, 20]


def test_a_rule_sees_only_steps_from_its_opening_on() -> None:
    certainty = BranchCertainty()
    first, second = FakeReq("p::0"), FakeReq("p::1")
    values = values_of(np.random.default_rng(3), 1)
    certainty.open(first.rid, None, keeps_values=False)
    certainty.consume([first], [commit(first, 1)], certain(values))  # type: ignore[list-item]
    assert len(certainty._unfolded) == 1
    certainty.open(second.rid, BranchRule(loop=True), keeps_values=False)
    assert certainty._unfolded == []


def test_log_probabilities_are_averaged_over_the_tokens_that_have_them() -> None:
    certainty = BranchCertainty()
    req = FakeReq("p::0")
    certainty.open(req.rid, None, keeps_values=False)
    values = values_of(np.random.default_rng(0), 1)
    for logprob in (-1.0, None, -3.0):
        chosen = None if logprob is None else np.array([logprob], np.float32)
        certainty.consume([req], [commit(req, 4)], certain(values, chosen))  # type: ignore[list-item]
    req.finished_reason = FINISH_LENGTH(3)
    (payload,) = certainty.payloads([req])  # type: ignore[list-item]
    assert payload is not None and payload["summary"]["logprob"] == pytest.approx(-2)


def test_a_batch_without_a_measured_request_is_not_measured() -> None:
    certainty = BranchCertainty()
    plain, measured = FakeReq("plain"), FakeReq("p::0")
    assert not certainty.any_of([plain])  # type: ignore[list-item]
    certainty.open("p::0", None, keeps_values=False)
    assert not certainty.any_of([plain])  # type: ignore[list-item]
    assert certainty.any_of([plain, measured])  # type: ignore[list-item]
    certainty.close("p::0", "aborted")
    assert not certainty.any_of([plain, measured])  # type: ignore[list-item]


def test_a_branch_that_repeats_itself_is_named_until_it_has_ended() -> None:
    certainty = BranchCertainty()
    req = FakeReq("p::0")
    certainty.open(req.rid, BranchRule(loop=True), keeps_values=False)
    values = values_of(np.random.default_rng(0), 1)
    for token in [7, 8] * 100:
        certainty.consume([req], [commit(req, token)], certain(values))  # type: ignore[list-item]
    assert certainty.stops == {"p::0": "loop"}
    req.finished_reason = FINISH_ABORT(STOP_MESSAGES["loop"])
    certainty.payloads([req])  # type: ignore[list-item]
    assert certainty.stops == {}


def test_pruned_branches_are_named_and_their_siblings_go_on() -> None:
    certainty = BranchCertainty()
    reqs = [FakeReq(f"p::{index}") for index in range(4)]
    for req in reqs:
        certainty.open(req.rid, BranchRule(bar=2.0), keeps_values=False)
    values = np.full((4, len(COLUMNS)), 3.0, np.float32)
    values[1, CONFIDENCE] = 1.0
    for step in range(CERTAINTY_GROUP_TOKENS):
        assert certainty.stops == {}
        commits = [commit(req, step) for req in reqs]
        certainty.consume(reqs, commits, certain(values))  # type: ignore[arg-type]
    assert certainty.stops == {"p::1": "pruned"}


def test_nothing_is_sent_along_when_no_emitted_request_has_something_to_tell() -> None:
    streamer = object.__new__(DynasorOutputStreamer)
    streamer.certainty = BranchCertainty()
    assert not streamer.should_build_additional_customized_info()
    req, plain = FakeReq("p::0"), FakeReq("plain")
    streamer.certainty.open("p::0", None, keeps_values=False)
    assert streamer.should_build_additional_customized_info()
    assert streamer.build_additional_customized_info([plain, req]) == {}  # type: ignore[list-item]
    values = values_of(np.random.default_rng(0), 1)
    streamer.certainty.consume([req], [commit(req, 1)], certain(values))  # type: ignore[list-item]
    req.finished_reason = FINISH_LENGTH(1)
    told = streamer.build_additional_customized_info([plain, req])  # type: ignore[list-item]
    assert told[CERTAINTY][0] is None
    assert told[CERTAINTY][1]["summary"]["tokens"] == 1


@pytest.mark.parametrize(
    "rule",
    [
        None,
        BranchRule(),
        BranchRule("sums", keep_top=0.1, loop=True),
        BranchRule("sums", bar=11.5, entropy_floor=0.01),
    ],
)
def test_a_rule_survives_the_way_to_the_scheduler(rule: BranchRule | None) -> None:
    params = BranchParams("t", "p", measured=True).with_rule(rule)
    arrived = BranchParams.of({"dynasor": params.to_custom_params()})
    assert arrived == params
    if rule is None:
        assert arrived.rule is None
    else:
        assert arrived.rule is not None
        assert arrived.rule.profile == f"t/{rule.profile}"
        assert (arrived.rule.keep_top, arrived.rule.bar) == (rule.keep_top, rule.bar)
        assert (arrived.rule.loop, arrived.rule.entropy_floor) == (rule.loop, rule.entropy_floor)


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        ({"type": "stop", "matched": 2}, "completed"),
        ({"type": "length"}, "length"),
        ({"type": "abort", "message": "cancelled by its program"}, "cancelled"),
        ({"type": "abort", "message": "branch pruned"}, "pruned"),
        ({"type": "abort", "message": "branch loop"}, "loop"),
        ({"type": "abort", "message": "branch certain"}, "certain"),
        ({"type": "abort", "message": "whatever"}, "aborted"),
    ],
)
def test_a_finish_reason_is_told_in_a_branchs_words(finish: Any, expected: str) -> None:
    assert stop_reason_of(finish) == expected
