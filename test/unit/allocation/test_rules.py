from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc

from sglang_dynasor.allocation import (
    RULES,
    BetaRule,
    DecidedRule,
    Decision,
    DeepConfRule,
    DirichletRule,
    DynasorRule,
    EProcessRule,
    EscRule,
    HopelessRule,
    SprtRule,
    StopRule,
    ThresholdRule,
    make_rule,
)
from sglang_dynasor.allocation.posteriors import majority_posterior
from sglang_dynasor.certaindex import CertaindexTracker, Evidence, path_agreement

reproducible = settings(derandomize=True, deadline=None, max_examples=300)


def evidence_of(
    *counts: int, remaining: int = 100, empty: int = 0, ties: bool = True, **more: Any
) -> Evidence:
    """Groups of unit votes; a single group's answers came in a row."""
    certaindex = path_agreement((*counts, *[1] * empty))
    given = {
        "run": counts[0] if len(counts) == 1 else 0,
        "leader_weight": counts[0] if counts else 0.0,
        "total_weight": sum(counts),
    }
    finished = sum(counts) + empty
    return Evidence(counts, finished, remaining, certaindex, ties, empty, **given | more)


def winner(answers: dict[int, str]) -> str | None:
    tracker = CertaindexTracker(len(answers))
    for branch, answer in answers.items():
        tracker.add(branch, answer)
    return tracker.leader.answer if tracker.leader else None


@reproducible
@given(st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=2, max_size=9), st.data())
def test_decided_means_that_no_completion_changes_the_vote(answers: list[str], data) -> None:
    """Both ways: a decided answer is safe, and an undecided one can still be overtaken."""
    order = data.draw(st.permutations(range(len(answers))))
    remaining = data.draw(st.integers(1, min(4, len(answers) - 1)))
    finished = {branch: answers[branch] for branch in order[remaining:]}
    tracker = CertaindexTracker(len(answers))
    for branch, answer in finished.items():
        tracker.add(branch, answer)
    outcomes = {
        winner(finished | dict(zip(order[:remaining], rest, strict=True)))
        for rest in itertools.product(["a", "b", "c", "new", ""], repeat=remaining)
    }
    leader = tracker.leader.answer if tracker.leader else None
    decided = DecidedRule(min_branches=1).decide(tracker.evidence()) is not None
    assert decided == (leader is not None and outcomes == {leader})


@pytest.mark.parametrize(
    ("leader", "rival", "posterior"),
    [(4, 0, 0.96875), (3, 0, 0.9375), (5, 1, 0.9375), (0, 0, 0.5), (7, 7, 0.5), (2, 1, 0.6875)],
)
def test_the_majority_posterior_matches_known_values(
    leader: int, rival: int, posterior: float
) -> None:
    assert majority_posterior(leader, rival) == posterior


