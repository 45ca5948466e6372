"""The task of the embedded model: problems, split, and the two kinds of solution."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from sglang_dynasor.models import arithmetic
from sglang_dynasor.models.character_tokenizer import encode


def test_gold_is_the_sum_of_the_operands() -> None:
    for problem in arithmetic.held_out_problems(200, seed=3):
        assert problem.gold == str(sum(int(part) for part in problem.prompt.split("+")))


def test_the_same_seed_gives_the_same_problems_and_a_larger_set_extends_a_smaller_one() -> None:
    small = arithmetic.held_out_problems(50, seed=7)
    assert small == arithmetic.held_out_problems(50, seed=7)
    assert arithmetic.held_out_problems(80, seed=7)[:50] == small
    assert arithmetic.held_out_problems(50, seed=8) != small


def test_one_problem_in_sixteen_is_out_of_reach_and_the_other_levels_are_balanced() -> None:
    problems = arithmetic.held_out_problems(1600)
    counts = Counter(p.difficulty for p in problems)
    assert counts == {**dict.fromkeys(arithmetic.TRAINED_LEVELS, 300), 7: 100}
    assert len({p.prompt for p in problems}) == len({p.id for p in problems}) == 1600
    assert all(p.prompt.count("+") + 1 == p.difficulty for p in problems)


def test_training_never_draws_a_held_out_problem() -> None:
    rng = random.Random(5)
    drawn = [arithmetic.training_text(rng, think_share=0.5) for _ in range(4000)]
    assert not any(arithmetic.is_held_out(text.prompt) for text in drawn)
    held_out = {p.prompt for p in arithmetic.held_out_problems(1000)}
    assert held_out.isdisjoint(text.prompt for text in drawn)


def test_two_orders_of_one_sum_are_on_the_same_side_of_the_split() -> None:
    for problem in arithmetic.held_out_problems(50):
        assert arithmetic.is_held_out("+".join(reversed(problem.prompt.split("+"))))


def test_about_a_tenth_of_all_problems_is_held_out() -> None:
    rng = random.Random(2)
    share = (
        sum(arithmetic.is_held_out(arithmetic.random_prompt(rng, 4)) for _ in range(5000)) / 5000
    )
    assert 0.08 < share < 0.12


def test_training_texts_are_reproducible() -> None:
    first, second = random.Random(9), random.Random(9)
    for _ in range(50):
        assert arithmetic.training_text(first) == arithmetic.training_text(second)


def test_a_plain_solution_writes_every_partial_sum() -> None:
    assert arithmetic.plain_solution("37+58+91") == r"37+58=95;95+91=186;\boxed{186}"


def test_every_step_of_a_thought_is_right_and_it_ends_with_the_gold_answer() -> None:
    rng = random.Random(1)
    for problem in arithmetic.held_out_problems(100):
        text = arithmetic.thinking_solution(problem.prompt, rng)
        assert text.startswith("<think>") and text.count("</think>") == 1
        assert text.endswith("</think>" + arithmetic.boxed(int(problem.gold)))
        for left, right, total in re.findall(r"(\d+)\+(\d+)=(\d+);", text):
            assert int(left) + int(right) == int(total)


def test_a_thought_uses_at_least_three_times_the_tokens_the_answer_needs() -> None:
    rng = random.Random(4)
    for problem in arithmetic.held_out_problems(200):
        needed = len(encode(arithmetic.plain_solution(problem.prompt)))
        assert len(encode(arithmetic.thinking_solution(problem.prompt, rng))) >= 3 * needed


def test_a_forced_answer_changes_before_the_first_derivation_ends_and_not_afterwards() -> None:
    prompt = "37+58+91"
    thought = arithmetic.chain([37, 58, 91]) + "check:" + arithmetic.chain([91, 58, 37])
    values = [arithmetic.current_value(prompt, thought[:cut]) for cut in range(len(thought) + 1)]
    assert values[0] == 37 and values[len("37+58=95;")] == 95
    assert set(values[len("37+58=95;95+91=186;") :]) == {186}


def test_forced_words_carry_no_loss_and_the_value_behind_them_does() -> None:
    rng = random.Random(6)
    endings = {ending for ending, _ in arithmetic.FORCED_ENDINGS}
    for problem in arithmetic.held_out_problems(100):
        text = arithmetic.cut_thinking(problem.prompt, rng)
        (thought, first), (ending, second), (value, third) = text.pieces
        assert (first, second, third) == (True, False, True)
        assert ending in endings
        assert value == f"{arithmetic.current_value(problem.prompt, thought)}}}"


@pytest.mark.parametrize("prompt", ["", "37", "37-5", "3.5+2", "a+b", "37++5"])
def test_anything_but_a_sum_of_whole_numbers_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="not a sum"):
        arithmetic.parse_operands(prompt)


def test_impossible_requests_for_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        arithmetic.held_out_problems(-1)
    with pytest.raises(ValueError, match="levels"):
        arithmetic.held_out_problems(3, levels=(2, 9))


def test_the_last_whole_number_in_a_box_is_the_answer() -> None:
    assert arithmetic.boxed_answer(r"\boxed{1}</think>\boxed{018}") == "18"
    assert arithmetic.boxed_answer(r"\boxed{}") == arithmetic.boxed_answer("18") == ""


def test_a_tie_goes_to_the_first_answer_and_empty_answers_do_not_vote() -> None:
    assert arithmetic.majority(["", "7", "", "9", "9", "7", ""]) == "7"
    assert arithmetic.majority(["", ""]) == ""
