r"""A strict reader of formulas: it refuses what it does not wholly understand or can read twice.

`1/2x`, `e^2x`, `\sin x/2` and `f(x)` have two readings. Products of several capital letters may be
matrices, chemistry or Roman numerals, `a \times b` a cross product: all are refused.
"""

from __future__ import annotations

import re
from fractions import Fraction

from sglang_dynasor.certaindex.formula import (
    DEGREE,
    END,
    TRIGONOMETRIC,
    Call,
    Formula,
    Symbol,
    Token,
    Unclear,
    symbols,
    tokenize,
)

_MAX_DEPTH = 12
_CONSTANTS = {"e": Call("e"), r"\pi": Call("pi")}
_ONE_DEGREE = Call("/", (Call("pi"), Fraction(180)))
_CLOSING = {"(": ")", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_ROUNDING = {r"\lfloor": "floor", r"\lceil": "ceil"}
_STARTS = {"(", "{", r"\frac", r"\sqrt", r"\binom", r"\lfloor", r"\lceil"}
# Of \log without a base and of lg, whose base differs between fields.
_UNKNOWN_BASES = {"log": Symbol("base of log"), "lg": Symbol("base of lg")}
_ORDERED = re.compile(r"[A-Z]|\\sigma_|[ij]$")
_FUNCTION_LETTERS = {"f", "g", "h"}


def parse_formula(text: str) -> Formula:
    """Return the formula that the whole of `text` writes. Raises Unclear where it writes none."""
    parser = _Parser(tokenize(text))
    formula = parser.sum()
    parser.expect(END.text)
    return formula


class _Parser:
    """Recursive descent: a sum of products of powers of atoms."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._in_bars = False
        self._in_angle = 0  # inside a trigonometric function a degree is a number

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _take(self) -> Token:
        token = self._next
        self._at += 1
        return token

    def _accept(self, *signs: str) -> str:
        return self._take().text if self._next.text in signs else ""

    def expect(self, sign: str) -> None:
        if self._next.text != sign:
            raise Unclear(f"{self._next.text!r} in place of {sign or 'the end'!r}")
        self._at += 1

    def sum(self) -> Formula:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise Unclear("nested too deeply")
        terms = [_signed(self._accept("-", "+"), self._product())]
        while sign := self._accept("-", "+"):
            sign = (sign == "+" and self._accept("-")) or sign  # 2 + -3
            terms.append(_signed(sign, self._product()))
        self._depth -= 1
        return terms[0] if len(terms) == 1 else Call("+", tuple(terms))

    def _product(self) -> Formula:
        product = self._power()
        factors = [product]
        while True:
            operator = self._accept("*", r"\cdot", r"\times", "/")
            if not operator and not self._starts_factor():
                break
            start = self._at
            factor = self._power()
            if operator == "/":
                product = Call("/", (product, factor))
                if self._starts_factor():
                    raise Unclear("1/2x has two readings")
                continue
            if operator == r"\times" and symbols(product) and symbols(factor):
                raise Unclear("a cross product")
            if not operator:
                self._refuse_application(factors[-1], factor, start)
            mixed = not operator and _is_mixed(product, factor)
            product = Call("+" if mixed else "*", (product, factor))
            factors.append(factor)
        if Fraction(0) in factors and symbols(product) - {"i"}:
            raise Unclear("0 m is not 0 s")
        if _may_not_commute(factors):
            raise Unclear("a product of matrices")
        return product

    def _starts_factor(self) -> bool:
        token = self._next
        if token.kind == "number":
            if self._tokens[self._at - 1].text == "!":
                return True
            raise Unclear("a number behind another factor")
        if token.text == "|":
            return not self._in_bars
        return token.kind in ("symbol", "function") or token.text in _STARTS

    def _refuse_application(self, before: Formula, factor: Formula, start: int) -> None:
        """f(x), f^{-1}(x), F(x+1) are applications; x(x+1) and N(N-1) are products."""
        if self._tokens[start].text != "(" or isinstance(before, Fraction):
            return
        if self._tokens[start + 2].text == ")":
            raise Unclear("a function of one letter or number")
        base = before.arguments[0] if isinstance(before, Call) and before.arguments else before
        if not isinstance(base, Symbol) or base.name in symbols(factor):
            return
        if base.name[0].isupper() or base.name[0] in _FUNCTION_LETTERS:
            raise Unclear("a function")

    def _power(self) -> Formula:
        base = self._atom()
        raised = False
        while True:
            if self._accept("!"):
                if raised or self._next.text == "!":
                    raise Unclear("x^2! has two readings, n!! is no iterated factorial")
                base = Call("!", (base,))
            elif self._accept("^"):
                if raised:
                    raise Unclear("a^b^c has two readings")
                raised = True
                base = Call("^", (base, self._exponent(base)))
            elif self._accept("°"):
                if base == 0:
                    raise Unclear("0 °C is not 0 °F")
                base = Call("*", (base, _ONE_DEGREE if self._in_angle else DEGREE))
            else:
                return base

    def _exponent(self, base: Formula) -> Formula:
        if self._next.text in ("{", "("):
            return self._group()
        sign = self._accept("-")
        kind, text = self._next.kind, self._next.text
        exponent = self._atom()
        glued = self._next.kind == "symbol" and not self._next.spaced
        if glued and (kind == "symbol" or not symbols(base)):
            raise Unclear("e^2x has two readings")
        if text == "1" and self._next.text == "/":
            raise Unclear("x^1/2 has two readings")
        return _signed(sign, exponent)

    def _atom(self) -> Formula:
        token = self._take()
        if token.kind == "number":
            return Fraction(token.text)
        if token.kind == "symbol":
            return _CONSTANTS.get(token.text, Symbol(token.text))
        if token.kind == "function":
            return self._function(token.text)
        if token.text in (r"\frac", r"\binom"):
            first = self._argument()
            return Call("/" if token.text == r"\frac" else "binom", (first, self._argument()))
        if token.text == r"\sqrt":
            return self._root()
        if token.text == "|":
            return self._absolute()
        self._at -= 1
        formula = self._group()
        return Call(_ROUNDING[token.text], (formula,)) if token.text in _ROUNDING else formula

    def _group(self) -> Formula:
        opening = self._take().text
        if opening not in _CLOSING:
            raise Unclear(f"{opening or 'the end'!r} in place of a formula")
        formula = self.sum()
        self.expect(_CLOSING[opening])
        return formula

    def _absolute(self) -> Formula:
        if self._in_bars:
            raise Unclear("nested bars have two readings")
        self._in_bars = True
        formula = self.sum()
        self.expect("|")
        self._in_bars = False
        return Call("abs", (formula,))

    def _argument(self) -> Formula:
        r"""Read what a command of TeX takes: a group or one token, of a number one digit."""
        token = self._next
        if token.kind == "number" and len(token.text) > 1:
            if not token.text.isdigit():
                raise Unclear(r"\frac1.5 has two readings")
            self._tokens[self._at] = Token("number", token.text[1:])
            return Fraction(token.text[0])
        if token.text == "{":
            return self._group()
        if token.kind not in ("number", "symbol"):
            raise Unclear("a command without its argument")
        return self._atom()

    def _root(self) -> Formula:
        index: Formula = Fraction(2)
        if self._accept("["):
            index = self.sum()
            self.expect("]")
        short = self._next.text not in ("{", "(")
        radicand = self._group() if self._next.text == "(" else self._argument()
        if short and self._next.kind == "number":
            raise Unclear(r"\sqrt13 has two readings")
        return Call("root", (radicand, index))

    def _function(self, name: str) -> Formula:
        base = self._base() if name == "log" and self._accept("_") else None
        exponent = self._exponent(Symbol(name)) if self._accept("^") else None
        angle = name in TRIGONOMETRIC
        self._in_angle += angle
        grouped = self._next.text in ("(", "{")
        if name == "sqrt" and not grouped:
            raise Unclear("how far the root goes is not said")
        argument = self._group() if grouped else self._bare_argument(angle)
        self._in_angle -= angle
        if grouped and self._next.text in ("^", "!"):
            raise Unclear(r"\sin(x)^2 has two readings")
        if name == "sqrt":
            return Call("root", (argument, Fraction(2)))
        if exponent == Call("*", (Fraction(-1), Fraction(1))) and "arc" + name in _INVERSE:
            return Call("arc" + name, (argument,))
        if name in _UNKNOWN_BASES:
            name, base = "log", base or _UNKNOWN_BASES[name]
        function = Call(name, (argument,) if base is None else (argument, base))
        if exponent is None:
            return function
        if not isinstance(exponent, Fraction) or exponent < 2:
            raise Unclear("a power of a function that may be its inverse")
        return Call("^", (function, exponent))

    def _base(self) -> Formula:
        digits = self._next.kind == "number" and len(self._next.text) > 1
        if digits:
            raise Unclear(r"\log_25 has two readings")
        return self._argument()

    def _bare_argument(self, angle: bool) -> Formula:
        r"""Read the argument of \sin 2x or \ln 2, which ends at the next operator or function."""
        argument = self._power()
        while angle and self._next.kind == "symbol":
            argument = Call("*", (argument, self._power()))
        token = self._next
        if token.text == "/":
            token = self._tokens[self._at + 1]
        elif not self._starts_factor():
            return argument
        if token.kind != "function":
            raise Unclear(r"\ln 2x and \sin x/2 have two readings")
        return argument


_INVERSE = {"arcsin", "arccos", "arctan"}


def _signed(sign: str, formula: Formula) -> Formula:
    return Call("*", (Fraction(-1), formula)) if sign == "-" else formula


def _is_mixed(whole: Formula, part: Formula) -> bool:
    r"""Say whether 1\frac{1}{2} is one and a half."""
    if not (isinstance(whole, Fraction) and isinstance(part, Call) and part.name == "/"):
        return False
    top, bottom = part.arguments
    if not (isinstance(top, Fraction) and isinstance(bottom, Fraction)):
        return False
    if whole.denominator > 1 or not 0 < top < bottom:
        raise Unclear(r"2\frac{3}{2} has two readings")
    return True


def _may_not_commute(factors: list[Formula]) -> bool:
    """Say whether several factors may be matrices (capital letters, Pauli's) or quaternions."""
    letters = [{name for name in symbols(factor) if _ORDERED.match(name)} for factor in factors]
    return sum(map(bool, letters)) > 1 and len(set[str]().union(*letters)) > 1
