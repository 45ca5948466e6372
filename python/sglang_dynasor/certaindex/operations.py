"""Arithmetic that is exact on rational numbers and refuses what rounding could decide.

Numbers are Fractions, or mpf and mpc of mpmath with 220 digits, of which 150 are compared. Each
operation raises Unclear where digits that are compared could be lost: 1 + 10^-200 sqrt(2) is never
1. So an error of rounding can only set equal values apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import mpmath  # type: ignore[import-untyped]

from sglang_dynasor.certaindex.formula import Unclear

DIGITS = 150  # that are compared
_MAX_EXACT_BITS = 14_000  # Python writes no more than 4,300 digits
# Two rationals of this height differ within the digits compared.
_MAX_HEIGHT = 10**74
_MAX_INTEGER = 1500  # of which the factorial is taken
_NEGLIGIBLE = 1e-60  # a term of a sum that is smaller than this part of it
_CANCELLED = 1e-30  # a sum that is smaller than this part of its terms
_MAX_EXPONENT = 1e5  # of e, in magnitude

context = mpmath.MPContext()
context.dps = DIGITS + 70

# Fraction, or mpf and mpc of mpmath, which has no types.
Value = Any


def apply(name: str, arguments: list[Value]) -> Value:
    """Return the value of the operation `name` of OPERATIONS. Raises Unclear."""
    try:
        value = _OPERATIONS[name](*arguments)
    except (ArithmeticError, ValueError) as error:  # a pole, or what mpmath can't represent
        raise Unclear(str(error)) from error
    if not isinstance(value, Fraction):
        return _without_noise(value)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_EXACT_BITS:
        raise Unclear("too large a number")
    return value


def _without_noise(value: Value) -> Value:
    if not context.isfinite(value):
        raise Unclear("no finite value")
    if isinstance(value, context.mpc):
        noise = abs(value) * context.mpf(10) ** (-DIGITS - 30)
        if abs(value.imag) <= noise:
            return value.real
        if abs(value.real) <= noise:
            return context.mpc(0, value.imag)
    return value


def is_low(value: Fraction) -> bool:
    """Say whether the digits compared tell the number from all others of its kind."""
    return abs(value.numerator) <= _MAX_HEIGHT and value.denominator <= _MAX_HEIGHT


def inexact(value: Value) -> Value:
    """Return a number of mpmath."""
    if not isinstance(value, Fraction):
        return value
    if not is_low(value):
        raise Unclear("a number with more digits than are compared")
    return context.mpf(value.numerator) / value.denominator


def _is_exact(*values: Value) -> bool:
    return all(isinstance(value, Fraction) for value in values)


def _add(*terms: Value) -> Value:
    if _is_exact(*terms):
        return sum(terms, Fraction())
    exact = sum((term for term in terms if isinstance(term, Fraction)), Fraction())
    numbers = [inexact(term) for term in terms if not isinstance(term, Fraction)]
    if exact:
        numbers.append(inexact(exact))
    total, largest = context.fsum(numbers), max(map(abs, numbers))
    if abs(total) < largest * _CANCELLED:
        raise Unclear("a sum that may be zero")
    if min(map(abs, numbers)) < largest * _NEGLIGIBLE:
        raise Unclear("a term that may vanish in its sum")
    return total


def _multiply(first: Value, second: Value) -> Value:
    if _is_exact(first, second) or 0 in (first, second):
        return Fraction(first * second) if _is_exact(first, second) else Fraction()
    return inexact(first) * inexact(second)


def divide(first: Value, second: Value) -> Value:
    """Return the quotient. Raises Unclear."""
    if second == 0:
        raise Unclear("a division by zero")
    if _is_exact(first, second) or first == 0:
        return first / second if first else Fraction()
    return inexact(first) / inexact(second)


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
    number, power = inexact(base), inexact(exponent)
    if abs(power) * (abs(context.log(number)) + 1) > _MAX_EXPONENT:
        raise Unclear("too large a power")
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        return number ** int(exponent)
    return number**power


def has_real_root(base: Value, exponent: Value) -> bool:
    """Say whether a power may have a real value apart from its principal one."""
    negative = isinstance(base, Fraction | context.mpf) and base < 0
    return negative and not (isinstance(exponent, Fraction) and exponent.denominator <= 2)


def _exact_root(base: Fraction, index: int) -> Fraction | None:
    if base < 0 or index > 64 or not is_low(base):
        return None
    top, bottom = (round(part ** (1 / index)) for part in base.as_integer_ratio())
    root = Fraction(top, bottom)
    return root if root**index == base else None


def _root(radicand: Value, index: Value) -> Value:
    if index == 0:
        raise Unclear("a root without an index")
    if not isinstance(index, Fraction):
        return _raise(radicand, 1 / inexact(index))
    if isinstance(radicand, Fraction | context.mpf) and radicand < 0 and index != 2:
        if index.denominator > 1 or index % 2 == 0:
            raise Unclear("no real root of a negative number")
        return -_raise(-radicand, 1 / index)
    return _raise(radicand, 1 / index)


_AT_ZERO = {"sin": 0, "tan": 0, "arcsin": 0, "arctan": 0, "sinh": 0, "tanh": 0, "cos": 1, "cosh": 1}
_INVERSE = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}


def _function(name: str, argument: Value) -> Value:
    if argument == 0 and name in _AT_ZERO:
        return Fraction(_AT_ZERO[name])
    if argument == 0 and name != "arccos":
        raise Unclear("no value at zero")
    number = inexact(argument)
    limit = 100 if name.endswith("h") else 1e20
    if number != 0 and not 1e-20 < abs(number) < limit:
        raise Unclear("an argument whose digits a function would lose")
    value = getattr(context, _INVERSE.get(name, name))(number)
    if not 1e-40 < abs(value) < (1e100 if name.endswith("h") else 1e40):
        raise Unclear("a value that rounding may have made")
    return value


def _exponential(exponent: Value) -> Value:
    return Fraction(1) if exponent == 0 else _inexact_power(context.e, exponent)


def _logarithm(argument: Value) -> Value:
    if argument == 0:
        raise Unclear("the logarithm of zero")
    if argument == 1:
        return Fraction()
    value = context.log(inexact(argument))
    if abs(value) < 1e-40:
        raise Unclear("a value that rounding may have made")
    return value


def _logarithm_to_base(argument: Value, base: Value) -> Value:
    return divide(_logarithm(argument), _logarithm(base))


def _factorial(argument: Value) -> Value:
    if isinstance(argument, Fraction) and argument.denominator == 1:
        if not 0 <= argument <= _MAX_INTEGER:
            raise Unclear("too large a factorial, or none")
        return Fraction(math.factorial(int(argument)))
    if abs(argument) > 50:
        raise Unclear("too large a factorial")
    return context.gamma(inexact(argument) + 1)


def _binomial(n: Value, k: Value) -> Value:
    if isinstance(k, Fraction) and k.denominator == 1 and isinstance(n, Fraction):
        whole = n.denominator == 1
        if k < 0 or k > (_MAX_INTEGER if whole else 20) or abs(n) > 10 * _MAX_INTEGER:
            raise Unclear("too large a binomial, or none")
        if whole and n >= 0:
            return Fraction(math.comb(int(n), int(k)))
        return math.prod((n - j) / (j + 1) for j in range(int(k))) + Fraction()
    if abs(n) > 50 or abs(k) > 50:
        raise Unclear("too large a binomial")
    return context.binomial(inexact(n), inexact(k))


def _whole(rounding: Callable[[Value], int], argument: Value) -> Value:
    if isinstance(argument, context.mpc):
        raise Unclear("no whole part of a complex number")
    if not isinstance(argument, Fraction):
        if abs(argument) > 1e40 or abs(argument - context.nint(argument)) < 1e-20:
            raise Unclear("a whole part that rounding may have made")
        return Fraction(int(rounding(argument)))
    return Fraction(math.floor(argument) if rounding == context.floor else math.ceil(argument))


_OPERATIONS: dict[str, Callable[..., Value]] = {
    "+": _add,
    "*": _multiply,
    "/": divide,
    "^": _raise,
    "root": _root,
    "!": _factorial,
    "binom": _binomial,
    "abs": abs,
    "floor": partial(_whole, context.floor),
    "ceil": partial(_whole, context.ceil),
    "exp": _exponential,
    "ln": _logarithm,
    "log": _logarithm_to_base,
    "e": lambda: +context.e,
    "pi": lambda: +context.pi,
}
for _name in (*_AT_ZERO, "cot", "sec", "csc", "arccos"):
    _OPERATIONS[_name] = partial(_function, _name)
