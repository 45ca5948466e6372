"""Recorded samples of labelled problems: JSON lines, plain or gzip, one problem a line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
)

from sglang_dynasor.errors import validation_faults

MAX_FAULTS_SHOWN = 2


def _empty_for_null(value: Any) -> Any:
    return "" if value is None else value


@dataclass(frozen=True, slots=True)
class TraceProbe:
    """What a running branch would have answered after `at` of its tokens.

    `certainty`, where measured, is the mean probability of the answer's tokens, 0 to 1.
    """

    at: Annotated[int, Field(ge=0)]
    answer: Annotated[str, BeforeValidator(_empty_for_null)] = ""
    hedged: bool = False
    certainty: Annotated[float, Field(ge=0, le=1)] | None = None


def _in_order(probes: tuple[TraceProbe, ...]) -> tuple[TraceProbe, ...]:
    places = [probe.at for probe in probes]
    if any(later <= earlier for earlier, later in pairwise(places)):
        raise ValueError("must have a rising `at`")
    return probes


@dataclass(frozen=True, slots=True)
class TraceSample:
    """One recorded branch.

    `answer` is "" where the branch gave none; `correct` is the trace's label, None where it has
    none; `n_tokens` counts generated tokens: an empty generation has 0, and no answer whatever was
    recorded; `reward` is a reward model's raw score, any real.
    `certainty` holds the fields of `TokenCertainty` that were measured, nats; None where none was.
    `probes` are what it would have answered on its way.
    """

    answer: Annotated[str, BeforeValidator(_empty_for_null)]
    n_tokens: Annotated[int, Field(ge=0)]
    correct: bool | None = None
    reward: FiniteFloat | None = None
    certainty: Mapping[str, FiniteFloat] | None = None
    probes: Annotated[tuple[TraceProbe, ...], AfterValidator(_in_order)] = ()


def _unanswered_if_empty(sample: TraceSample) -> TraceSample:
    return sample if sample.n_tokens else replace(sample, answer="")


def _at_least_one(samples: tuple[TraceSample, ...]) -> tuple[TraceSample, ...]:
    if not samples:  # a minimum length would count the malformed ones as missing
        raise ValueError("must hold a sample at least")
    return samples


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
    samples: Annotated[
        tuple[Annotated[TraceSample, AfterValidator(_unanswered_if_empty)], ...],
        AfterValidator(_at_least_one),
    ]
    certainty: TraceCertainty | None = None


_PROBLEM = TypeAdapter(TraceProblem)


def right_keys(problem: TraceProblem, group: Callable[[str], str]) -> set[str]:
    """The groups of right answers: those the trace labels so, and where some sample has no label,
    that of the gold answer. No answer is never right."""
    for sample in problem.samples:
        group(sample.answer)  # a later answer may split a group: first hear all of them
    right = {group(sample.answer) for sample in problem.samples if sample.correct}
    if any(sample.correct is None for sample in problem.samples):
        right.add(group(problem.gold))
    return right - {""}


def read_traces(path: Path | str) -> list[TraceProblem]:
    """Read a file of `{id, gold, model, samples: [{answer, n_tokens[, correct, ...]}]}`.

    A name that ends in .gz is read as gzip; other fields, texts among them, are passed over.
    Raises ValueError for malformed or repeated problems, in at most three lines: the first two
    faults by file, line and field, and how many more there are; and for a file without any
    problem; FileNotFoundError where there is no file.
    """
    problems: dict[str, TraceProblem] = {}
    faults: list[str] = []
    for number, line in read_lines(Path(path)):
        try:
            problem = _PROBLEM.validate_json(line)
        except ValidationError as error:
            faults += [f"{path}:{number}: {fault}" for fault in validation_faults(error)]
            continue
        if problem.id in problems:  # every count over problems takes them for independent
            faults.append(f"{path}:{number}: id: {problem.id} came before")
        problems[problem.id] = problem
    if faults:
        raise ValueError("\n".join(_first(faults)))
    if not problems:
        raise ValueError(f"{path}: holds no problem")
    return list(problems.values())


def _first(faults: list[str]) -> list[str]:
    more = len(faults) - MAX_FAULTS_SHOWN
    return faults[:MAX_FAULTS_SHOWN] + ([f"and {more} more faults"] if more > 0 else [])


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not blank; bytes, so that the parser checks UTF-8."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from None
