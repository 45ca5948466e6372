"""JSON answers: a field of the last object in a text, read as models write JSON."""

from __future__ import annotations

import json
import re
from typing import Any

# Answers sit in the last few objects, and nested ones may each be as long as the text.
_MAX_ATTEMPTS = 64
_MAX_READINGS = 4  # of the text's length, all attempts together

# A string stands behind a bracket, comma or colon and before one: prose quotes elsewhere.
_STRING = r"""(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')(?=\s*+[,:}\]])"""
_BRACE_OR_STRING = re.compile(
    rf"(?P<object>\{{\s*+(?={_STRING}))|[\[,:]\s*+{_STRING}|(?<=[\{{\s]){_STRING}|[{{}}]", re.DOTALL
)
_STRING_OR_TRAILING_COMMA = re.compile(rf"(?P<string>{_STRING})|,(?=\s*+[}}\]])", re.DOTALL)
# LaTeX commands that begin like the escapes of a line break and of a tab.
_LATEX_N = "u|eq?|eg|abla|ot|otin|leq|geq"
_LATEX_T = "imes|heta|au|ext[a-z]*|an|anh|frac|o|op|riangle|ilde|herefore|binom"
_ESCAPE = re.compile(
    r"\\(?:(?P<quote>')|(?P<json>[\"\\/]|u[0-9A-Fa-f]{4}|[bfr](?![A-Za-z])"
    rf"|n(?!(?:{_LATEX_N})(?![A-Za-z]))|t(?!(?:{_LATEX_T})(?![A-Za-z]))))?"
)


class _Number(str):
    """A number as it is written: its spelling is the answer's spelling."""

    __slots__ = ()


def last_json_field(text: str, path: list[str]) -> str:
    r"""Return the value at `path` in the last complete object that has it, or "".

    A string is returned as it is, any other value as JSON with sorted keys, its numbers in their
    spelling. LaTeX in strings may
    lack the second backslash (`"\frac{1}{2}"`), a last element may have a comma behind it, and
    strings may be in single quotes.
    """
    decoder = json.JSONDecoder(parse_int=_Number, parse_float=_Number, strict=False)
    unread = _MAX_READINGS * len(text)
    for start, end in reversed(_closed_objects(text)[-_MAX_ATTEMPTS:]):
        unread -= end - start
        if unread < 0:
            break
        try:
            value = decoder.decode(_repaired(text[start:end]))
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                return value.strip() if isinstance(value, str) else _json(value)
        except (ValueError, RecursionError):
            continue
    return ""


def _json(value: Any) -> str:
    if isinstance(value, _Number):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(_json, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(k)}: {_json(value[k])}' for k in sorted(value))}}}"
    return json.dumps(value)


def _closed_objects(text: str) -> list[tuple[int, int]]:
    """Where objects start and end, by their ends: an object after its parts."""
    closed = []
    open_braces: list[tuple[bool, int]] = []  # (may open an object, where)
    for token in _BRACE_OR_STRING.finditer(text):
        if token["object"] or token[0] == "{":
            open_braces.append((bool(token["object"]), token.start()))
        elif token[0] == "}" and open_braces:
            may_be_object, start = open_braces.pop()
            if may_be_object:
                closed.append((start, token.end()))
    return closed


def _repaired(text: str) -> str:
    text = _ESCAPE.sub(_json_escape, text)
    return _STRING_OR_TRAILING_COMMA.sub(lambda part: _json_string(part["string"] or ""), text)


def _json_escape(escape: re.Match[str]) -> str:
    if escape["quote"]:
        return r"\u0027"
    return escape[0] if escape["json"] else r"\\"


def _json_string(string: str) -> str:
    if not string.startswith("'"):
        return string
    return '"' + string[1:-1].replace('"', r"\"") + '"'
