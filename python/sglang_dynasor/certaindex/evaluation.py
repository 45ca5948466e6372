"""Values of formulas at fixed points, such that equal text means equal formulas.

Rational numbers stay exact; other values have 220 digits, of which 150 are compared. What would
vanish in a sum at that precision, or what rounding might have made, is refused: 1 and 1 + 10^-200
never meet. So an error of rounding can only set equal formulas apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from hashlib import blake2b
from typing import Any

import mpmath  # type: ignore[import-untyped]

from sglang_dynasor.certaindex.formula import (
    IMAGINARY_UNIT,
    Formula,
    Symbol,
    Unclear,
    symbols,
)

_DIGITS = 150
_MAX_EXACT_BITS = 1 << 14
# Two rationals of this height differ within the digits compared.
_MAX_HEIGHT = 10**74
_MAX_INTEGER = 1500  # of which the factorial is taken
_NEGLIGIBLE = 1e-60  # a term of a sum that is smaller than this part of it
_CANCELLED = 1e-30  # a sum that is smaller than this part of its terms
_MAX_EXPONENT = 1e5  # of e, in magnitude

_context = mpmath.MPContext()
_context.dps = _DIGITS + 70

# mpf and mpc of mpmath, which has no types.
Value = Any


def values(formula: Formula) -> tuple[Value, ...]:
    """Return the value of a constant, or a formula's values at three positive points and at one
    complex one, which is None where the formula has no value there. Raises Unclear."""
    names = symbols(formula)
    if not names or names == {IMAGINARY_UNIT.name}:
        return (_value(formula, lambda _: _context.j, True),)
    real = tuple(_value(formula, partial(_positive, seed)) for seed in range(3))
    try:
        return (*real, _value(formula, _complex))
    except Unclear:
        return (*real, None)


def ratios(formula: Formula) -> tuple[Value, ...]:
    """Return what `values` are alike for all multiples of a formula with symbols."""
    first, *others = values(formula)
    return tuple(None if other is None else _divide(other, first) for other in others)


def direction(formula: Formula) -> str:
    """Return the sign of a formula with symbols at the point that `ratios` divide by."""
    first = values(formula)[0]
    if isinstance(first, _context.mpc):
        raise Unclear("no order of complex numbers")
    return "-" if first < 0 else "+"


def written(value: Value) -> str:
    """Return the text of a value: the same text for values equal within the digits compared."""
    if value is None or value == 0:
        return "?" if value is None else "0"
    if isinstance(value, Fraction) and not _is_low(value):
        return str(value)
    number = _context.mpmathify(_inexact(value))
    magnitude = _context.log(abs(number), 10)
    # A power of ten, whichever side rounding leaves it on, has one magnitude.
    exponent = math.floor(magnitude + Fraction(1, 10**9))
    scale = _context.mpf(10) ** (_DIGITS - exponent)
    parts = (int(_context.nint(part * scale)) for part in (number.real, number.imag))
    return ",".join(map(str, (*parts, exponent)))


def _positive(seed: int, name: str) -> Fraction:
    digest = blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return Fraction(200 + int.from_bytes(digest) % 3800, 1009)


def _complex(name: str) -> Value:
    """Left of the imaginary axis, where a root of a square is not its base."""
    return _context.mpc(_inexact(-_positive(3, name)), _inexact(_positive(4, name)))


def _value(formula: Formula, point: Callable[[str], Value], constant: bool = False) -> Value:
    if isinstance(formula, Fraction):
        return formula
    if isinstance(formula, Symbol):
        return point(formula.name)
    arguments = [_value(argument, point, constant) for argument in formula.arguments]
    if constant and formula.name == "^" and _has_real_root(*arguments):
        raise Unclear("(-8)^{1/3} has a real and a principal value")
    value = OPERATIONS[formula.name](*arguments)
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_EXACT_BITS:
            raise Unclear("too large a number")
        return value
    return _without_noise(value)


def _without_noise(value: Value) -> Value:
    if not _context.isfinite(value):
        raise Unclear("no finite value")
    if isinstance(value, _context.mpc):
        noise = abs(value) * _context.mpf(10) ** (-_DIGITS - 30)
        if abs(value.imag) <= noise:
            return value.real
        if abs(value.real) <= noise:
            return _context.mpc(0, value.imag)
    return value


def _is_low(value: Fraction) -> bool:
    return abs(value.numerator) <= _MAX_HEIGHT and value.denominator <= _MAX_HEIGHT


def _inexact(value: Value) -> Value:
    if not isinstance(value, Fraction):
        return value
    if not _is_low(value):
        raise Unclear("a number with more digits than are compared")
    return _context.mpf(value.numerator) / value.denominator


def _is_exact(*values: Value) -> bool:
    return all(isinstance(value, Fraction) for value in values)


def _add(*terms: Value) -> Value:
    if _is_exact(*terms):
        return sum(terms, Fraction())
    exact = sum((term for term in terms if isinstance(term, Fraction)), Fraction())
    numbers = [_inexact(term) for term in terms if not isinstance(term, Fraction)]
    if exact:
        numbers.append(_inexact(exact))
    total, largest = _context.fsum(numbers), max(map(abs, numbers))
    if abs(total) < largest * _CANCELLED:
        raise Unclear("a sum that may be zero")
    if min(map(abs, numbers)) < largest * _NEGLIGIBLE:
        raise Unclear("a term that may vanish in its sum")
    return total


def _multiply(first: Value, second: Value) -> Value:
    if _is_exact(first, second) or 0 in (first, second):
        return Fraction(first * second) if _is_exact(first, second) else Fraction()
    return _inexact(first) * _inexact(second)


def _divide(first: Value, second: Value) -> Value:
    if second == 0:
        raise Unclear("a division by zero")
    if _is_exact(first, second) or first == 0:
        return first / second if first else Fraction()
    return _inexact(first) / _inexact(second)


def _raise(base: Value, exponent: Value) -> Value:
    if base == 0:
        if not isinstance(exponent, Fraction) or exponent <= 0:
            raise Unclear("a power of zero")
        return Fraction()
    if not isinstance(exponent, Fraction):
        return _inexact_power(base, exponent)
    if not isinstance(base, Fraction):
        return _inexact_power(base, exponent)
    if exponent.denominator > 1:
        root = _exact_root(base, exponent.denominator)
        if root is None:
            return _inexact_power(base, exponent)
        base, exponent = root, Fraction(exponent.numerator)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and bits * abs(exponent) > _MAX_EXACT_BITS:
        raise Unclear("too large a power")
    if abs(base) == 1:
        exponent %= 2
    return base ** int(exponent)


def _inexact_power(base: Value, exponent: Value) -> Value:
    number, power = _inexact(base), _inexact(exponent)
    if abs(power) * (abs(_context.log(number)) + 1) > _MAX_EXPONENT:
        raise Unclear("too large a power")
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        return number ** int(exponent)
    return number**power


def _has_real_root(base: Value, exponent: Value) -> bool:
    negative = isinstance(base, (Fraction, _context.mpf)) and base < 0
    return negative and not (isinstance(exponent, Fraction) and exponent.denominator <= 2)


def _exact_root(base: Fraction, index: int) -> Fraction | None:
    if base < 0 or index > 64 or not _is_low(base):
        return None
    top, bottom = (round(part ** (1 / index)) for part in base.as_integer_ratio())
    root = Fraction(top, bottom)
    return root if root**index == base else None


def _root(radicand: Value, index: Value) -> Value:
    if not isinstance(index, Fraction) or index.denominator > 1 or not 2 <= index <= 1000:
        if not isinstance(index, Fraction) and index != 0:
            return _raise(radicand, 1 / _inexact(index))
        raise Unclear("no whole index of a root")
    negative = isinstance(radicand, (Fraction, _context.mpf)) and radicand < 0
    if negative and index % 2:
        return -_raise(-radicand, 1 / index)
    if negative and index > 2:
        raise Unclear("an even root of a negative number")
    return _raise(radicand, 1 / index)


_AT_ZERO = {"sin": 0, "tan": 0, "arcsin": 0, "arctan": 0, "sinh": 0, "tanh": 0, "cos": 1, "cosh": 1}
_INVERSE = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}


def _function(name: str, argument: Value) -> Value:
    if argument == 0 and name in _AT_ZERO:
        return Fraction(_AT_ZERO[name])
    if argument == 0 and name != "arccos":
        raise Unclear("no value at zero")
    number = _inexact(argument)
    limit = 100 if name.endswith("h") else 1e20
    if number != 0 and not 1e-20 < abs(number) < limit:
        raise Unclear("an argument whose digits a function would lose")
    value = getattr(_context, _INVERSE.get(name, name))(number)
    if not 1e-40 < abs(value) < (1e100 if name.endswith("h") else 1e40):
        raise Unclear("a value that rounding may have made")
    return value


def _exponential(exponent: Value) -> Value:
    return Fraction(1) if exponent == 0 else _inexact_power(_context.e, exponent)


def _logarithm(argument: Value) -> Value:
    if argument == 0:
        raise Unclear("the logarithm of zero")
    if argument == 1:
        return Fraction()
    value = _context.log(_inexact(argument))
    if abs(value) < 1e-40:
        raise Unclear("a value that rounding may have made")
    return value


def _logarithm_to_base(argument: Value, base: Value = None) -> Value:
    """Without a base, of which there are two in use, it is one of its own."""
    unknown = _inexact(_positive(0, "base")) if base is None else base
    return _divide(_logarithm(argument), _logarithm(unknown))


def _factorial(argument: Value) -> Value:
    if isinstance(argument, Fraction) and argument.denominator == 1:
        if not 0 <= argument <= _MAX_INTEGER:
            raise Unclear("too large a factorial, or none")
        return Fraction(math.factorial(int(argument)))
    if abs(argument) > 50:
        raise Unclear("too large a factorial")
    return _context.gamma(_inexact(argument) + 1)


def _binomial(n: Value, k: Value) -> Value:
    if isinstance(k, Fraction) and k.denominator == 1 and isinstance(n, Fraction):
        whole = n.denominator == 1
        if k < 0 or k > (_MAX_INTEGER if whole else 20) or abs(n) > 10 * _MAX_INTEGER:
            raise Unclear("too large a binomial, or none")
        if whole and n >= 0:
            return Fraction(math.comb(int(n), int(k)))
        return math.prod((n - j) / (j + 1) for j in range(int(k))) + Fraction()
    if max(abs(n), abs(k)) > 50:
        raise Unclear("too large a binomial")
    return _context.binomial(_inexact(n), _inexact(k))


def _absolute(argument: Value) -> Value:
    return abs(argument)


def _whole(rounding: Callable[[Value], int], argument: Value) -> Value:
    if isinstance(argument, _context.mpc):
        raise Unclear("no whole part of a complex number")
    if not isinstance(argument, Fraction):
        if abs(argument) > 1e40 or abs(argument - _context.nint(argument)) < 1e-20:
            raise Unclear("a whole part that rounding may have made")
        return Fraction(int(rounding(argument)))
    return Fraction(math.floor(argument) if rounding == _context.floor else math.ceil(argument))


OPERATIONS: dict[str, Callable[..., Value]] = {
    "+": _add,
    "*": _multiply,
    "/": _divide,
    "^": _raise,
    "root": _root,
    "!": _factorial,
    "binom": _binomial,
    "abs": _absolute,
    "floor": partial(_whole, _context.floor),
    "ceil": partial(_whole, _context.ceil),
    "exp": _exponential,
    "ln": _logarithm,
    "lg": lambda argument: _logarithm_to_base(argument, Fraction(10)),
    "log": _logarithm_to_base,
    "e": lambda: +_context.e,
    "pi": lambda: +_context.pi,
}
for _name in (*_AT_ZERO, "cot", "sec", "csc", "arccos"):
    OPERATIONS[_name] = partial(_function, _name)