@reproducible
@given(st.integers(0, 512), st.integers(0, 512))
def test_the_majority_posterior_is_the_beta_tail(leader: int, rival: int) -> None:
    expected = 1 - betainc(leader + 1, rival + 1, 0.5)
    assert majority_posterior(leader, rival) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("rule", "evidence", "stop_reason"),
    [
        (ThresholdRule(), evidence_of(5), "certain"),
        (ThresholdRule(), evidence_of(4, 1), None),
        (ThresholdRule(), evidence_of(4), None),
        (ThresholdRule(), evidence_of(6), "certain"),
        (ThresholdRule(at=3), evidence_of(3), "certain"),
        (ThresholdRule(0.4), evidence_of(3, 1, 1), "certain"),
        (ThresholdRule(0.4), evidence_of(2, 2, 1), None),
        (ThresholdRule(0.75, at=16), evidence_of(8, 8), "certain"),
        (ThresholdRule(0.7500000001), evidence_of(8, 8), "certain"),
        (ThresholdRule(0.75, at=16), evidence_of(7, 7, 1, 1), None),
        (ThresholdRule(0.7), evidence_of(4, empty=1), None),
        (BetaRule(), evidence_of(4), "certain"),
        (BetaRule(), evidence_of(3), None),
        (BetaRule(), evidence_of(5, 1), None),
        (BetaRule(), evidence_of(6, 1), "certain"),
        (BetaRule(0.96875), evidence_of(4), "certain"),
        (BetaRule(0.9375), evidence_of(3), "certain"),
        (DecidedRule(), evidence_of(5, 1, remaining=3), "decided"),
        (DecidedRule(), evidence_of(5, 1, remaining=4), "decided"),
        (DecidedRule(), evidence_of(5, 1, remaining=4, ties=False), None),
        (DecidedRule(), evidence_of(5, 1, remaining=5), None),
        (DecidedRule(), evidence_of(4, remaining=4), "decided"),
        (DecidedRule(), evidence_of(4, remaining=4, ties=False), None),
        (DecidedRule(), evidence_of(5, 1, remaining=3, unit_votes=False), None),
        (DirichletRule(), evidence_of(4), "certain"),
        (DirichletRule(), evidence_of(3), None),
        (DirichletRule(), evidence_of(6, 1), "certain"),
        (DirichletRule(), evidence_of(5, 1, 1), None),
        (EscRule(), evidence_of(5), "certain"),
        (EscRule(), evidence_of(4), None),
        (EscRule(), evidence_of(6), None),
        (EscRule(), evidence_of(7, 3, run=5), "certain"),
        (EscRule(), evidence_of(7, 3, run=4), None),
        (EscRule(window=3), evidence_of(3), "certain"),
        (SprtRule(), evidence_of(6), None),
        (SprtRule(), evidence_of(7), "certain"),
        (SprtRule(), evidence_of(8, 1), None),
        (SprtRule(), evidence_of(9, 1), "certain"),
        (SprtRule(0.9), evidence_of(5), "certain"),
        (EProcessRule(), evidence_of(8), None),
        (EProcessRule(), evidence_of(9), "certain"),
        (EProcessRule(), evidence_of(10, 1, leader_order=2), None),
        (DeepConfRule(), evidence_of(4), "consensus"),
        (DeepConfRule(), evidence_of(3), None),
        (DeepConfRule(), evidence_of(18, 2), None),
        (DeepConfRule(), evidence_of(18, 2, leader_weight=19), "consensus"),
        (DeepConfRule(), evidence_of(5, leader_weight=0.0, total_weight=0.0), None),
        (HopelessRule(), evidence_of(*[1] * 8, reward=0.2), "hopeless"),
        (HopelessRule(), evidence_of(*[1] * 8, reward=0.21), None),
        (HopelessRule(), evidence_of(*[1] * 7, reward=0.1), None),
        (HopelessRule(), evidence_of(5, 3, reward=0.1), None),
        (HopelessRule(), evidence_of(7, 1, reward=0.1), "certain"),  # as DynasorRule says
        (HopelessRule(), evidence_of(7, 1, reward=0.1, unit_votes=False), None),
        (HopelessRule(), evidence_of(*[1] * 8, unit_votes=False), "hopeless"),
        (HopelessRule(), evidence_of(empty=8, reward=0.0), "hopeless"),
        (HopelessRule(), evidence_of(*[1] * 8), "hopeless"),
        (HopelessRule(), evidence_of(*[1] * 7), None),
        (HopelessRule(0.4), evidence_of(3, 2, 1, 1, 1), "hopeless"),
        (DynasorRule(), evidence_of(3, remaining=37), None),
        (DynasorRule(), evidence_of(4, remaining=36), "certain"),
        (DynasorRule(), evidence_of(3, remaining=13), "certain"),
        (DynasorRule(), evidence_of(3, remaining=5), "certain"),
        (DynasorRule(), evidence_of(5, 1, remaining=34), "certain"),
        (DynasorRule(), evidence_of(4, 1, remaining=11), None),
        (DynasorRule(), evidence_of(4, 1, remaining=3, ties=False), None),
        (DynasorRule(posterior=0.89), evidence_of(4, 1, remaining=3, ties=False), "certain"),
        (DynasorRule(0.8), evidence_of(3, 1, remaining=10), "certain"),
        (DynasorRule(), evidence_of(3, remaining=5, unit_votes=False), None),
        (DynasorRule(), evidence_of(2, 1), None),
        (DynasorRule(), evidence_of(3, 2, remaining=1), "decided"),
        (DynasorRule(), evidence_of(3, 2, remaining=2), None),
    ],
    ids=repr,
)
def test_a_rule_stops_exactly_where_its_condition_holds(
    rule: StopRule, evidence: Evidence, stop_reason: str | None
) -> None:
    decision = rule.decide(evidence)
    assert (decision and decision.stop_reason) == stop_reason
    assert decision is None or decision.rule == rule.name


