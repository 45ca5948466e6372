"""Equations and inequalities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from sglang_dynasor.certaindex.evaluation import direction, ratios, values, written
from sglang_dynasor.certaindex.formula import IMAGINARY_UNIT, Call, Formula, Unclear, symbols
from sglang_dynasor.certaindex.parser import parse_formula

_INFINITY = re.compile(r"([-+]?) ?\\infty")
_MIRRORED = {">": "<", r"\ge": r"\le"}


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a relation; `name` is the unknown where that is all it says."""

    text: str
    name: str | None


def related(sides: Sequence[Side], relations: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    r"""Return the texts of the intervals that an unknown is in, and its name.

    What is no range of one unknown (x^2 + y^2 = 1, y < 2x) has one text and no name: the
    difference of its sides but for a constant factor. `relations` are =, <, >, \le, \ge, \ne.
    Raises Unclear.
    """
    if all(relation in _MIRRORED for relation in relations):
        sides, relations = sides[::-1], [_MIRRORED[relation] for relation in relations[::-1]]
    if any(relation in _MIRRORED for relation in relations) or len(sides) > 3:
        raise Unclear("a chain of different directions")
    if len(sides) == 3:
        return _between(sides, relations)
    (left, right), relation = sides, relations[0]
    if relation != "=" and right.name is not None and _is_bound(left.text):
        if relation == r"\ne":
            left, right = right, left
        else:
            return (_interval(left.text, relation, "inf"),), right.name
    if relation != "=" and left.name is not None and _is_bound(right.text):
        if relation == r"\ne":
            bound = _bound(right.text)
            return (f"(-inf;{bound})", f"({bound};inf)"), left.name
        closing = "]" if relation == r"\le" else ")"
        return (f"(-inf;{_bound(right.text)}{closing}",), left.name
    return (_difference(left.text, relation, right.text),), None


def _between(sides: Sequence[Side], relations: Sequence[str]) -> tuple[tuple[str, ...], str]:
    low, middle, high = sides
    if middle.name is None or not (_is_bound(low.text) and _is_bound(high.text)):
        raise Unclear("no unknown between two constants")
    if "=" in relations or r"\ne" in relations:
        raise Unclear("a chain of different relations")
    end = _bound(high.text) + ("]" if relations[1] == r"\le" else ")")
    return (_interval(low.text, relations[0], end[:-1])[:-1] + end[-1],), middle.name


def _interval(low: str, relation: str, high: str) -> str:
    opening = "[" if relation == r"\le" else "("
    return f"{opening}{_bound(low)};{high})"


def _is_bound(text: str) -> bool:
    return bool(_INFINITY.fullmatch(text)) or not symbols(parse_formula(text))


def _bound(text: str) -> str:
    infinity = _INFINITY.fullmatch(text)
    if infinity is not None:
        return "-inf" if infinity[1] == "-" else "inf"
    return written(*values(parse_formula(text)))


def _difference(left: str, relation: str, right: str) -> str:
    minus: Formula = Call("*", (Fraction(-1), parse_formula(left)))
    difference = Call("+", (parse_formula(right), minus))
    if not symbols(difference) - {IMAGINARY_UNIT.name}:
        raise Unclear("a relation of constants")
    sign = "" if relation in ("=", r"\ne") else direction(difference)
    return f"{relation}{sign}{'&'.join(map(written, ratios(difference)))}"
