"""The request object `dynasor`, checked before anything reaches the engine, and resolved."""

from __future__ import annotations

import difflib
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pydantic import ValidationError

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.errors import RequestError, describe_validation_error
from sglang_dynasor.programs.dialects import in_our_words
from sglang_dynasor.programs.params import Detail, Envelope, Mode, Params, RequestTraits, Settings
from sglang_dynasor.programs.protocol import ReasoningProgram
from sglang_dynasor.programs.registry import ALGORITHMS

_PREFIX = "dynasor."
_ORDINARY = RequestTraits()
_MAX_SUGGESTIONS = 3
_FIELD = re.compile(r"[a-z_]+")


@dataclass(frozen=True, slots=True)
class ResolvedProgram:
    """A program with nothing left open. `settings` are its algorithm's own."""

    program_id: str
    algorithm: str
    mode: Mode
    detail: Detail
    deadline_ms: int | None
    settings: Settings

    @property
    def deadline_s(self) -> float | None:
        return None if self.deadline_ms is None else self.deadline_ms / 1000

    def build(self) -> ReasoningProgram:
        """The program itself. Raises ValueError for one that its client drives."""
        build = ALGORITHMS[self.algorithm].build
        if build is None:
            raise ValueError(f"{_PREFIX}algorithm: {self.algorithm} is driven by its client")
        return build(self.settings)


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """What a client says about a program, with what it left open."""

    envelope: Envelope
    params: Params

    @classmethod
    def parse(cls, fields: object) -> ProgramSpec:
        """Check client input of any shape. Raises RequestError naming the field."""
        if not isinstance(fields, dict):
            message = f"dynasor: must be an object, got {type(fields).__name__}"
            raise RequestError(message, "dynasor")
        fields = in_our_words(fields)
        common = {name: value for name, value in fields.items() if name in Envelope.model_fields}
        own = {name: value for name, value in fields.items() if name not in common}
        with _named():
            envelope = Envelope.model_validate(common)
            if envelope.algorithm not in ALGORITHMS:
                raise ValueError(f"algorithm: must be one of {', '.join(ALGORITHMS)}")
            kind = ALGORITHMS[envelope.algorithm].params
            for name in own:
                if name not in kind.model_fields:
                    raise ValueError(_refusal_of(name, envelope.algorithm))
            params = kind.model_validate(own)
            params.check(envelope)
        return cls(envelope, params)

    @property
    def program_id(self) -> str | None:
        return self.envelope.program_id

    @property
    def algorithm(self) -> str:
        return self.envelope.algorithm

    @property
    def mode(self) -> Mode:
        return self.envelope.mode

    @property
    def runs_in_engine(self) -> bool:
        """Whether the engine runs the program, rather than a client that sends its requests."""
        return ALGORITHMS[self.algorithm].build is not None and self.mode != "off"

    def with_program_id(self, program_id: str) -> ProgramSpec:
        """A copy with this id. Raises RequestError for one that is none."""
        with _named():
            checked = Envelope.model_validate({"program_id": program_id})
        update = {"program_id": checked.program_id}
        return replace(self, envelope=self.envelope.model_copy(update=update))

    def resolve(self, config: DynasorConfig, request: RequestTraits = _ORDINARY) -> ResolvedProgram:
        """Fill what was left out, and mint an id.

        What the client gave goes first, then what its other fields imply, then the server's
        settings, then the algorithm's own defaults. Raises RequestError where a given field
        contradicts a setting it is combined with.
        """
        with _named():
            settings = self.params.resolve(self.envelope, config, request)
        return ResolvedProgram(
            program_id=self.program_id or uuid.uuid4().hex,
            algorithm=self.algorithm,
            mode=self.mode,
            detail=self.envelope.detail,
            deadline_ms=self.envelope.deadline_ms,
            settings=settings,
        )


@contextmanager
def _named() -> Iterator[None]:
    """Refusals name their field as the request object spells it."""
    try:
        yield
    except ValidationError as error:
        message = describe_validation_error(error, _PREFIX)
    except ValueError as error:
        message = f"{_PREFIX}{error}"
    else:
        return
    field = _FIELD.match(message, len(_PREFIX))
    raise RequestError(message, _PREFIX + field[0] if field else None) from None


def _refusal_of(name: str, algorithm: str) -> str:
    known = known_fields()
    if name in known:
        having = ", ".join(known[name])
        return f"{name}: needs an algorithm that knows it: {having}, not {algorithm}"
    nearest = difflib.get_close_matches(str(name), known, _MAX_SUGGESTIONS)
    hint = f", did you mean {' or '.join(nearest)}?" if nearest else ""
    return f"{str(name)[:64]}: unknown field{hint}"


def known_fields() -> Mapping[str, list[str]]:
    """Every field of the request object with the algorithms that have it."""
    known: dict[str, list[str]] = {name: list(ALGORITHMS) for name in Envelope.model_fields}
    for algorithm, entry in ALGORITHMS.items():
        for name in entry.params.model_fields:
            known.setdefault(name, []).append(algorithm)
    return known
