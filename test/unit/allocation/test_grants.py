from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.allocation import (
    RULES,
    AdaptiveGrants,
    BetaRule,
    DecidedRule,
    Decision,
    DynasorRule,
    FixedGrants,
    StopRule,
    ThresholdRule,
    make_rule,
    parse_grants,
)
from sglang_dynasor.certaindex import CertaindexTracker, Evidence
from sglang_dynasor.offline import Sample, replay

reproducible = settings(derandomize=True, deadline=None, max_examples=300)
STOPPING = [
    BetaRule(min_branches=1),
    BetaRule(0.8),
    DecidedRule(min_branches=1),
    DecidedRule(),
    DynasorRule(),
    DynasorRule(0.99, min_branches=5),
    ThresholdRule(),
    ThresholdRule(0.5, at=2, min_branches=1),
]
SAMPLES = st.lists(
    st.builds(Sample, st.sampled_from(["a", "b", "c", ""]), st.integers(1, 20)),
    min_size=1,
    max_size=24,
)


def evidence_of(*answers: str, max_branches: int = 16):
    tracker = CertaindexTracker(max_branches)
    for branch, answer in enumerate(answers):
        tracker.add(branch, answer)
    return tracker.evidence()


@pytest.mark.parametrize("rule", STOPPING, ids=repr)
@reproducible
@given(samples=SAMPLES)
def test_adaptive_grants_use_exactly_the_branches_of_one_at_a_time(
    rule: StopRule, samples: list[Sample]
) -> None:
    one_at_a_time = replay(samples, rule, FixedGrants((1,)), "sequential")
    for order in ("sequential", "concurrent"):
        adaptive = replay(samples, rule, AdaptiveGrants(rule), order)
        assert adaptive.outcome.answer == one_at_a_time.outcome.answer
        assert adaptive.outcome.stop_reason == one_at_a_time.outcome.stop_reason
        assert adaptive.outcome.certaindex == one_at_a_time.outcome.certaindex
        assert adaptive.tokens == one_at_a_time.tokens
        # The stop comes with the last branch of a grant, never inside it: nothing is cancelled.
        assert adaptive.started == one_at_a_time.started
        assert adaptive.finished == one_at_a_time.finished
        assert adaptive.outcome.rounds <= one_at_a_time.outcome.rounds


@pytest.mark.parametrize(
    ("rule", "answers", "grant"),
    [
        (BetaRule(), "", 4),
        (BetaRule(), "aaab", 3),
        (BetaRule(), "aaaaaaab", 1),
        (DynasorRule(), "", 3),
        (DynasorRule(), "aab", 3),
        (DecidedRule(), "", 8),
        (DecidedRule(), "aaaabbbb", 4),
        (ThresholdRule(), "", 5),
        (ThresholdRule(), "aaaab", 1),
        (ThresholdRule(1.0), "aaaab", 11),
        (BetaRule(min_branches=16), "aaaa", 12),
        (BetaRule(), "a" * 16, 0),
    ],
)
def test_an_adaptive_grant_is_the_shortest_way_to_a_stop(
    rule: StopRule, answers: str, grant: int
) -> None:
    assert AdaptiveGrants(rule).next_grant(evidence_of(*answers), rounds=0) == grant


EVERY_RULE = [make_rule(name, min_branches=minimum) for name in RULES for minimum in (1, 4)]


@pytest.mark.parametrize("rule", [*EVERY_RULE, ThresholdRule(recheck=False)], ids=repr)
@reproducible
@given(answers=st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=12), more=st.integers(1, 30))
def test_no_smaller_grant_could_stop_the_program(
    rule: StopRule, answers: list[str], more: int
) -> None:
    """Found by asking after every number of branches, where the grant asks a few of them."""
    evidence = evidence_of(*answers, max_branches=len(answers) + more)
    if rule.decide(evidence) is not None:
        return  # it has stopped
    stops = [
        size
        for size in range(1, evidence.remaining)
        if rule.decide(evidence.after_agreement(size)) is not None
    ]
    grant = AdaptiveGrants(rule).next_grant(evidence, 0)
    if rule.name == "hopeless":  # agreement may also end what gives it up
        assert grant in (*stops, evidence.remaining)
    else:
        assert grant == min(stops, default=evidence.remaining)


def test_the_fewest_of_512_branches_are_found_in_a_few_questions() -> None:
    asked = []

    class Counting(DecidedRule):
        def decide(self, evidence: Evidence) -> Decision | None:
            asked.append(evidence.finished)
            return super().decide(evidence)

    evidence = evidence_of(*map(str, range(100)), max_branches=512)
    assert AdaptiveGrants(Counting()).next_grant(evidence, 0) == 206
    assert len(asked) < 20


@pytest.mark.parametrize(
    ("rounds", "finished", "grant"), [(0, 0, 4), (1, 4, 3), (2, 7, 6), (3, 13, 3), (9, 16, 0)]
)
def test_fixed_grants_follow_their_list_and_the_last_repeats(
    rounds: int, finished: int, grant: int
) -> None:
    assert FixedGrants((4, 3, 6)).next_grant(evidence_of(*"a" * finished), rounds) == grant


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("4,3,3,6", (4, 3, 3, 6)),
        (" 4, 3 ", (4, 3)),
        ("512", (512,)),
        (",".join("1" * 64), (1,) * 64),
    ],
)
def test_grants_are_parsed(text: str, sizes: tuple[int, ...]) -> None:
    assert parse_grants(text) == sizes


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "4,",
        "0",
        "513",
        "-1",
        "4.5",
        "a",
        "4;3",
        "1_0",
        "\u0664",
        "9" * 5000,
        "1," * 64 + "1",
    ],
    ids=lambda text: text[:8],
)
def test_unusable_grants_are_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="grants"):
        parse_grants(text)


@pytest.mark.parametrize("sizes", [(), (4, 0)])
def test_fixed_grants_need_positive_sizes(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="grants"):
        FixedGrants(sizes)
