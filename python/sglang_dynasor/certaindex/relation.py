"""Equations and inequalities."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from sglang_dynasor.certaindex.evaluation import direction, ratios, text_of, values, written
from sglang_dynasor.certaindex.formula import (
    IMAGINARY_UNIT,
    Call,
    Formula,
    Symbol,
    Unclear,
    symbols,
)
from sglang_dynasor.certaindex.parser import parse_formula

_INFINITY = re.compile(r"([-+]?) ?\\infty")
_RISING = ("<", r"\le")
_MIRRORED = {">": "<", r"\ge": r"\le"}


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a relation; `name` is the unknown where that is all it says."""

    text: str
    name: str | None


def related(sides: Sequence[Side], relations: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    r"""Return the texts of the intervals that an unknown is in, and its name.

    A line (2x + y = 1) is its y. What else is no range of one unknown (x^2 + y^2 = 1, y < 2x) has
    one text and no name: the difference of its sides but for a constant factor. `relations` are
    =, <, >, \le, \ge, \ne. Raises Unclear.
    """
    if all(relation in _MIRRORED for relation in relations):
        sides, relations = sides[::-1], [_MIRRORED[relation] for relation in relations[::-1]]
    if len(sides) == 3 and all(relation in _RISING for relation in relations):
        low, middle, high = sides
        if middle.name is None:
            raise Unclear("no unknown between two bounds")
        return (_range(_bound(low), relations[0], relations[1], _bound(high)),), middle.name
    if len(sides) > 2 or relations[0] in _MIRRORED:
        raise Unclear("a chain of different relations")
    (left, right), relation = sides, relations[0]
    if relation in _RISING and right.name is not None and _is_bound(left):
        return (_range(_bound(left), relation, "<", "inf"),), right.name
    if relation in _RISING and left.name is not None and _is_bound(right):
        return (_range("-inf", "<", relation, _bound(right)),), left.name
    if relation == r"\ne" and left.name is not None and _is_bound(right):
        return all_but(right.text), left.name
    line = _line(left.text, right.text) if relation == "=" else None
    if line is not None:
        return (text_of(line),), "y"
    return (_difference(left.text, relation, right.text),), None


def all_but(point: str) -> tuple[str, str]:
    """Return the texts of the intervals of all real numbers but one. Raises Unclear."""
    hole = _bound(Side(point, None))
    return _range("-inf", "<", "<", hole), _range(hole, "<", "<", "inf")


def infinity(text: str) -> str:
    """Return the text of an infinite bound, or "" where `text` is none."""
    match = _INFINITY.fullmatch(text)
    if match is None:
        return ""
    return "-inf" if match[1] == "-" else "inf"


def _range(low: str, above: str, below: str, high: str) -> str:
    return f"{'(['[above != '<']}{low};{high}{')]'[below != '<']}"


def _is_bound(side: Side) -> bool:
    return bool(infinity(side.text)) or not symbols(parse_formula(side.text))


def _bound(side: Side) -> str:
    if not _is_bound(side):
        raise Unclear("a bound that is no constant")
    return infinity(side.text) or written(*values(parse_formula(side.text)))


def _line(left: str, right: str) -> Formula | None:
    """Return the y of a line, None where the equation is none."""
    difference = _minus(parse_formula(left), parse_formula(right))
    if symbols(difference) != {"x", "y"} or _degree(difference) > 1:
        return None
    at_0, at_1 = (_at(Fraction(y), difference) for y in range(2))
    return Call("/", (at_0, _minus(at_0, at_1)))


def _minus(one: Formula, other: Formula) -> Formula:
    return Call("+", (one, Call("*", (Fraction(-1), other))))


def _degree(formula: Formula) -> float:
    if not symbols(formula):
        return 0
    if not isinstance(formula, Call):
        return 1
    degrees = list(map(_degree, formula.arguments))
    if formula.name == "/" and degrees[1] == 0:
        return degrees[0]
    if formula.name == "+":
        return max(degrees)
    return sum(degrees) if formula.name == "*" else math.inf


def _at(y: Fraction, formula: Formula) -> Formula:
    if isinstance(formula, Call):
        return Call(formula.name, tuple(_at(y, argument) for argument in formula.arguments))
    return y if formula == Symbol("y") else formula


def _difference(left: str, relation: str, right: str) -> str:
    difference = _minus(parse_formula(right), parse_formula(left))
    if not symbols(difference) - {IMAGINARY_UNIT.name}:
        raise Unclear("a relation of constants")
    sign = direction(difference) if relation in _RISING else ""
    return f"{relation}{sign}{'&'.join(map(written, ratios(difference)))}"
