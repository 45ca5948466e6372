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
        ("no solution", "No solution", "No Solution.", r"\text{NO SOLUTION}"),
        ("7", "_7_", r"\scriptstyle 7", r"\bf 7"),
        ("", " ", "$$", ".", r"\text{}"),
        ("-7", "\u20137", "-$7", r"-\$7", "$-7", "=-7", "-7,", "**-7**", r"\textcolor{red}{-7}"),
        ("0", "-0", "0.0", "+0", "\u22120"),
        ("Ada", r"\textnormal{Ada}", r"\textsf{Ada}", "**Ada**", "*Ada*", "Ada,"),
        ("Ada Byron", r"\textbf{Ada Byron}", "**Ada Byron**."),
        ("64%", r"64\%", "64 percent", "64 per cent", r"64\text{ percent}", "\uff16\uff14\uff05"),
        ("30°", r"30^\circ", r"30^{\circ}", "30 degrees", r"30\text{ degrees}"),
        (r"\emptyset", r"\varnothing", "\u2205"),
        (r"(-\infty,5]", r"\left(-\infty, 5\right]", "(\u2212\u221e, 5]"),
        ("x^2+1", "x\u00b2+1", "x^{2} + 1"),
        (
            r"\frac{\sqrt{3}}{2}",
            r"\textcolor{red}{\frac{\sqrt{3}}{2}}",
            r"{\color{red}\frac{\sqrt{3}}{2}}",
        ),
        (r"\sqrt{7}", "\u221a7", r"\sqrt{7}.", r"\displaystyle \sqrt{7}"),
        (r"\frac{a}{b}", r"\dfrac{a}{b}", r"\tfrac{a}{b}"),
        (r"x\le 2", r"x \leq 2", r"x\leqslant 2", "x \u2264 2", "x <= 2"),
        (r"\pi r^2", "\u03c0r\u00b2", r"\pi r^{2}"),
        ("0.5\\ldots", "0.5...", "0.5\u2026", r"0.5\dots"),
        ("9 cm", r"9\text{ cm}", r"9\,\mathrm{cm}", r"9~\text{cm}", r"9\;\mbox{cm}"),
        (r"\sin x", r"\operatorname{sin} x"),
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
        ("0,1", "01"),
        ("0.333...", "0.333"),
        ("0.0000001", "0.0000002"),
        ("2e - 3", "2e-3"),
        ("3 , 141", "3,141"),
        ("(1,234)", "(1, 234)"),
        ("Mg", "mg"),
        ("MW", "mW"),
        ("IV", "iv"),
        ("N", "n"),
        ("NaCl", "nacl"),
        ("\u211d", "R"),
        ("point A lies outside", "point a lies outside"),
        ("pure Co", "pure CO"),
        (r"e^{x}y", "e^xy"),
        ("x+1=", "x+1"),
        ("\u20ac5", "$5"),
        ("\u22483", "3"),
        ("~3", "3"),
        ("\u221a2x", r"\sqrt{2}x"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1 2\end{pmatrix}"),
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


@reproducible
@given(st.text(alphabet="ab12 .,^_(){}+-=/'\u00b2\u03c0\u221e", max_size=12))
def test_a_key_is_its_own_key(text: str) -> None:
    assert canonical_key(canonical_key(text)) == canonical_key(text)


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
