r"""What a whole answer says: a value, or a list, tuple, set, interval, matrix, equation of values.

A structure equals only the same structure, but for these: an open interval is written like a pair,
and an inequality of one symbol is the interval it describes. A list without brackets ("2, 3",
"2 and 3", "2 or 3", `\pm 2`) has no order, yet is no set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sglang_dynasor.certaindex.brackets import closes_last, split
from sglang_dynasor.certaindex.evaluation import text_of, written
from sglang_dynasor.certaindex.formula import Symbol, Unclear, symbols
from sglang_dynasor.certaindex.numbers import exact_number
from sglang_dynasor.certaindex.parser import parse_formula
from sglang_dynasor.certaindex.quantity import quantity
from sglang_dynasor.certaindex.relation import Side, all_but, infinity, related

_MAX_DEPTH = 4
_SEPARATOR = re.compile(r" ?[,;]? ?(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]) ?| ?[,;] ?")
_COMMA = re.compile(" ?[,;] ?")
_RELATION = re.compile(r" ?(\\(?:le|ge|ne)(?![A-Za-z])|[=<>]) ?")
_UNION = re.compile(r" ?\\cup(?![A-Za-z]) ?")
_MEMBER = re.compile(r" ?\\in(?![A-Za-z]) ?")
_COLON = re.compile(" ?: ?")
_ROW = re.compile(r" ?\\\\ ?")
_COLUMN = re.compile(" ?& ?")
_BRACKETS = re.compile(r"(\\\{|[\[({])(.*?)(\\\}|[\])}])", re.DOTALL)
_MATRIX = re.compile(r"\\begin ?\{([bp]?matrix)\}(.*)\\end ?\{\1\}")
_BASED = re.compile(r"\(?([0-9]+)\)? ?_ ?(?:\{ ?([0-9]{1,2}) ?\}|([0-9]))")
_EITHER_SIGN = re.compile(r"\\(pm|mp)(?![A-Za-z]) ?")
_NAMES = re.compile(r"[A-Za-z]'?\([A-Za-z]\)|\([A-Za-z](?:,[A-Za-z])+\)")
_REAL = re.compile(r"\\mathbb\{R\}(?: ?(?:\\setminus|\\backslash|-) ?\\?\{ ?(.+?) ?\\?\})?")
_BUILDER = re.compile(
    r"\\?\{ ?([A-Za-z]) ?(?:\\in ?\\mathbb\{R\})? ?(?:\||:|\\mid(?![A-Za-z])) ?(.+?) ?\\?\}"
)
_THOUSANDS = re.compile(r"[0-9],[0-9]{3}(?![0-9])")
_LEADING_ZERO = re.compile(r"(?<![0-9.])0[0-9]")
# 2 \times 3 may be a size, 3-5 a range, 1/2/20 a date.
_NO_ARITHMETIC = re.compile(r"[0-9.]+(?:(?: ?\\times ?[0-9.]+)+|(?:-[0-9.]+)+|(?:/[0-9.]+){2,})")
# One digit must come three times, two digits as well, before it is clear what repeats.
_REPEATING = re.compile(
    r"(?P<sign>-?)(?P<start>(?:0|[1-9][0-9]*)\.[0-9]*?)"
    r"(?:(?P<one>[0-9])(?P=one){2,}|(?P<two>[0-9]{2})(?P=two){2,}|(?P<more>[0-9]{3,}?)(?P=more)+)"
    r" ?\\ldots"
)


@dataclass(frozen=True, slots=True)
class Meaning:
    """`text` is equal for what is equal; `name` is the one unknown it is about, else None.

    `items` are the texts of a list's values, else the text. `is_range` tells intervals of an
    unknown, of which several are no list.
    """

    text: str
    name: str | None = None
    items: tuple[str, ...] = ()
    is_range: bool = False


def meaning(text: str) -> Meaning:
    """Return what an answer, spelled as `canonical_key` does, says. Raises Unclear."""
    number = exact_number(text.removesuffix("%"))
    if number is not None:
        return _single(written(number) + "%" * text.endswith("%"))
    if len(split(_THOUSANDS, text)[0]) > 1:
        return _with_thousands(text)
    builder = _BUILDER.fullmatch(text)
    if builder is not None:
        return _built(*builder.groups())
    parts, separators = split(_SEPARATOR, text)
    if len(parts) > 1 and _is_sequence(parts):
        raise Unclear("letters that may be in order")
    statements = [_statement(part) for part in parts]
    return statements[0] if len(statements) == 1 else _joined(statements, separators)


def _is_sequence(parts: list[str]) -> bool:
    """Say whether letters may be in order, as true and false and the tosses of a coin are."""
    letters = set(parts)
    if not all(len(letter) == 1 and letter.isalpha() for letter in letters):
        return False
    return letters <= set("FHT") or len(letters) < len(parts)


def _built(name: str, condition: str) -> Meaning:
    found = meaning(condition)
    if not found.is_range or found.name != name:
        raise Unclear("a set whose condition is no range of its unknown")
    return found


def _single(text: str, name: str | None = None) -> Meaning:
    return Meaning(text, name, (text,))


def _many(kind: str, texts: Iterable[str]) -> str:
    return f"{kind}{{{'|'.join(sorted(texts))}}}"


def _list(items: Iterable[str], name: str | None = None) -> Meaning:
    items = tuple(items)
    return Meaning(_many("list", items), name, items)


def _with_thousands(text: str) -> Meaning:
    """A comma before three digits may separate thousands or values, but for one number alone."""
    left, equals, right = text.partition("=")
    number = exact_number(right.strip())
    name = _name(left.strip()) if equals else None
    if name is None or number is None:
        return _single(quantity(text))
    return _single(written(number), name)


def _joined(statements: list[Meaning], separators: list[str]) -> Meaning:
    words = [separator.strip(",; ") for separator in separators]
    alternatives = "or" in words
    if len(set(words[:-1])) > 1 or (words[0] and words[0] != words[-1]):
        raise Unclear("1, 2 or 3, 4 may be pairs")
    names = [statement.name for statement in statements]
    ranges = [statement.is_range for statement in statements]
    items = [item for statement in statements for item in statement.items]
    if None not in names and len(set(names)) == len(names) and not alternatives:
        return Meaning(_many("assignments", (f"{s.name}={s.text}" for s in statements)))
    if all(ranges) and None not in names and len(set(names)) == 1 and alternatives:
        return Meaning(_many("union", items), names[0], tuple(items), True)
    if any(ranges) or len(set(names) - {None}) > 1:
        raise Unclear("unknowns that may be related in more than one way")
    if alternatives and None in names and any("&" in item for item in items):
        raise Unclear("p or q may be a statement")
    if len(set(names[1:])) > 1 or names[1] not in (None, names[0]):
        raise Unclear("some values have names, others have not")
    return _list(items, names[0])


def _statement(text: str) -> Meaning:
    parts, _ = split(_MEMBER, text)
    if len(parts) == 2:
        name, where = _name(parts[0]), _value(parts[1])
        if name is None or where.text[0].isdigit():
            raise Unclear("no member of a set")
        return replace(where, name=name, is_range=True)
    parts, relations = split(_RELATION, text)
    if len(parts) == 1:
        return _value(text)
    sides = [Side(part, _name(part)) for part in parts]
    if set(relations) == {"="}:
        return _equation(sides)
    ranges, name = related(sides, relations)
    return Meaning(ranges[0] if len(ranges) == 1 else _many("union", ranges), name, ranges, True)


def _equation(sides: list[Side]) -> Meaning:
    if len(sides) > 2:
        if sides[0].name is None:
            raise Unclear("a chain of equations")
        found = {_equation([sides[0], side]) for side in sides[1:]}
        if len(found) > 1:
            raise Unclear("a chain of unequal sides")
        return found.pop()
    for side, other in (sides, sides[::-1]):
        if side.name is not None and side.name not in _symbols(other.text):
            return replace(_value(other.text), name=side.name)
    ranges, name = related(sides, ["="])
    return _single(ranges[0], name)


def _symbols(text: str) -> frozenset[str]:
    try:
        return symbols(parse_formula(text))
    except Unclear:
        return frozenset(re.findall("[A-Za-z]", text))


def _name(text: str) -> str | None:
    """Return the unknown that `text` alone names: x, f(x) or (x,y)."""
    compact = text.replace(" ", "")
    if _NAMES.fullmatch(compact):
        return compact
    try:
        formula = parse_formula(text)
    except Unclear:
        return None
    return formula.name if isinstance(formula, Symbol) else None


def _value(text: str, depth: int = 0) -> Meaning:
    if depth > _MAX_DEPTH or not text:
        raise Unclear("nested too deeply, or nothing")
    parts, _ = split(_UNION, text)
    if len(parts) > 1:
        intervals = tuple(_value(part, depth + 1).text for part in parts)
        if any(interval[0].isdigit() for interval in intervals):
            raise Unclear("a union of what is no set")
        return Meaning(_many("union", intervals), None, intervals)
    bracketed = _bracketed(text, depth)
    if bracketed is not None:
        return _single(bracketed)
    if _EITHER_SIGN.search(text):
        return _of_either_sign(text, depth)
    parts, _ = split(_COLON, text)
    if len(parts) > 1:
        return _single(":".join(_value(part, depth + 1).text for part in parts))
    return _single(_special(text) or _number(text))


def _of_either_sign(text: str, depth: int) -> Meaning:
    if len(_EITHER_SIGN.findall(text)) > 1:
        raise Unclear("signs that may go together or not")
    return _list(
        _value(_EITHER_SIGN.sub(sign, text).removeprefix("+"), depth + 1).text for sign in "+-"
    )


def _bracketed(text: str, depth: int) -> str | None:
    """Return the text of a tuple, interval, set or matrix, or None where it is none."""
    matrix = _MATRIX.fullmatch(text)
    if matrix is not None:
        rows = [
            _texts(_COLUMN, row, depth)
            for row in split(_ROW, matrix[2].strip().removesuffix(r"\\"))[0]
        ]
        return "matrix[" + "|".join(map(";".join, rows)) + "]"
    match = _BRACKETS.fullmatch(text)
    if match is None or not closes_last(text):
        return None
    opening, inside, closing = match.groups()
    is_set = (opening, closing) in ((r"\{", r"\}"), ("{", "}"))
    if is_set and not inside.strip():
        return "set{}"
    if len(split(_COMMA, inside)[0]) == 1 and opening != r"\{":
        return None
    if _THOUSANDS.search(inside) and inside.count(",") > 1:
        raise Unclear("commas that may separate thousands or values")
    if is_set:
        members = (_value(part, depth + 1) for part in split(_COMMA, inside)[0])
        return _many("set", {item for member in members for item in member.items})
    if opening not in "([" or closing not in ")]":
        raise Unclear("brackets that do not match")
    return opening + ";".join(_texts(_COMMA, inside, depth)) + closing


def _texts(separator: re.Pattern[str], text: str, depth: int) -> list[str]:
    return [_value(part, depth + 1).text for part in split(separator, text)[0]]


def _special(text: str) -> str:
    if text == r"\emptyset":
        return "set{}"
    real = _REAL.fullmatch(text)
    if real is not None:
        return _many("union", all_but(real[1])) if real[1] else "(-inf;inf)"
    based = _BASED.fullmatch(text)
    if based is not None:
        digits, base = based[1], int(based[2] or based[3])
        if not 2 <= base <= 36 or max(map(int, digits)) >= base:
            raise Unclear("digits that the base does not have")
        return f"{digits.lstrip('0') or '0'}_{base}"
    return infinity(text)


def _number(text: str) -> str:
    if _LEADING_ZERO.search(text) or _NO_ARITHMETIC.fullmatch(text):
        raise Unclear("no plain number")
    if text.endswith("%") and not any(sign in text[1:] for sign in "+-"):
        return _number(text[:-1].strip()) + "%"
    number = exact_number(text)
    repeating = _REPEATING.fullmatch(text)
    if repeating is not None:
        period = repeating["one"] or repeating["two"] or repeating["more"]
        number = exact_number(f"{repeating['sign']}{repeating['start']}\\overline{{{period}}}")
    if number is not None:
        return written(number)
    try:
        return text_of(parse_formula(text))
    except Unclear:
        return quantity(text)
