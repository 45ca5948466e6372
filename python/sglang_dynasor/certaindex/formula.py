"""Formulas, and the tokens they are read from.

Formulas are those that `canonical_key` writes: LaTeX without dress, or plain text. Letter case is
kept, and letters are symbols only where nothing speaks for a unit, a word or a numeral.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_MAX_DIGITS = 100


class Unclear(ValueError):
    """What was read is not wholly understood, has two readings, or can't be checked."""


@dataclass(frozen=True, slots=True)
class Symbol:
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """An operation on formulas; `name` is one of those of `operations`."""

    name: str
    arguments: tuple[Formula, ...] = ()


Formula = Fraction | Symbol | Call

IMAGINARY_UNIT, DEGREE = Symbol("i"), Symbol("°")

TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc"}
_FUNCTION_OF = {name: name for name in TRIGONOMETRIC}
_FUNCTION_OF |= {name: name for name in ("sinh", "cosh", "tanh", "exp", "ln", "log", "lg")}
for _name in ("sin", "cos", "tan"):
    _FUNCTION_OF |= {"arc" + _name: "arc" + _name, "a" + _name: "arc" + _name}
# Names that a word without backslash may be.
WORD_FUNCTIONS = {*_FUNCTION_OF, "sqrt", "pi"}
_COMMANDS = {"frac", "sqrt", "binom", "lfloor", "rfloor", "lceil", "rceil", "cdot", "times"}
_GREEK = re.compile(
    "alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|iota|kappa|lambda|mu|nu|xi|pi"
    "|rho|sigma|tau|upsilon|(?:var)?phi|chi|psi|omega|ell|hbar"
    "|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega"
)
# Two letters in a row that are a unit, a word, a differential or a numeral rather than a product.
_NO_PRODUCT = re.compile(
    "[cdhkmn]?m|[cdhkmn]g|[cdhkm]l|[fkmnp]s|[hk][rz]|[km][vw]|[gkmt]b|ft|fm|pm|in|yd|lb|oz|pt|qt"
    "|mi|bp|pa|ha|au|ly|rt|ev|am|an|as|at|be|by|do|go|he|if|is|it|me|my|no|of|oh|ok|on|or|so|to|up"
    "|us|we|id|vs|st|nd|rd|th|d[abrstuvwxyz]|i[ivxlcdm]|[vxlcdm]i|xx|x[vlc]|[lc]x|cd|dc|cc|mc"
)
_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?P<exponent>[eE][-+]?[0-9]{1,3})?)|(?P<word>[A-Za-z]+)"
    r"|\\(?P<command>[A-Za-z]+)|(?P<sign>[-+*/^_(){}\[\]|!°])|(?P<blank> +)"
)
_SUBSCRIPT = re.compile(r" ?_ ?(?:\{([A-Za-z0-9 ,+\\-]{1,20})\}|([A-Za-z0-9])(?![0-9]))")
_PRIMES = re.compile("'{0,3}")
_LEADING_ZERO = re.compile("0[0-9]")


@dataclass(frozen=True, slots=True)
class Token:
    kind: str  # number, symbol, function, word function (without backslash), sign or end
    text: str
    spaced: bool = False  # a symbol behind a blank


END = Token("end", "")


def tokenize(text: str) -> list[Token]:
    """Return the tokens of `text` with END behind them. Raises Unclear where it is no formula."""
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unclear(f"no formula has {text[position]!r} here")
        position, kind, token = match.end(), match.lastgroup, match[0]
        if kind == "number":
            if match["exponent"] and match["exponent"][1] in "+-" and "." not in token:
                raise Unclear("2e-3 has two readings")
            if _LEADING_ZERO.match(token) or len(token) > _MAX_DIGITS:
                raise Unclear(f"{token} is no plain number")
            tokens.append(Token("number", token))
        elif kind == "sign":
            tokens.append(Token("sign", token))
        elif kind == "word" and token not in WORD_FUNCTIONS:
            after_number = text[: match.start()].rstrip()[-1:].isdigit()
            of_command = len(tokens) > 1 and tokens[-2].text == r"\frac"
            _refuse_words(token, tokens[-1].text if after_number and not of_command else "")
            spaced = text[match.start() - 1 : match.start()] == " "
            tokens += [Token("symbol", letter, spaced) for letter in token[:-1]]
            spaced = spaced and len(token) == 1
            position = _add_symbol(tokens, token[-1], text, position, spaced)
        elif kind in ("word", "command"):
            name = match["command"] or token
            if name in _FUNCTION_OF:
                tokens.append(Token("function", _FUNCTION_OF[name]))
            elif token == "sqrt":
                tokens.append(Token("function", "sqrt"))
            elif name in _COMMANDS:
                tokens.append(Token("sign", token))
            elif _GREEK.fullmatch(name):
                position = _add_symbol(tokens, "\\" + name, text, position, False)
            else:
                raise Unclear(f"no formula has {token}")
    return [*tokens, END]


def _refuse_words(word: str, number: str) -> None:
    if len(word) > 2 or (len(word) > 1 and (not word.islower() or _NO_PRODUCT.fullmatch(word))):
        raise Unclear(f"{word} may be a word, a unit or a numeral")
    if number in ("0", "1") and word != "i":
        raise Unclear(f"{number}{word} may be a hexadecimal number, {number} {word} a quantity")


def _add_symbol(tokens: list[Token], name: str, text: str, position: int, spaced: bool) -> int:
    """Add a symbol with the subscript and the primes behind it; return where they end."""
    subscript = _SUBSCRIPT.match(text, position)
    if subscript is not None:
        position = subscript.end()
        name += "_" + (subscript[1] or subscript[2]).replace(" ", "")
    primes = _PRIMES.match(text, position)
    if primes is not None:
        position = primes.end()
        name += primes[0]
    tokens.append(Token("symbol", name, spaced))
    return position


def symbols(formula: Formula) -> frozenset[str]:
    """Return the names of a formula's symbols, those of unit, degree included."""
    if isinstance(formula, Symbol):
        return frozenset([formula.name])
    if isinstance(formula, Call):
        return frozenset[str]().union(*map(symbols, formula.arguments))
    return frozenset()
