"""Code answers: the last fenced block of a text."""

from __future__ import annotations

import re
from typing import NamedTuple

# The list marker counts as indentation, as in CommonMark; backticks hold no backtick behind them.
_FENCE = re.compile(
    r"(?P<indent>[ \t]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)?)"
    r"(?P<marks>`{3,}(?=[^`]*$)|~{3,})(?P<info>.*)"
)
_LANGUAGE = re.compile(r"[ \t]*[A-Za-z][\w+#.-]*[ \t]*")


class _Block(NamedTuple):
    indent: int  # characters
    marks: str
    lines: list[str]

    def is_closed_by(self, fence: re.Match[str]) -> bool:
        return self._is_matched_by(fence) and not fence["info"].strip()

    def is_cut_off_by(self, fence: re.Match[str]) -> bool:
        """A new block in the same marks, with its language: nobody has closed this one."""
        return self._is_matched_by(fence) and bool(_LANGUAGE.fullmatch(fence["info"]))

    def _is_matched_by(self, fence: re.Match[str]) -> bool:
        return fence["marks"].startswith(self.marks)


def last_code_block(text: str) -> str:
    """Return the last closed block between fences, without the fence's indentation; or ""."""
    code = ""
    block: _Block | None = None
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if fence is not None and (block is None or block.is_cut_off_by(fence)):
            block = _Block(len(fence["indent"]), fence["marks"], [])
        elif fence is not None and block is not None and block.is_closed_by(fence):
            code, block = "\n".join(block.lines), None
        elif block is not None:
            indent = len(line) - len(line.lstrip())
            block.lines.append(line[min(block.indent, indent) :])
    return code.strip("\n")
