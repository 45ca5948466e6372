"""Recorded samples of labelled problems: JSON lines, plain or gzip, one problem a line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, FiniteFloat, TypeAdapter, ValidationError

from sglang_dynasor.errors import describe_validation_error


def _empty_for_null(value: Any) -> Any:
    return "" if value is None else value


@dataclass(frozen=True, slots=True)
class TraceSample:
    """One recorded branch.

    `answer` is "" where the branch gave none; `correct` is the trace's label, None where it has
    none; `n_tokens` counts generated tokens; `reward` is a reward model's raw score, any real.
    `certainty` holds the fields of `TokenCertainty` that were measured, nats; None where none was.
    """

    answer: Annotated[str, BeforeValidator(_empty_for_null)]
    n_tokens: Annotated[int, Field(ge=1)]
    correct: bool | None = None
    reward: FiniteFloat | None = None
    certainty: Mapping[str, FiniteFloat] | None = None


@dataclass(frozen=True, slots=True)
class TraceCertainty:
    """How certainty was measured: over the `k` likeliest tokens, in groups of `group_tokens`."""

    k: Annotated[int, Field(ge=1)]
    group_tokens: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class TraceProblem:
    """One problem with its right answer and every branch that `model` was recorded giving."""

    id: Annotated[str, Field(coerce_numbers_to_str=True)]
    gold: str
    model: str
    samples: Annotated[tuple[TraceSample, ...], Field(min_length=1)]
    certainty: TraceCertainty | None = None


_PROBLEM = TypeAdapter(TraceProblem)


def read_traces(path: Path | str) -> list[TraceProblem]:
    """Read a file of `{id, gold, model, samples: [{answer, n_tokens[, correct, ...]}]}`.

    A name that ends in .gz is read as gzip; other fields, texts among them, are passed over.
    Raises ValueError naming file, line and field of a malformed or repeated problem, and for a
    file without any; FileNotFoundError where there is no file.
    """
    problems: dict[str, TraceProblem] = {}
    for number, line in _lines(Path(path)):
        try:
            problem = _PROBLEM.validate_json(line)
        except ValidationError as error:
            raise ValueError(f"{path}:{number}: {describe_validation_error(error)}") from None
        if problem.id in problems:  # every count over problems takes them for independent
            raise ValueError(f"{path}:{number}: id: {problem.id} came before")
        problems[problem.id] = problem
    if not problems:
        raise ValueError(f"{path}: holds no problem")
    return list(problems.values())


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not blank; bytes, so that the parser checks UTF-8."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from None
