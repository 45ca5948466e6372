from __future__ import annotations

import pytest

from sglang_dynasor.certaindex import canonical_key, extract_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{1\right\}}", r"\left\{1\right\}"),
        (r"\boxed{1 \\ 2}", r"1 \\ 2"),
        (r"\boxed {3}", "3"),
        (r"\\boxed{3}", "3"),
        (r"\fbox{3}", "3"),
        (r"so \fbox{\frac{2}{5}}", r"\frac{2}{5}"),
        ("\\boxed{a\n  b}", "a b"),
        (r"} stray } \boxed{3}", "3"),
        ("no box, 42", ""),
    ],
)
def test_a_box_is_read_to_its_own_closing_brace(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"the least value is $\boxed 7$.", "7"),
        (r"$\boxed7$", "7"),
        (r"$\boxed 12$", "12"),
        (r"$\boxed -3$", "-3"),
        (r"$\boxed 1,250$", "1,250"),
        (r"$\boxed x$", "x"),
        (r"$\boxed B.$", "B"),
        (r"$\boxed\frac12$", r"\frac12"),
        (r"$\boxed \dfrac{1}{2}$", r"\dfrac{1}{2}"),
        (r"$\boxed\sqrt{5}$", r"\sqrt{5}"),
        (r"$\boxed\pi$", r"\pi"),
    ],
)
def test_a_box_without_braces_holds_what_comes_next(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed",
        r"Put the result in \boxed now.",
        r"Use \boxed for the result",
        "Give it with \\boxed\nResult",
        r"a \boxed a number",
        r"\boxed{}",
        r"\boxed{ }",
        r"\boxed{...}",
        r"\boxed{\ldots}",
        r"Write it as \boxed{your answer}",
        r"Write it as \boxed{\text{Answer}}",
    ],
)
def test_a_mention_of_the_command_is_no_box(text: str) -> None:
    assert extract_answer(text) == ""
    assert extract_answer(f"{text}\nSo it is $\\boxed{{12_5}}$") == "12_5"
    assert extract_answer(rf"\boxed{{8}}. {text}") == "8"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so it is \boxed{19", ""),
        (r"so it is \boxed{\frac{1}{2}", ""),
        (r"\boxed{\text{the cat", ""),
        (r"\boxed{7} and then \boxed{8", "7"),
        (r"\boxed{7 and then \boxed{8}", "8"),
        (r"\boxed{x = \boxed{5}}", "5"),
    ],
)
def test_a_box_that_was_cut_off_is_none(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The zeros are x=\boxed{2} and x=\boxed{9}", "2, 9"),
        (r"The zeros are $\boxed{2}$, $\boxed{9}$ and $\boxed{11}$.", "2, 9, 11"),
        (r"x=\boxed{2}, y=\boxed{-1}", "2, -1"),
        (r"either \boxed{-1} or \boxed{1}", "-1, 1"),
        (r"One root is \boxed{2} while the second root is \boxed{9}.", "2, 9"),
        ("$$\\boxed{2}$$\n$$\\boxed{9}$$", "2, 9"),
        ("(a) \\boxed{2}\n(b) \\boxed{9}", "2, 9"),
        ("1. \\boxed{2}\n2. \\boxed{9}", "2, 9"),
        (r"First, a = \boxed{4}. The roots are \boxed{2} and \boxed{9}.", "2, 9"),
        (r"\boxed{2} \boxed{2}", "2"),
        (r"It seems to be \boxed{6}. Yes, \boxed{6}, as 6 is even.", "6"),
        (r"It is \boxed{0.5}, that is \boxed{\frac12}", r"\frac12"),
    ],
)
def test_boxes_side_by_side_are_one_list(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


def test_lists_that_share_their_last_box_are_different_answers() -> None:
    one, other = (rf"x=\boxed{{{root}}} and x=\boxed{{5}}" for root in (3, 4))
    assert canonical_key(extract_answer(one)) != canonical_key(extract_answer(other))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} no: \boxed{2}", "2"),
        (r"I try \boxed{1}. That fails; it is \boxed{2}.", "2"),
        (r"\boxed{1}? No, \boxed{2}.", "2"),
        (r"\boxed{1}, wait, \boxed{2}", "2"),
        (r"\boxed{1} is wrong, it should be \boxed{2}", "2"),
        (r"not \boxed{1} but \boxed{2}", "2"),
        (r"\boxed{2}, not \boxed{1}", "2"),
        (r"With a=\boxed{1}, the total is \boxed{2}", "2"),
        (r"a=\boxed{1}, so b=\boxed{2}", "2"),
        (r"\boxed{1} \Rightarrow \boxed{2}", "2"),
        (r"\boxed{\pi} \approx \boxed{3.14}", "3.14"),
        (r"\boxed{\frac{1}{2}} = \boxed{0.25 + 0.25}", "0.25 + 0.25"),
        ("Step 1 gives \\boxed{1}.\nStep 2 gives \\boxed{2}", "2"),
        (r"\boxed{1}" + " and" * 50 + r" \boxed{2}", "2"),
    ],
)
def test_a_box_that_corrects_or_concludes_replaces_those_before_it(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42}$ is the result.", "42"),
        ("\\frac{1}{2}}\n", r"\frac{1}{2}"),
        (" 12 }\\]", "12"),
        (r"\text{New York}}", r"\text{New York}"),
        ("x = 3, y = 5}.", "x = 3, y = 5"),
        (r"42} and again \boxed{43}", "43"),
        ("42", ""),
        ("}", ""),
        ("so we see that the sum is 3}", ""),
        ("It is {2}}", ""),
        ("We add. Then 3}", ""),
        ("1\n2}", ""),
        ("1" * 200 + "}", ""),
    ],
)
def test_a_text_may_begin_in_a_box_that_the_prompt_has_opened(text: str, answer: str) -> None:
    assert extract_answer(text) == answer
