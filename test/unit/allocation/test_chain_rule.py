"""When the probes of a chain agree (paper 2.1), as a table."""

from __future__ import annotations

import pytest

from sglang_dynasor.allocation.chain_rule import ChainRule, ProbeAnswer, next_interval


def probes(groups: str, confidence: float | None = None) -> list[ProbeAnswer]:
    """One each 10 tokens; "-" gives no answer, a capital one is doubted."""
    return [
        ProbeAnswer(10 * (index + 1), group.lower(), group.islower(), confidence)
        for index, group in enumerate(groups)
    ]


@pytest.mark.parametrize(
    ("rule", "groups", "stops"),
    [
        (ChainRule(3), "aa", False),
        (ChainRule(3), "aaa", True),
        (ChainRule(3), "baaa", True),
        (ChainRule(3), "aaab", False),
        (ChainRule(3), "aAa", False),  # the released rule forgave that one
        (ChainRule(3), "aaA", False),
        (ChainRule(3), "---", False),  # empty answers are equal, and say nothing
        (ChainRule(3), "a-a", False),
        (ChainRule(1), "a", True),
        (ChainRule(4, tau=0.75), "abaa", True),
        (ChainRule(4, tau=0.75), "abba", False),
        (ChainRule(4, tau=0.75), "aAaa", True),
        (ChainRule(4, tau=0.5), "aab-", False),  # the newest says nothing
        (ChainRule(2, warmup_tokens=30), "aaa", False),
        (ChainRule(2, warmup_tokens=30), "aaaa", True),
    ],
)
def test_the_share_of_equal_answers_in_the_window_decides(
    rule: ChainRule, groups: str, stops: bool
) -> None:
    assert rule.stops(probes(groups)) is stops


@pytest.mark.parametrize(
    ("confidence", "stops"), [(0.95, True), (0.9, True), (0.89, False), (None, False)]
)
def test_the_newest_answer_must_be_as_probable_as_asked(
    confidence: float | None, stops: bool
) -> None:
    assert ChainRule(1, min_confidence=0.9).stops(probes("a", confidence)) is stops


@pytest.mark.parametrize(("window", "tau"), [(0, 1.0), (-1, 1.0), (3, 0.0), (3, 1.1)])
def test_a_rule_without_sense_is_refused(window: int, tau: float) -> None:
    with pytest.raises(ValueError, match=r"window|tau"):
        ChainRule(window, tau)


@pytest.mark.parametrize(
    ("at", "growth", "expected"), [(0, 0.1, 64), (640, 0.1, 64), (1000, 0.1, 100), (9999, 0, 64)]
)
def test_the_interval_grows_with_the_chain(at: int, growth: float, expected: int) -> None:
    assert next_interval(at, 64, growth) == expected
