from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import canonical_key, extract_answer
from sglang_dynasor.certaindex.numbers import exact_number

reproducible = settings(derandomize=True, deadline=None, max_examples=300)


def number_in(text: str) -> str:
    return extract_answer(text, "number")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("first 3, then 4.", "4"),
        ("It costs $1,234.50 in all.", "1,234.50"),
        ("the sum is -7", "-7"),
        ("the sum is \u22127", "\u22127"),
        ("between 10-20", "20"),
        ("on pages 10\u201320", "20"),
        ("10 apples - 4 = 6", "6"),
        ("- 3 apples", "3"),
        ("- $3 for apples", "3"),
        ("1 2 3 456", "456"),
        ("one of 1,2,3", "3"),
        ("1, 2, 3", "3"),
        ("6.02e23 of x2 and H2O", "6.02e23"),
        ("41 apples, all told, and,", "41"),
        ("5 m^2", "5"),
        ("5 m\u00b2", "5"),
        ("x^2 = 16", "16"),
        ("a_{10} = 55", "55"),
        ("a_1 = 5", "5"),
        ("It is 6.[1]", "6"),
        ("from 6%\u20137%", "7"),
        ("It is 6 (Smith, ibid.)[12]", "6"),
        ("[6]", "6"),
        ("42km", "42"),
        ("**42**!", "42"),
        ("It is 7 .", "7"),
        ("<answer>42</answer>", "42"),
        ("none", ""),
        ("x^{10} of H2O", ""),
        (", - . $", ""),
    ],
)
def test_the_last_number_of_prose_is_extracted_as_it_is_spelled(text: str, number: str) -> None:
    assert number_in(text) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("It ends at 13.50", "27/2"),
        ("a total of $12{,}500$.", "12500"),
        (r"a total of $12\,500$", "12500"),
        (r"a total of $3,\!000,\!000$", "3000000"),
        (r"costs \$1{,}000.50", "2001/2"),
        ("a loss of -$8.", "-8"),
        ("a loss of \u2212$8", "-8"),
        (r"a loss of -\$12.50", "-25/2"),
        ("a loss of -\u20ac8", "-8"),
        ("it is \u20133.", "-3"),
        ("x = - 8", "-8"),
        (r"$- \frac{3}{4}$", "-3/4"),
        ("x=\u22128", "-8"),
        ("$(-8)$", "-8"),
        ("结果是\uff11\uff15。", "15"),
        ("一共有15个苹果", "15"),
        ("答えは\uff13\uff0e\uff15です", "7/2"),
        ("environ 2 000 000 d'habitants", "2000000"),
        ("12 345 St\u00fcck", "12345"),
        ("1\u202f000\u202f000 \u20ac", "1000000"),
        ("2'000'000 Fr.", "2000000"),
        ("zusammen 2.345,75 Euro", "9383/4"),
        ("zusammen 1.234.567 Euro", "1234567"),
        ("together $2,345.75", "9383/4"),
        ("Rs 2,50,000", "250000"),
        ("12,34,567 rupees", "1234567"),
        (r"a speed of $2 \times 10^{8}$ m/s", "200000000"),
        (r"a charge of $1.6 \times 10^{-19}$ C", "1/6250000000000000000"),
        ("about 3 \u00d7 10\u2078", "300000000"),
        ("about 3e8 m/s", "300000000"),
        (r"so it is $2^{10}$", "1024"),
        (r"so it is $\frac58$.", "5/8"),
        (r"so it is $-\frac{5}{8}$.", "-5/8"),
        (r"so it is $\dfrac{3.5}{7}$", "1/2"),
        ("odds of 3/4.", "3/4"),
        ("It takes 4 1/2 hours.", "9/2"),
        (r"it takes $7\frac{1}{2}$", "15/2"),
        ("\u00bd cup", "1/2"),
        ("2\u00bd cups", "5/2"),
        ("about .5 of them", "1/2"),
    ],
)
def test_every_spelling_of_a_number_is_found_in_prose(text: str, value: str) -> None:
    assert canonical_key(number_in(text)) == value


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        (r"so $2\sqrt{3}$", r"2\sqrt{3}"),
        (r"so $-\sqrt{2}$", r"-\sqrt{2}"),
        (r"so $1+\sqrt{5}$", r"1+\sqrt{5}"),
        (r"so $\frac{\sqrt{3}}{2}$", r"\frac{\sqrt{3}}{2}"),
        (r"so $5\pi$", r"5\pi"),
        (r"so $3^{n+1}$", r"3^{n+1}"),
        ("at 12:00", "12:00"),
        ("so 4210_5", "4210_5"),
        ("so 4210_{5}", "4210_{5}"),
        ("so 3,14 Euro", "3,14"),
        ("so (1,2)", "1,2"),
        ("so 0.333...", "0.333..."),
        ("so 5 million", "5 million"),
        ("共12万", "12万"),
    ],
)
def test_what_is_more_than_its_last_digits_is_kept_whole(text: str, spelling: str) -> None:
    assert number_in(text) == spelling


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"So x = \boxed{64}. I tried 3 ways.", "64"),
        (r"\boxed{x = 64} (see 3)", "64"),
        (r"\boxed{64 \text{ cm}^2} in 3 steps", "64"),
        (r"\boxed{\frac{3}{4}} in 3 steps", r"\frac{3}{4}"),
        (r"\boxed{1, 2} in 3 steps", "1, 2"),
        (r"\boxed{3} and \boxed{5} in 3 steps", "3, 5"),
        (r"\boxed{B}, since it is 64", "64"),
        ("64}. I tried 3 ways.", "64"),
        ("#### 64\n\nI needed 3 steps.", "64"),
        ("#### -64\n3", "-64"),
        ("#### $1,200\n3", "1,200"),
        ("#### **64**\n3", "64"),
        ("#### Answer: 64\n3", "64"),
        ("#### 1\n#### 64\n3", "64"),
        ("#### Step 3: add\nIt is 64", "64"),
        ("#### 3. Add\nIt is 64", "64"),
        ("##### 3\nIt is 64", "64"),
    ],
)
def test_a_box_or_a_final_answer_mark_goes_before_the_last_number(text: str, number: str) -> None:
    assert number_in(text) == number


@reproducible
@given(st.text(alphabet=r"0123456789.,'{}\!-+$/^e _a=", max_size=20))
def test_a_text_that_is_a_number_gives_its_own_value(text: str) -> None:
    value = exact_number(text)
    spelling = number_in(text)
    if value is not None and "- " not in text:
        assert exact_number(spelling) == value


@reproducible
@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["so {}.", "= {}$", "\u7b54\u6848\u662f{}", "({})"]),
)
def test_an_integer_is_found_in_any_surroundings(value: int, prose: str) -> None:
    assert exact_number(number_in(prose.format(value))) == Fraction(value)
