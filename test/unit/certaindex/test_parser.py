from __future__ import annotations

from fractions import Fraction

import pytest

from sglang_dynasor.certaindex.formula import Call, Symbol, Unclear, symbols
from sglang_dynasor.certaindex.parser import parse_formula

X, TWO = Symbol("x"), Fraction(2)


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("2.50", Fraction(5, 2)),
        ("x", X),
        ("x_{max}'", Symbol("x_max'")),
        (r"\theta_1", Symbol(r"\theta_1")),
        (r"\frac12", Call("/", (Fraction(1), TWO))),
        (r"\frac x2", Call("/", (X, TWO))),
        (r"\sqrt2x", Call("*", (Call("root", (TWO, TWO)), X))),
        (r"\sqrt[3]x", Call("root", (X, Fraction(3)))),
        ("2^10", Call("^", (TWO, Fraction(10)))),
        ("-x^2", Call("*", (Fraction(-1), Call("^", (X, TWO))))),
        ("2x!", Call("*", (TWO, Call("!", (X,))))),
        (r"2\frac{1}{2}", Call("+", (TWO, Call("/", (Fraction(1), TWO))))),
        (r"2\cdot\frac{1}{2}", Call("*", (TWO, Call("/", (Fraction(1), TWO))))),
        (r"\sin 2x", Call("sin", (Call("*", (TWO, X)),))),
        (r"\sin^2 x", Call("^", (Call("sin", (X,)), TWO))),
        (r"\sin^{-1} x", Call("arcsin", (X,))),
        (r"\log_2 x", Call("log", (X, TWO))),
        ("|x|x", Call("*", (Call("abs", (X,)), X))),
        (r"\pi", Call("pi")),
        ("1.5e-3", Fraction(3, 2000)),
        ("x(x+2)", Call("*", (X, Call("+", (X, TWO))))),
    ],
)
def test_a_formula_is_read_as_it_is_typeset(text: str, formula: object) -> None:
    assert parse_formula(text) == formula


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "2+",
        "(x",
        "x)",
        "x 2",
        "2 3",
        "x^2^3",
        "x^2!",
        "x!!",
        "1/2x",
        "1/2 x",
        "x^1/2",
        "e^2x",
        "2^xy",
        "f(x)",
        "x(2)",
        "F(x+1)",
        "g^{-1}(x)",
        "x_12",
        "007",
        "2e-3",
        "0 m",
        "1F",
        r"\sqrt13",
        r"\frac1.5",
        r"\frac9e54",
        r"\log_25",
        r"\ln 2x",
        r"\sin x/2",
        r"\sin(x)^2",
        r"\sin^{-2} x",
        r"\sinh^{-1} x",
        r"2\frac{3}{2}",
        r"0.5\frac{1}{2}",
        r"a\times b",
        "AB",
        "A B^{-1}",
        "A(B+C)",
        r"\frac{1}{2}MR^2",
        "kg",
        "dx",
        "iv",
        "abc",
        "||x||",
        "x[1]",
        "sqrt 2",
        r"\vec{a}",
        r"\unknown x",
        "x;y",
        "x=1",
        "(" * 20 + "x" + ")" * 20,
        "9" * 200,
    ],
)
def test_what_is_not_wholly_understood_is_refused(text: str) -> None:
    with pytest.raises(Unclear):
        parse_formula(text)


def test_symbols_are_told_apart_by_case_subscript_and_prime() -> None:
    assert symbols(parse_formula(r"m_1 x + m_2 x' + \Omega/\omega - m/M")) == {
        *("m_1", "m_2", "x", "x'", r"\Omega", r"\omega", "m", "M")
    }
