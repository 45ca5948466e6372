"""The workloads of the paper's evaluation: made from the frozen numbers of paper_workloads.json.

Each number there names its source, or the word assumption. `varied` moves the assumptions.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from paper_trees import RIGHT, SearchWorkload, Tree, made_tree, prompt_length, won, wrong_answer
from sglang_dynasor.offline import Sample, cheapest_equal, fixed_curve
from sglang_dynasor.simulate import WorkloadProgram

FILE = Path(__file__).with_suffix(".json")
EQUAL_ACCURACY = 0.005
TRIALS = 100  # full votes that say how difficult a problem is (paper App. F)


@dataclass(frozen=True, slots=True)
class Device:
    """The modelled engine. `kv_tokens` is its pool, `max_running` how many requests run at once."""

    hardware: str
    model: str
    kv_tokens: int
    max_running: int
    max_new_tokens: int
    chunked_prefill: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Votes over `programs` problems, at most `cap` samples each.

    A problem's share of right samples is drawn from the Beta distribution `right`, its wrong ones
    are spread over `wrong_answers` by a Zipf law. Lengths are lognormal with sigmas between
    problems and within one, around a mean that grows by `hard_factor` with the share of wrong
    ones. `detect` and `threshold` are the paper's operating point, `rate` programs a second.
    """

    programs: int
    cap: int
    detect: int
    threshold: float
    rate: float
    deadline_s: float
    prompt_tokens: int
    mean_tokens: float
    problem_sigma: float
    sample_sigma: float
    hard_factor: float
    right: tuple[float, float]
    wrong_answers: int
    wrong_zipf: float


@dataclass(frozen=True, slots=True)
class PaperProgram:
    """A program and its difficulty, 1 to 3: always, sometimes or never right by the full vote."""

    program: WorkloadProgram
    difficulty: int
    tree: Tree | None = None  # of a search


def device() -> Device:
    return Device(**_values("device"))


def workload(name: str) -> Workload | SearchWorkload:
    """Raises KeyError for one that is not in the file."""
    values = _values(name)
    return SearchWorkload(**values) if "algorithm" in values else Workload(**values)


def votes(name: str) -> Workload:
    """A workload of votes. Raises ValueError for another."""
    work = workload(name)
    if not isinstance(work, Workload):
        raise ValueError(f"{name}: is no workload of votes")
    return work


def names() -> list[str]:
    return [name for name in json.loads(FILE.read_text()) if name != "device"]


def assumptions(name: str) -> list[str]:
    """Numbers of a workload that stand for a single real one and have no other source."""
    given = json.loads(FILE.read_text())[name]
    return [
        field
        for field, entry in given.items()
        if entry["source"].startswith("assumption") and isinstance(entry["value"], float | int)
    ]


def _values(name: str) -> dict[str, Any]:
    return {field: entry["value"] for field, entry in json.loads(FILE.read_text())[name].items()}


AnyWorkload = TypeVar("AnyWorkload", Workload, SearchWorkload)


def varied(base: AnyWorkload, field: str, factor: float) -> AnyWorkload:
    """The workload with one of its numbers multiplied."""
    value = getattr(base, field) * factor
    return replace(
        base, **{field: round(value) if isinstance(getattr(base, field), int) else value}
    )


def programs_of(work: Workload | SearchWorkload, rate: float, seed: int) -> list[PaperProgram]:
    """Programs that arrive by chance at `rate` a second."""
    clock = random.Random(f"arrivals:{seed}")
    now = 0.0
    made = []
    for number in range(work.programs):
        now += clock.expovariate(rate)
        name, rng = f"p{number}", random.Random(f"problem:{seed}:{number}")
        if isinstance(work, Workload):
            made.append(_vote_program(work, name, now, rng))
        else:
            made.append(_search_program(work, name, now, rng))
    return made


def equal_knob(work: Workload | SearchWorkload, made: Sequence[PaperProgram]) -> int:
    """The smallest fixed knob whose full vote is as accurate as the cap's, to half a point."""
    if isinstance(work, Workload):
        samples = [[Sample(s[1], s[0]) for s in entry.program.samples] for entry in made]
        curve = fixed_curve(samples, [entry.program.gold for entry in made], work.cap)
        equal = cheapest_equal(curve, curve[-1].accuracy - EQUAL_ACCURACY)
        assert equal is not None
        return equal.k
    trees = [entry.tree for entry in made if entry.tree is not None]

    def accuracy(leaves: int) -> float:
        rng = random.Random(f"knob:{leaves}")
        return sum(won(tree, leaves, rng) for tree in trees for _ in range(10)) / len(trees) / 10

    whole = accuracy(work.cap)
    return next(k for k in range(1, work.cap + 1) if accuracy(k) >= whole - EQUAL_ACCURACY)


def _search_program(
    work: SearchWorkload, name: str, arrival_s: float, rng: random.Random
) -> PaperProgram:
    tree = made_tree(work, rng)
    trials = random.Random(f"trials:{name}:{tree.p_right}")
    hits = sum(won(tree, work.cap, trials) for _ in range(TRIALS))
    program = WorkloadProgram(name, arrival_s, tree.prompt_tokens, RIGHT, ())
    return PaperProgram(program, _difficulty(hits), tree)


def _difficulty(hits: int) -> int:
    return 1 if hits == TRIALS else 2 if hits else 3


def _vote_program(work: Workload, name: str, arrival_s: float, rng: random.Random) -> PaperProgram:
    p_right = rng.betavariate(*work.right)

    def answer(source: random.Random) -> str:
        if source.random() < p_right:
            return RIGHT
        return wrong_answer(work.wrong_answers, work.wrong_zipf, source)

    between = work.problem_sigma
    typical = (
        work.mean_tokens
        * (1 + work.hard_factor * (1 - p_right))
        * rng.lognormvariate(-(between**2) / 2, between)
    )
    within = work.sample_sigma
    samples = [
        (max(12, round(typical * rng.lognormvariate(-(within**2) / 2, within))), answer(rng))
        for _ in range(work.cap)
    ]
    prompt = prompt_length(work.prompt_tokens, rng)
    program = WorkloadProgram(name, arrival_s, prompt, RIGHT, samples)
    trials = random.Random(f"trials:{name}:{p_right}")
    hits = sum(_vote([answer(trials) for _ in range(work.cap)]) == RIGHT for _ in range(TRIALS))
    return PaperProgram(program, _difficulty(hits))


def _vote(answers: Sequence[str]) -> str:
    return Counter(answers).most_common(1)[0][0]


def variation(values: Sequence[float]) -> float:
    """Standard deviation over mean."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)) / mean
