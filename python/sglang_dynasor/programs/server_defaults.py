"""What requests without program fields get, as the operator says: by route and by model."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.errors import RequestError, describe_validation_error
from sglang_dynasor.programs.params import Fields
from sglang_dynasor.programs.spec import ProgramSpec


class DefaultEntry(Fields):
    """Program fields for the requests of these routes and models, both patterns like "/v1/*"."""

    route: str = "*"
    model: str = "*"
    dynasor: dict[str, Any] = Field(default_factory=dict)


class ServerDefaults:
    """The first entry that fits a request counts; `mode: off` leaves it as it is."""

    def __init__(self, entries: Iterable[tuple[DefaultEntry, ProgramSpec]] = ()) -> None:
        self._entries = tuple(entries)

    def __bool__(self) -> bool:
        return bool(self._entries)

    @property
    def tells_models_apart(self) -> bool:
        """Whether the model's name matters."""
        return any(entry.model != "*" for entry, _ in self._entries)

    def spec_of(self, route: str, model: str) -> ProgramSpec | None:
        """The program of a request that names none; None: a plain request."""
        for entry, spec in self._entries:
            if fnmatchcase(route, entry.route) and fnmatchcase(model, entry.model):
                return None if spec.mode == "off" else spec
        return None


def read_defaults(given: str, config: DynasorConfig) -> ServerDefaults:
    """Read a file, JSON or YAML, or the JSON itself: one object of program fields, or a list of
    entries `{route, model, dynasor}`.

    Raises ValueError naming the setting, the entry and the field.
    """
    return defaults_of(_content(given), config) if given else ServerDefaults()


def defaults_of(content: Any, config: DynasorConfig) -> ServerDefaults:
    """The same from what was read. Raises ValueError naming the setting, the entry, the field."""
    entries = content if isinstance(content, list) else [{"dynasor": content}]
    return ServerDefaults(_entry(item, number, config) for number, item in enumerate(entries, 1))


def _content(given: str) -> Any:
    text = given
    try:
        if given[0] not in "[{":
            text = Path(given).read_text(encoding="utf-8")
        return yaml.safe_load(text)  # which reads JSON, too
    except OSError as error:
        raise ValueError(f"default: {given}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"default: {given[:64]} is neither JSON nor YAML: {reason}") from None


def _entry(item: Any, number: int, config: DynasorConfig) -> tuple[DefaultEntry, ProgramSpec]:
    try:
        entry = DefaultEntry.model_validate(item)
        spec = ProgramSpec.parse(entry.dynasor)
        spec.resolve(config)  # what contradicts a setting shows here, not at the first request
    except ValidationError as error:
        raise ValueError(f"default: entry {number}: {describe_validation_error(error)}") from None
    except RequestError as error:
        raise ValueError(f"default: entry {number}: {error}") from None
    return entry, spec
