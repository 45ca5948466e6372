"""Numbers as people and models write them, read exactly."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

MAX_NUMBER_LENGTH = 64  # characters

# Powers grow fast: what has more digits than this is left to algebra.
_MAX_DIGITS = 300

_ASCII_OF = {
    "\u2212\u2013\u2012\u2011\ufe63\uff0d": "-",
    "\uff0b": "+",
    "\u00a0\u2007\u2009\u202f\u3000": " ",
    "\u2019\u02bc": "'",
    "\u2044\u2215\uff0f": "/",
    "\uff0e": ".",
    "\uff0c": ",",
    "\uff05": "%",
    "\uff04": "$",
}
_PLAIN = {ord(char): plain for chars, plain in _ASCII_OF.items() for char in chars}
# Full-width, Arabic, Persian and Devanagari digits.
_PLAIN |= {ord(zero) + n: str(n) for zero in "\uff10\u0660\u06f0\u0966" for n in range(10)}

_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207a"
_FROM_SUPERSCRIPT = str.maketrans(_SUPERSCRIPTS, "0123456789-+")

_COMMA = r"(?:,|\{,\})(?:\\!)?"
_BLANK = r"(?: |~|\\[ ,:;])"
_TEX_BLANK = r"(?: |~|\\[ ,:;!])"
_TEX_BLANKS = rf"{_TEX_BLANK}{{0,3}}"


def _grouped(separator: str) -> str:
    return rf"[1-9][0-9]{{0,2}}(?:{separator}[0-9]{{3}}){{1,20}}(?![0-9])"


_INDIAN = rf"[1-9][0-9]?(?:{_COMMA}[0-9]{{2}}){{1,20}}{_COMMA}[0-9]{{3}}(?![0-9])"
_BY_COMMA = rf"(?:{_grouped(_COMMA)}|{_INDIAN}|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_DECIMAL = (
    rf"(?:(?<![0-9] ){_grouped(_BLANK)}(?:\.[0-9]+)?|{_grouped(chr(39))}(?:\.[0-9]+)?|{_BY_COMMA})"
)
_COMMA_DECIMAL = (
    rf"[1-9][0-9]{{0,2}}(?:(?:\.[0-9]{{3}}){{1,20}}|(?:{_BLANK}[0-9]{{3}}){{1,20}}"
    r"|(?:'[0-9]{3}){1,20}),[0-9]+"
    r"|[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,20}(?![0-9])"
    r"|(?:0+\{,\}|[0-9]+\{,\}(?![0-9]{3}(?![0-9])))[0-9]+"
)
_EXPONENT = (
    r"(?: ?\^ ?(?:\{ ?[-+]?[0-9]{1,3} ?\}|[-+]?[0-9]{1,3}(?![0-9]))"
    rf"|[{_SUPERSCRIPTS}]{{1,4}})"
)
_TIMES = r" ?(?:\\times|\\cdot|[\u00d7\u00b7\u22c5*xX])(?:\{\})? ?"
_VULGAR = "[\u00bc-\u00be\u2150-\u215e]"
_TEX_PART = rf" ?(?:\{{ ?([-+]?(?:{_BY_COMMA})) ?\}}|([0-9]))"
_TEX_FRACTION = rf"\\[dtc]?frac{_TEX_PART}{_TEX_PART}"
_SLASH_FRACTION = r"([0-9]+) ?/ ?([0-9]+)"

_Match = re.Match[str]


def exact_number(text: str) -> Fraction | None:
    r"""Return the exact rational that the whole of `text` writes, or None where it writes none.

    Read are decimals (`.5`, `1.6e-19`), thousands set apart by `,` `{,}` `,\!` `\,` `'` or a blank
    (`12{,}345`, `1 000 000`; `2,50,000` as in India), powers (`2^{10}`, `3 \times 10^8`),
    fractions (`1/2`, `\frac34`), mixed numbers (`5 1/2`, a whole number before a proper fraction),
    repeating decimals (`0.\overline{3}`), a sign and a dollar before them, and the Unicode
    spellings of all this. Two separators are read as such where only one reading is left: `1.234`
    is a decimal, `1,234` and `1.234.567` have thousands, of `1.234,56` and `1,234.56` the last is
    the decimal one, as is `{,}` before other than three digits. `0,1` and `1, 234` may be lists
    and `1 1` may be two numbers: None. So is what has more than 64 characters or an exponent of
    more than three digits, since exact arithmetic on it would stall.
    """
    text = plain_spelling(text.strip())
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    signed = _SIGNED.fullmatch(text)
    if signed is None:
        return None
    magnitude = _magnitude(signed["magnitude"])
    if magnitude is None:
        return None
    return -magnitude if "-" in (signed["before"], signed["after"]) else magnitude


def plain_spelling(text: str) -> str:
    """Return `text` with digits, signs, blanks and separators in ASCII, each in its place."""
    return text if text.isascii() else text.translate(_PLAIN)


def _magnitude(text: str) -> Fraction | None:
    for form, value_of in _FORMS:
        match = form.fullmatch(text)
        if match is not None:
            return value_of(match)
    return None


def _decimal(match: _Match) -> Fraction | None:
    return _scaled(match["digits"], int(match["exponent"] or 0))


def _scientific(match: _Match) -> Fraction | None:
    return _scaled(match["digits"], _exponent(match["exponent"]))


def _scaled(digits: str, exponent: int) -> Fraction | None:
    if abs(exponent) > _MAX_DIGITS:
        return None
    return _point_decimal(digits) * Fraction(10) ** exponent


def _point_decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[^0-9.]", "", text))


def _comma_decimal(match: _Match) -> Fraction:
    digits = re.sub(r"[^0-9,]", "", match[0])
    return Fraction(digits.replace(",", "."))


def _repeating(match: _Match) -> Fraction:
    start, period = match["start"], match["period"]
    places = len(start.partition(".")[2])
    return Fraction(f"0{start}0") + Fraction(int(period), 10**places * (10 ** len(period) - 1))


def _power(match: _Match) -> Fraction | None:
    base, exponent = _point_decimal(match["base"]), _exponent(match["exponent"])
    if len(match["base"]) * abs(exponent) > _MAX_DIGITS or (base == 0 and exponent <= 0):
        return None
    return base**exponent


def _exponent(text: str) -> int:
    return int(re.sub(r"[^-0-9]", "", text.translate(_FROM_SUPERSCRIPT)))


def _fraction(match: _Match) -> Fraction | None:
    top, bottom = (
        _point_decimal(part) * (-1 if part.startswith("-") else 1)
        for part in match.groups()
        if part is not None
    )
    return top / bottom if bottom else None


def _mixed(match: _Match) -> Fraction | None:
    part = _magnitude(match["part"])
    return int(match["whole"]) + part if part is not None and 0 < part < 1 else None


def _vulgar(match: _Match) -> Fraction:
    return Fraction(unicodedata.numeric(match[0])).limit_denominator(10)


# An earlier form goes first, so that a search finds the longest spelling.
_FORM_VALUES: tuple[tuple[str, Callable[[_Match], Fraction | None]], ...] = (
    (rf"(?P<digits>{_DECIMAL}){_TIMES}10(?P<exponent>{_EXPONENT})", _scientific),
    (rf"(?P<base>{_DECIMAL})(?P<exponent>{_EXPONENT})", _power),
    (rf"(?P<whole>[0-9]+)(?:{_TEX_BLANKS}(?P<part>{_TEX_FRACTION}|{_VULGAR}))", _mixed),
    (rf"(?P<whole>[0-9]+){_TEX_BLANK}{{1,3}}(?![0-9]{{3}} ?/)(?P<part>{_SLASH_FRACTION})", _mixed),
    (rf"({_BY_COMMA}) ?/ ?({_BY_COMMA})", _fraction),
    (_TEX_FRACTION, _fraction),
    (_VULGAR, _vulgar),
    (r"(?P<start>[0-9]*\.[0-9]*)\\(?:overline|bar|dot) ?\{(?P<period>[0-9]+)\}", _repeating),
    (_COMMA_DECIMAL, _comma_decimal),
    (rf"(?P<digits>{_DECIMAL})(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}})(?![0-9]))?", _decimal),
)
_FORMS = tuple((re.compile(form), value_of) for form, value_of in _FORM_VALUES)
_SIGNED = re.compile(
    r"(?:(?P<before>[-+]) ?(?:\\?\$ ?)?|\\?\$ ?(?P<after>[-+]?))?(?P<magnitude>[^-+ ].*)"
)

NUMBER_PATTERN = "|".join(re.sub(r"\?P<\w+>", "?:", form) for form, _ in _FORM_VALUES)
"""A regular expression for the magnitude of every number that `exact_number` reads."""
