"""Text with brackets, cut where it is outside of them."""

from __future__ import annotations

import re

from sglang_dynasor.certaindex.formula import Unclear

_MAX_PARTS = 40


def split(separator: re.Pattern[str], text: str) -> tuple[list[str], list[str]]:
    """Split `text` where `separator` stands outside brackets; return parts and separators.

    Raises Unclear where there are more than 40, or commas beside semicolons.
    """
    parts: list[str] = []
    separators: list[str] = []
    depth = start = position = 0
    while position < len(text):
        match = separator.match(text, position) if depth == 0 else None
        if match is not None:
            parts.append(text[start : match.start()].strip())
            if {",", ";"} <= set("".join((*separators, match[0]))):
                raise Unclear("1,2;3,4 may be rows")
            separators.append(match[0].strip())
            start = position = match.end()
            continue
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if text[position] == "\\":
            depth += text.startswith(r"\begin", position) - text.startswith(r"\end", position)
            depth += text.startswith(r"\{", position) - text.startswith(r"\}", position)
            position += 1
        position += 1
    if len(parts) >= _MAX_PARTS:
        raise Unclear("too many items")
    return [*parts, text[start:].strip()], separators


def closes_last(text: str) -> bool:
    """Say whether the bracket that opens `text` is closed by its last character."""
    depth = 0
    for position, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0 and position >= 1:
            return position == len(text) - 1
    return False
