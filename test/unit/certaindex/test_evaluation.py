from __future__ import annotations

import cmath
import math
import random

import pytest

from sglang_dynasor.certaindex.evaluation import ratios, values, written
from sglang_dynasor.certaindex.formula import Unclear
from sglang_dynasor.certaindex.parser import parse_formula

FUNCTIONS = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "exp": cmath.exp,
    "ln": cmath.log,
    "sqrt": cmath.sqrt,
}


def value(text: str) -> complex:
    return complex(values(parse_formula(text))[0])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_values_of_the_standard_library(name: str) -> None:
    rng = random.Random(name)
    for _ in range(20):
        argument = round(rng.uniform(0.01, 0.99), 6)
        assert cmath.isclose(value(f"{name}({argument})"), FUNCTIONS[name](argument))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cot(0.5)", 1 / math.tan(0.5)),
        ("sec(0.5)", 1 / math.cos(0.5)),
        ("csc(0.5)", 1 / math.sin(0.5)),
        (r"\log_2 10", math.log2(10)),
        ("5.5!", math.gamma(6.5)),
        (r"\binom{7}{3}", 35),
        (r"\binom{0.5}{2}", -0.125),
        (r"\lceil \sqrt{5} \rceil", 3),
        (r"\lfloor -2.5 \rfloor", -3),
        (r"\sqrt[3]{-8}", -2),
        ("(-4)^{1/2}", 2j),
        ("(2+i)(2-i)", 5),
        ("e^{i}", cmath.exp(1j)),
        (r"\cos 60°", 0.5),
    ],
)
def test_constants_have_their_value(text: str, expected: complex) -> None:
    assert cmath.isclose(value(text), expected)


@pytest.mark.parametrize(
    "text",
    [
        "1/0",
        "0^0",
        "1/(x-x)",
        r"\ln 0",
        r"\cot 0",
        r"\sqrt2 - \sqrt2",
        r"\sqrt8 - 2\sqrt2",
        r"\sin\pi",
        r"\tan(\pi/2)",
        r"\sqrt2 + 10^{-70}",
        r"\sqrt{1+10^{-80}}",
        r"\arctan(10^{30})",
        r"\cos(10^{-30})",
        r"\tanh 200",
        r"\lfloor \sqrt2 \cdot \sqrt2 \rfloor",
        "(-8)^{1/3}",
        r"\sqrt[4]{-1}",
        "(-1)!",
        "2000!",
        "2^{100000}",
        "e^{10^6}",
        r"\binom{10^6}{2}",
    ],
)
def test_what_rounding_could_decide_is_refused(text: str) -> None:
    with pytest.raises(Unclear):
        values(parse_formula(text))


def test_text_tells_exact_numbers_apart_that_no_rounding_would() -> None:
    texts = {written(*values(parse_formula(f"1+2^{{-{n}}}"))) for n in (1, 50, 200, 2000, 2001)}
    assert len(texts) == 5


def test_a_rational_number_has_one_text_whether_it_was_rounded_or_not() -> None:
    exact, rounded = (values(parse_formula(text)) for text in ("7", r"\sqrt7\sqrt7"))
    assert exact != rounded
    assert written(*exact) == written(*rounded)


def test_ratios_are_those_of_every_multiple() -> None:
    one, multiple, other = (
        [written(ratio) for ratio in ratios(parse_formula(text))]
        for text in ("x^2-y", r"\pi(3y-3x^2)", "x^2+y")
    )
    assert one == multiple != other