@pytest.mark.parametrize("name", [name for name in RULES if name != "hopeless"])
def test_no_rule_stops_below_min_branches_or_without_an_answer_or_a_branch_left(name: str) -> None:
    rule = make_rule(name, min_branches=15)
    assert rule.decide(evidence_of(14, remaining=6)) is None
    assert rule.decide(evidence_of(15, remaining=6)) is not None
    assert rule.decide(evidence_of(20, remaining=0)) is None
    assert rule.decide(evidence_of(empty=20, remaining=1)) is None


def test_hopeless_holds_to_min_branches_and_to_branches_left() -> None:
    rule = make_rule("hopeless", min_branches=15)
    assert rule.decide(evidence_of(*[1] * 14, reward=0.0)) is None
    assert rule.decide(evidence_of(*[1] * 15, reward=0.0)) is not None
    assert rule.decide(evidence_of(*[1] * 15, reward=0.0, remaining=0)) is None


@pytest.mark.parametrize(
    ("name", "evidence", "reason"),
    [
        ("hopeless", evidence_of(5), None),
        ("hopeless", evidence_of(5, unit_votes=False), None),
        ("decided", evidence_of(5, unit_votes=False), "votes are weighted"),
        ("dynasor", evidence_of(5, unit_votes=False), "votes are weighted"),
        ("decided", evidence_of(5), None),
        ("beta", evidence_of(5, unit_votes=False), "votes are weighted"),
        ("deepconf", evidence_of(5, unit_votes=False), None),
    ],
)
def test_a_rule_that_cannot_judge_says_why(
    name: str, evidence: Evidence, reason: str | None
) -> None:
    assert make_rule(name).inactive(evidence) == reason


def test_a_decision_carries_its_evidence_as_json() -> None:
    decision = make_rule("beta").decide(evidence_of(6, 1))
    assert decision == Decision("certain", "beta", 0.96484375, path_agreement((6, 1)), (6, 1), 7)
    assert json.loads(json.dumps(decision.to_json())) == {
        "stop_reason": "certain",
        "rule": "beta",
        "confidence": 0.96484375,
        "certaindex": path_agreement((6, 1)),
        "counts": [6, 1],
        "finished": 7,
    }


@pytest.mark.parametrize(
    ("name", "threshold", "rule"),
    [
        ("dynasor", None, DynasorRule(0.945)),
        ("dynasor", 0.99, DynasorRule(0.99)),
        ("threshold", None, ThresholdRule(0.7, 5)),
        ("threshold", 0.0, ThresholdRule(0.0, 5)),
        ("decided", None, DecidedRule()),
        ("beta", None, BetaRule(0.95)),
        ("beta", 0.9, BetaRule(0.9)),
    ],
)
def test_make_rule_gives_the_named_rule(name: str, threshold: float | None, rule: StopRule) -> None:
    assert make_rule(name, threshold=threshold) == rule
    assert rule.name == name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("esp", {}, "rule must be one of dynasor, threshold, decided, beta"),
        ("decided", {"threshold": 0.5}, "threshold must be absent for rule 'decided'"),
        ("beta", {"threshold": 1.5}, "threshold must be between 0 and 1"),
        ("threshold", {"threshold": -0.1}, "threshold must be between 0 and 1"),
        ("dynasor", {"threshold": float("nan")}, "threshold must be between 0 and 1"),
        ("dynasor", {"min_branches": 0}, "min_branches must be at least 1"),
    ],
)
def test_make_rule_refuses_by_field_name(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_rule(name, **options)
