"""Which branches stop from their tokens alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.allocation import BranchRule, BranchRules
from sglang_dynasor.allocation.branch_rules import MAX_PROFILES, repeats
from sglang_dynasor.certaindex import CertaintyTable

WINDOW = 4
reproducible = settings(derandomize=True, deadline=None, max_examples=200)


def rules_of(window: int = WINDOW) -> BranchRules:
    return BranchRules(CertaintyTable(window, initial_slots=1))


def step(
    rules: BranchRules, confidence: dict[int, float], entropy: float = 1.0, token: int = 0
) -> list[tuple[int, str]]:
    slots = np.array(list(confidence))
    measures = np.array([(value, entropy, 0.0) for value in confidence.values()], np.float32)
    rules.table.add(slots, measures[None], np.full((1, len(slots)), token))
    return rules.stopped(slots)


def finish(rules: BranchRules, level: float, stop_reason: str = "completed", **rule: Any) -> None:
    slot = rules.open(BranchRule(**rule))
    for _ in range(WINDOW):
        step(rules, {slot: level})
    rules.close(slot, stop_reason)


@pytest.mark.parametrize("measure", ["confidence", "entropy"])
def test_only_full_groups_are_compared_and_one_at_the_bar_goes_on(measure: str) -> None:
    is_bar = measure == "confidence"
    stops = []
    for length in range(1, 6):
        rules = rules_of(3)
        slot = rules.open(BranchRule(bar=2.0) if is_bar else BranchRule(entropy_floor=2.0))
        for value in (0.0, 0.0, 5.0, 1.0, 0.0)[:length]:
            # a stopped branch is not named again: look at the last group alone
            rules.table.add(
                np.array([slot]),
                np.full((1, 1, 3), value, np.float32),
                np.zeros((1, 1), np.int64),
            )
        stops.append(bool(rules.stopped(np.array([slot]))))
    assert stops == [False, False, True, False, False]  # means 5/3, 2 (met by >=), 2


def test_a_branch_is_pruned_at_its_first_full_group_below_the_bar() -> None:
    rules = rules_of()
    low, high, free = (rules.open(BranchRule(bar=bar)) for bar in (5.0, 4.0, None))
    for _ in range(WINDOW - 1):
        assert step(rules, {low: 4.0, high: 4.0, free: 0.0}) == []
    assert step(rules, {low: 4.0, high: 4.0, free: 0.0}) == [(low, "pruned")]


def test_a_stopped_branch_is_named_once_though_it_commits_more_tokens() -> None:
    rules = rules_of()
    slot = rules.open(BranchRule(keep_top=0.5))
    for _ in range(16):
        finish(rules, 8.0)
    stops = [step(rules, {slot: 1.0}) for _ in range(WINDOW + 3)]
    finish(rules, 8.0)  # moves the bar once more
    stops.append(step(rules, {slot: 1.0}))
    assert [stop for stop in stops if stop] == [[(slot, "pruned")]]


def test_the_bar_comes_from_finished_branches_of_any_program_of_the_profile() -> None:
    """No program waits for a warm-up of its own: a branch that runs already gets the bar too."""
    rules = rules_of()
    waiting = rules.open(BranchRule(profile="a", keep_top=0.5))
    other = rules.open(BranchRule(profile="b", keep_top=0.5))
    for _ in range(WINDOW):
        step(rules, {waiting: 3.0, other: 3.0})
    for level in range(16):
        assert rules.bar("a", 0.5) is None
        finish(rules, float(level), profile="a")
    assert rules.bar("a", 0.5) == 8.0 and rules.bar("b", 0.5) is None
    assert step(rules, {waiting: 3.0, other: 3.0}) == [(waiting, "pruned")]


@pytest.mark.parametrize(("keep_top", "survivors"), [(0.1, 2), (0.9, 18)])
def test_keep_top_is_the_share_that_lives(keep_top: float, survivors: int) -> None:
    rules = rules_of()
    for level in range(20):
        finish(rules, float(level))
    slots = [rules.open(BranchRule(keep_top=keep_top)) for _ in range(20)]
    stopped: list[tuple[int, str]] = []
    for _ in range(WINDOW):
        stopped += step(rules, {slot: float(level) for level, slot in enumerate(slots)})
    assert len(stopped) == 20 - survivors
    assert {slot for slot, _ in stopped} == set(slots[: 20 - survivors])


@pytest.mark.parametrize(
    ("stop_reason", "counts"),
    [
        ("completed", True),
        ("length", True),
        ("certain", False),
        ("loop", False),
        ("cancelled", False),
        ("aborted", False),
    ],
)
def test_the_bar_counts_branches_whose_confidence_is_known(stop_reason: str, counts: bool) -> None:
    rules = rules_of()
    for _ in range(16):
        finish(rules, 5.0, stop_reason)
    assert (rules.bar("", 0.5) == 5.0) is counts


def test_a_pruned_branch_counts_as_below_its_bar() -> None:
    rules = rules_of()
    for level in (4.0, 6.0) * 8:
        finish(rules, level)
    for _ in range(16):
        finish(rules, 1.0, "pruned", bar=5.0)
    assert rules.bar("", 0.25) == 6.0  # 8 of 32 are at 6
    assert rules.bar("", 0.26) == 4.0


def test_a_branch_without_a_full_group_does_not_move_the_bar() -> None:
    rules = rules_of()
    for _ in range(20):
        slot = rules.open(BranchRule())
        step(rules, {slot: 9.0})
        rules.close(slot, "completed")
    assert rules.bar("", 0.5) is None


def test_collapsed_entropy_ends_a_branch_only_where_asked() -> None:
    rules = rules_of()
    asked, other = rules.open(BranchRule(entropy_floor=0.1)), rules.open(BranchRule())
    stops = [step(rules, {asked: 9.0, other: 9.0}, entropy=0.05) for _ in range(WINDOW)]
    assert stops == [[]] * (WINDOW - 1) + [[(asked, "certain")]]


def test_a_loop_is_found_at_the_next_check_and_goes_before_collapsed_entropy() -> None:
    rules = rules_of(window=80)
    slot = rules.open(BranchRule(loop=True, entropy_floor=0.1))
    found = [step(rules, {slot: 9.0}, entropy=0.0, token=t % 3) for t in range(80)]
    assert [(index + 1, stops) for index, stops in enumerate(found) if stops] == [
        (64, [(slot, "loop")])
    ]
    rules = rules_of(window=64)
    slot = rules.open(BranchRule(loop=True, entropy_floor=0.1))
    assert [step(rules, {slot: 9.0}, entropy=0.0) for _ in range(64)][-1] == [(slot, "loop")]


def newest_first(tokens: list[int]) -> np.ndarray:
    row = ([-1] * 256 + tokens)[-256:]
    return np.array([row[::-1]], np.int32)


def has_loop(tokens: list[int]) -> bool:
    """By trying every period on the list of tokens."""
    for period in range(1, 65):
        length = max(64, 4 * period)
        tail = tokens[-length:]
        if len(tail) == length and all(tail[i] == tail[i - period] for i in range(period, length)):
            return True
    return False


@reproducible
@given(
    st.lists(st.integers(0, 3), max_size=250),
    st.lists(st.integers(0, 3), min_size=1, max_size=66),
    st.integers(60, 300),
    st.booleans(),
)
def test_loops_are_those_found_by_trying_every_period(
    head: list[int], unit: list[int], length: int, broken: bool
) -> None:
    tokens = head + (unit * length)[:length]
    if broken:
        tokens[-30] = 9
    assert repeats(newest_first(tokens)).tolist() == [has_loop(tokens)]


@pytest.mark.parametrize(
    ("tokens", "loop"),
    [
        (list(range(64)) * 4, True),
        (list(range(65)) * 4, False),
        ([7] * 63, False),
        ([7] * 64, True),
        (list(range(64)) * 3, False),
        ([*([1, 2] * 40), 3], False),
    ],
)
def test_a_loop_repeats_four_times_and_over_64_tokens(tokens: list[int], loop: bool) -> None:
    assert repeats(newest_first(tokens)).tolist() == [loop]


def test_branches_opened_while_the_table_grows_keep_their_rules() -> None:
    rules = rules_of()
    slots = [rules.open(BranchRule(bar=5.0) if i % 2 else None) for i in range(9)]
    stops = [step(rules, dict.fromkeys(slots, 1.0)) for _ in range(WINDOW)]
    assert stops[-1] == [(slot, "pruned") for slot in slots[1::2]]


def test_a_slot_given_out_again_has_no_rule_of_its_past() -> None:
    rules = rules_of()
    slot = rules.open(BranchRule(bar=5.0, loop=True, entropy_floor=5.0))
    rules.close(slot, "cancelled")
    assert rules.open() == slot
    assert all(step(rules, {slot: 0.0}, entropy=0.0) == [] for _ in range(80))


def test_profiles_that_clients_name_do_not_fill_the_memory() -> None:
    rules = rules_of()
    for name in range(MAX_PROFILES + 5):
        finish(rules, 5.0, profile=str(name))
    assert len(rules._bars) == MAX_PROFILES


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_top": 0.0}, "keep_top"),
        ({"keep_top": 1.0}, "keep_top"),
        ({"keep_top": 0.1, "bar": 3.0}, "give one"),
        ({"bar": 0.0}, "bar"),
        ({"entropy_floor": math.nan}, "entropy_floor"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BranchRule(**fields)
