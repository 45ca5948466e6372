from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dynasor.certaindex.numbers import NUMBER_PATTERN, exact_number, plain_spelling

reproducible = settings(derandomize=True, deadline=None, max_examples=300)

SPELLINGS = {
    "0": ("0", "-0", "0.0", "000", "0/7", r"-\frac{0}{3}", "0e5", "\uff10"),
    "5": ("5", "+5", "$5", r"\$5", "$ 5", "5.00", "05", "5e0", "\u0665"),
    "-5": ("-5", "- 5", "\u22125", "\u20135", "\uff0d5", "-$5", r"-\$5", "$-5", "-5.0"),
    "1000": ("1,000", "1{,}000", r"1,\!000", r"1{,}\!000", r"1\,000", "1 000", "1'000", "1e3"),
    "1000000": ("1,000,000", "1 000 000", "1\u202f000\u00a0000", "1'000'000", "1.000.000"),
    "250000": ("2,50,000", "2{,}50{,}000", "250\u2009000", "2.5e5", r"2.5 \times 10^5"),
    "30864/25": ("1.234,56", "1,234.56", "1 234,56", "1'234.56", r"1\,234.56", "1.234,560"),
    "617/500": ("1.234", "1{,}2340", "1.2340"),
    "1/8": ("0.125", ".125", "0{,}125", "1/8", r"\frac18", "\u215b", "2^{-3}"),
    "300000000": ("3e8", "3E+8", r"3 \times 10^8", "3 \u00d7 10^{8}", "3\u00b710\u2078", "3x10^8"),
    "1/6250000000000000000": ("1.6e-19", r"1.6 \times 10^{-19}", "1.6\u00d710\u207b\u00b9\u2079"),
    "1024": ("2^{10}", "2^10", "2\u00b9\u2070", "4^5", "+2^{ 10 }"),
    "-1024": ("-2^{10}", "\u22122^10"),
    "3/4": (r"\frac34", r"\frac{3}{4}", r"\dfrac 3 4", r"\tfrac3{4}", "3/4", "3 / 4", "\u00be"),
    "-3/4": (r"-\frac34", r"\frac{-3}{4}", r"\frac{3}{-4}", "-3/4", "-.75", "-\u00be"),
    "1/2": (r"\frac{3.5}{7}", "3.5/7", "\u00bd", "1\u20442", "1,000/2,000", r"\cfrac12"),
    "11/2": ("5 1/2", r"5\frac{1}{2}", r"5\frac12", r"5\,\tfrac{1}{2}", "5\u00bd", "5 \u00bd"),
    "-15/2": ("-7 1/2", r"-7\frac{1}{2}", "\u22127\u00bd"),
    "1/3": (r"0.\overline{3}", r".\overline{3}", r"0.\bar{3}", r"0.3\overline{33}"),
    "1/6": (r"0.1\overline{6}", r"0.1\dot{6}"),
}


@pytest.mark.parametrize(
    ("value", "text"), [(value, text) for value, texts in SPELLINGS.items() for text in texts]
)
def test_every_unambiguous_spelling_is_read_exactly(value: str, text: str) -> None:
    assert exact_number(text) == Fraction(value)
    assert exact_number(f"  {text}\n") == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ",", ".", "-", "$", "%", "x", "5x", "5 m", "\u20ac5", "50%"),
        *("0,1", "0,125", "3,14", "1,2,3", "1, 234", "1,23,4", "12,34", "1,0000", "01,000"),
        *("1 1", "1 00", "1 0000", "1 234 5", "1 234 56", "1,234 567", "1'00", "5'6"),
        *("1 000/2", "1 125/250", "5 3/2", r"5\frac{5}{2}", "5 0/2", "1 1 1/2"),
        *("1/0", r"\frac{1}{0}", "0^{0}", "0^{-1}", "1/2/3", r"\frac{1}", r"\frac12 3"),
        *("--5", "+-5", "-$-5", "$$5", "5-", "2--1", "10-20", "1.2.3", "1..2", "0.333..."),
        *("2^{x}", "x^2", "2^{10", "2^{1.5}", "2^3^4", "4210_5", "1_000", "0x10", "12:00"),
        *("1e", "e5", "1e5.5", "1e5e5", r"0.\overline{}", "0.{3}", r"\sqrt{4}", "3!", "5.", "1 e5"),
    ],
)
def test_what_has_another_reading_or_none_is_no_number(text: str) -> None:
    assert exact_number(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *("1e999999999", "1e-999", r"3 \times 10^{999}", "9^{999}", "12345678^{99}", "2^{99999}"),
        *("9" * 65, "1," * 40 + "000", "1/" + "7" * 10**6, " " * 10**6 + "1" * 100, "-" * 10**6),
    ],
    ids=lambda text: text[:12],
)
def test_numbers_too_long_for_arithmetic_are_not_read(text: str) -> None:
    assert exact_number(text) is None


@reproducible
@given(
    st.integers(0, 10**12), st.integers(0, 99), st.sampled_from(["", "-", "$", "-$", "\u2013", "+"])
)
def test_thousands_may_be_set_apart_by_any_separator(whole: int, cents: int, sign: str) -> None:
    value = Fraction(100 * whole + cents, 100) * (-1 if sign[:1] in ("-", "\u2013") else 1)
    english = f"{whole:,}"
    for separator in (",", "{,}", r",\!", r"\,", " ", "\u202f", "'"):
        assert exact_number(f"{sign}{english.replace(',', separator)}.{cents:02}") == value
    if whole >= 1000:
        assert exact_number(f"{sign}{english.replace(',', '.')},{cents:02}") == value


@reproducible
@given(st.text(alphabet=r"0123456789.,'{}\!-+$/^e ", max_size=14))
def test_every_number_is_found_by_the_search_pattern_as_a_whole(text: str) -> None:
    number = exact_number(text)
    if number is not None:
        magnitude = plain_spelling(text).strip().lstrip("-+$\\ ")
        found = re.match(NUMBER_PATTERN, magnitude)
        assert found is not None
        assert found[0] == magnitude
