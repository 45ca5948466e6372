from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex import canonical_key

reproducible = settings(derandomize=True, deadline=None, max_examples=300)


@pytest.mark.parametrize(
    "spellings",
    [
        ("1/2", "0.5", ".50", "0.500", "1 / 2", r"\frac{1}{2}", r"\dfrac{1}{2}", r"\frac12"),
        ("0.5", "$0.5$", r"\(0.5\)", "0.5.", "$0.5$.", "+0.5", r"\text{0.5}", "5e-1"),
        ("1000", "1,000", "1000.0", "1e3", r"1{,}000", r"1,\!000", r"1\,000", r"\$1,000", "01000"),
        ("-3", "- 3", "\u22123", "-3.0", "$-3$", "-6/2", r"-\frac{6}{2}", r"\frac{-6}{2}"),
        ("50%", r"50\%", "50 %", "50.0%"),
        ("C", "(C)", r"\text{(C)}", r"\textbf{C}", r"\text{\textbf{C}}", "C."),
        ("yes", "Yes", " YES. ", r"\text{Yes}"),
        ("(1,2)", "( 1, 2 )", r"\left(1, 2\right)", r"\left( 1,\, 2 \right)"),
        ("x^2+1", "x^2 + 1", "$x^2 +1$", r"x^2\ +\ 1"),
        ("New York", " New   York ", r"\text{New York}", "New York."),
        ("", " ", "$$", ".", r"\text{}"),
        ("def f():\n  return 1", "def f(): \n  return 1\n"),
    ],
    ids=lambda spellings: repr(spellings[0]),
)
def test_spellings_of_one_answer_share_its_key(spellings: tuple[str, ...]) -> None:
    keys = {spelling: canonical_key(spelling) for spelling in spellings}
    assert set(keys.values()) == {keys[spellings[0]]}, keys


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0.5", "50"),
        ("50%", "0.5"),
        ("50%", "50"),
        ("0.5%", "0.5"),
        ("1/3", "0.333333333"),
        ("1,5", "15"),
        ("1, 234", "1234"),
        ("(1,234)", "1234"),
        ("12", "-12"),
        ("New York", "NewYork"),
        ("x", "y"),
        ("1/0", "0"),
        (r"1\frac{1}{2}", r"\frac{11}{2}"),
        (r"\leftarrow", "arrow"),
        ("for i in x:\n  a()\nb()", "for i in x:\n  a()\n  b()"),
    ],
)
def test_different_answers_keep_different_keys(one: str, other: str) -> None:
    assert canonical_key(one) != canonical_key(other)


@reproducible
@given(st.fractions(max_denominator=10**6).filter(lambda value: abs(value) < 10**12))
def test_a_number_has_the_key_of_its_exact_value(value: Fraction) -> None:
    assert canonical_key(f"{value.numerator}/{value.denominator}") == str(value)
    assert canonical_key(rf"\frac{{{value.numerator}}}{{{value.denominator}}}") == str(value)


@reproducible
@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-1e9, max_value=1e9))
def test_a_decimal_equals_neither_its_hundredfold_nor_its_percentage(value: object) -> None:
    exact = Fraction(str(value))
    key = canonical_key(f"{value:f}")
    assert key == str(exact)
    assert key != canonical_key(f"{value:f}%")
    assert exact == 0 or key != canonical_key(str(exact * 100))


@reproducible
@given(st.text(alphabet=r"ab1 .,$\{}/%()-+eE", max_size=20) | st.text(max_size=20))
def test_every_text_has_a_key_that_blanks_around_it_do_not_change(text: str) -> None:
    assert canonical_key(f" {text} ") == canonical_key(text)


@pytest.mark.parametrize(
    "answer",
    ["1e999999999", "-1e-999999999", "9" * 10**6, "1," * 10**5 + "000", "1/" + "7" * 10**5],
    ids=lambda answer: answer[:12],
)
def test_numbers_too_long_for_arithmetic_are_compared_as_text(answer: str) -> None:
    assert canonical_key(answer) == answer


@pytest.mark.parametrize("unit", ["\\text{", "$", " a", "{,}", "~", "1,000", "\\frac", "-", "1\n"])
def test_a_hostile_answer_of_a_hundred_thousand_characters_has_a_key(unit: str) -> None:
    """Guards against superlinear patterns: a quadratic one would run for minutes."""
    assert canonical_key(unit * (100_000 // len(unit)))
    canonical_key(unit * (1000 // len(unit)))


def test_the_end_of_a_matrix_row_is_no_space() -> None:
    matrix = r"\begin{pmatrix}1%s2\end{pmatrix}"
    spaced, tight = canonical_key(matrix % r" \\ "), canonical_key(matrix % r"\\")
    assert spaced == tight != canonical_key(matrix % " ")
