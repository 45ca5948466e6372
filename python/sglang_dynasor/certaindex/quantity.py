"""Quantities: a constant with a unit or a currency."""

from __future__ import annotations

import re

from sglang_dynasor.certaindex.evaluation import values, written
from sglang_dynasor.certaindex.formula import WORD_FUNCTIONS, Unclear, symbols
from sglang_dynasor.certaindex.numbers import exact_number
from sglang_dynasor.certaindex.parser import parse_formula

_CURRENCY = re.compile(r"(-?)([€£¥₹]) ?(.+)|(.+?) ?([€£¥₹])")
_WORD = re.compile(r"(?<![\\A-Za-z_{])[A-Za-z]{2,}")
_UNIT = re.compile(r"[A-Za-z](?:[A-Za-z0-9 .,/^*()°-]|\\cdot ?)*")
_UNIT_EXPONENT = re.compile(r"\^ ?\{ ?(-?[0-9]) ?\}")


def quantity(text: str) -> str:
    """Return the text of a constant with a unit, which is compared as text. Raises Unclear."""
    currency = _CURRENCY.fullmatch(text)
    if currency is not None:
        sign, before, amount, number, behind = currency.groups(default="")
        exact = exact_number(sign + (amount or number))
        if exact is None:
            raise Unclear("no amount of money")
        return f"{written(exact)} {before or behind}"
    for word in _WORD.finditer(text):
        if word[0] in WORD_FUNCTIONS:
            continue
        number, unit = text[: word.start()].strip(), text[word.start() :]
        unit = _UNIT_EXPONENT.sub(r"^\1", unit)
        exact = exact_number(number)
        formula = parse_formula(number) if exact is None else exact
        if symbols(formula) or not _UNIT.fullmatch(unit):
            raise Unclear("no unit behind a constant")
        return f"{written(*values(formula))} {unit}"
    raise Unclear("neither formula nor quantity")
