"""Write the tables of README.md that the code already knows: settings, request fields, hooks.

python tools/readme_tables.py          # rewrites README.md
python tools/readme_tables.py --check  # exit 1 when it is out of date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.plugin import HOOKS
from sglang_dynasor.programs import ALGORITHMS, Envelope

README = Path(__file__).parent.parent / "README.md"


def settings_table() -> str:
    rows = (
        (
            f"`--dynasor-{name.replace('_', '-')}`",
            f"`{field.default!r}`",
            field.description or "",
        )
        for name, field in DynasorConfig.model_fields.items()
    )
    return _table(("flag", "default", "meaning"), rows)


def fields_tables() -> str:
    """The envelope, then what each algorithm adds to it."""
    tables: dict[str, type[BaseModel]] = {"Every program": Envelope}
    tables |= {f"`algorithm: {name}`": entry.params for name, entry in ALGORITHMS.items()}
    return "\n\n".join(f"{title}:\n\n{_fields(model)}" for title, model in tables.items())


def _fields(model: type[BaseModel]) -> str:
    rows = (
        (f"`{name}`", _default(model, name), field.description or "")
        for name, field in model.model_fields.items()
    )
    return _table(("field", "default", "meaning"), rows)


def _default(model: type[BaseModel], name: str) -> str:
    if name in getattr(model, "of_the_server", ()):
        return "the server's"
    default = model.model_fields[name].default
    return "" if default is None else f"`{default}`"


def hooks_table() -> str:
    rows = ((f"`{hook.target}`", hook.kind, hook.purpose) for hook in HOOKS)
    return _table(("upstream object", "hook", "why"), rows)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render(text: str) -> str:
    """README text with every table between its markers brought up to date."""
    tables = {"settings": settings_table, "fields": fields_tables, "hooks": hooks_table}
    for name, make in tables.items():
        start, end = f"<!-- {name}: written by tools/readme_tables.py -->", f"<!-- end {name} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md lacks the markers of the table {name!r}")
        block = f"{start}\n{make()}\n{end}"
        text = pattern.sub(lambda _, block=block: block, text)
    return text


def main() -> int:
    current = README.read_text(encoding="utf-8")
    wanted = render(current)
    if "--check" in sys.argv[1:]:
        return int(current != wanted)
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
