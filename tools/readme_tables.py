"""Write the tables that the code already knows: request fields, hooks (README), others (docs).

python tools/readme_tables.py          # rewrites README.md and pages of docs/
python tools/readme_tables.py --check  # exit 1 when one is out of date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from pydantic import BaseModel

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.plugin import HOOKS
from sglang_dynasor.programs import ALGORITHMS, Envelope
from sglang_dynasor.programs.search_params import SearchParams

ROOT = Path(__file__).parent.parent


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
    """The envelope, then what each algorithm that is no search adds to it."""
    tables: dict[str, type[BaseModel]] = {"Every program": Envelope}
    tables |= {
        f"`algorithm: {name}`": entry.params
        for name, entry in ALGORITHMS.items()
        if not issubclass(entry.params, SearchParams)
    }
    return "\n\n".join(f"{title}:\n\n{_fields(model)}" for title, model in tables.items())


def search_tables() -> str:
    """What all searches have, then what each has beyond that."""
    blocks = [f"Every search:\n\n{_fields(SearchParams)}"]
    names: dict[type[BaseModel], list[str]] = {}
    for name, entry in ALGORITHMS.items():
        if issubclass(entry.params, SearchParams):
            names.setdefault(entry.params, []).append(f"`algorithm: {name}`")
    common = set(SearchParams.model_fields)
    blocks += [f"{', '.join(of)}:\n\n{_fields(model, common)}" for model, of in names.items()]
    return "\n\n".join(blocks)


def _fields(model: type[BaseModel], known: Collection[str] = ()) -> str:
    rows = (
        (f"`{name}`", _default(model, name), field.description or "")
        for name, field in model.model_fields.items()
        if name not in known
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


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"fields": fields_tables, "hooks": hooks_table},
    "docs/search.md": {"search": search_tables},
    "docs/settings.md": {"settings": settings_table},
}


def render(page: str, text: str) -> str:
    """A page's text with every table between its markers brought up to date."""
    for name, make in PAGES[page].items():
        start, end = f"<!-- {name}: written by tools/readme_tables.py -->", f"<!-- end {name} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{page} lacks the markers of the table {name!r}")
        block = f"{start}\n{make()}\n{end}"
        text = pattern.sub(lambda _, block=block: block, text)
    return text


def main() -> int:
    for page in PAGES:
        path = ROOT / page
        current = path.read_text(encoding="utf-8")
        wanted = render(page, current)
        if "--check" not in sys.argv[1:]:
            path.write_text(wanted, encoding="utf-8")
        elif current != wanted:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
