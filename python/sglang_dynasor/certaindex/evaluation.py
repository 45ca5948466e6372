"""Values of formulas at fixed points: equal text means equal formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from hashlib import blake2b

from sglang_dynasor.certaindex.formula import (
    IMAGINARY_UNIT,
    Call,
    Formula,
    Symbol,
    Unclear,
    symbols,
)
from sglang_dynasor.certaindex.operations import (
    DIGITS,
    Value,
    apply,
    context,
    divide,
    has_real_root,
    inexact,
    is_low,
)


def values(formula: Formula) -> tuple[Value, ...]:
    """Return the value of a constant, or a formula's values at three positive points and at one
    complex one, which is None where the formula has no value there. Raises Unclear."""
    names = symbols(formula)
    if not names or names == {IMAGINARY_UNIT.name}:
        return (_value(formula, lambda _: context.j, True),)
    real = tuple(_value(formula, partial(_positive, seed)) for seed in range(3))
    try:
        return (*real, _value(formula, _complex))
    except Unclear:
        return (*real, None)


def ratios(formula: Formula) -> tuple[Value, ...]:
    """Return what `values` are alike for all multiples of a formula with symbols."""
    first, *others = values(formula)
    return tuple(None if other is None else divide(other, first) for other in others)


def direction(formula: Formula) -> str:
    """Return the sign of a formula with symbols at the point that `ratios` divide by."""
    first = values(formula)[0]
    if isinstance(first, context.mpc):
        raise Unclear("no order of complex numbers")
    return "-" if first < 0 else "+"


def text_of(formula: Formula) -> str:
    """Return the same text for equal formulas, that of its value for a constant. Raises Unclear."""
    texts = list(map(written, values(formula)))
    return texts[0] if len(set(texts)) == 1 else "&".join(texts)


def written(value: Value) -> str:
    """Return the text of a value: the same text for values equal within the digits compared."""
    if value is None or value == 0:
        return "?" if value is None else "0"
    if isinstance(value, Fraction) and not is_low(value):
        return str(value)
    number = context.mpmathify(inexact(value))
    # A power of ten has one exponent, whichever side rounding leaves it on.
    exponent = math.floor(float(context.log(abs(number), 10)) + 1e-9)
    scale = context.mpf(10) ** (DIGITS - exponent)
    parts = (int(context.nint(part * scale)) for part in (number.real, number.imag))
    return ",".join(map(str, (*parts, exponent)))


def _positive(seed: int, name: str) -> Fraction:
    digest = blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return Fraction(200 + int.from_bytes(digest) % 3800, 1009)


def _complex(name: str) -> Value:
    """Left of the imaginary axis, where a root of a square is not its base."""
    return context.mpc(inexact(-_positive(3, name)), inexact(_positive(4, name)))


def _value(formula: Formula, point: Callable[[str], Value], constant: bool = False) -> Value:
    known: dict[Formula, Value] = {}

    def value(part: Formula) -> Value:
        if isinstance(part, Fraction):
            return part
        if part not in known:
            known[part] = point(part.name) if isinstance(part, Symbol) else operation(part)
        return known[part]

    def operation(call: Call) -> Value:
        arguments = [value(argument) for argument in call.arguments]
        if constant and call.name == "^" and has_real_root(*arguments):
            raise Unclear("(-8)^{1/3} has a real and a principal value")
        return apply(call.name, arguments)

    return value(formula)
