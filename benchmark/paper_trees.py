"""Made-up searches: what the steps of a problem's paths say, and what a reward model says of them.

A step is right or wrong, a path right while all its steps are. The text of a step carries which it
is and its reward, so that whoever judges needs nothing but the path.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

from sglang_dynasor.platforms.virtual_clock.script import Asked, Sample

STEP_STOP = ";"
RIGHT = "1"
_STEP = re.compile(r"([rw])(\d\d)")  # right or wrong, and its reward in hundredths


@dataclass(frozen=True, slots=True)
class Tree:
    """A problem: a path of `depth` steps is right with probability `p_right`; a step has about
    `step_tokens`. Logits of rewards are `separation` apart, with a deviation of 1.
    """

    prompt_tokens: int
    depth: int
    p_right: float
    step_tokens: float
    step_sigma: float
    separation: float
    wrong_answers: int
    wrong_zipf: float


@dataclass(frozen=True, slots=True)
class SearchWorkload:
    """Searches over `programs` problems, at most `cap` leaves each, by `algorithm`.

    A problem's share of right paths is drawn from the Beta distribution `right`, its number of
    steps evenly from the range `depth`; lengths are lognormal. `operating_point` names the paper's
    thresholds, `rate` is programs a second.
    """

    programs: int
    cap: int
    algorithm: str
    operating_point: str
    rate: float
    deadline_s: float
    prompt_tokens: int
    depth: tuple[int, int]
    right: tuple[float, float]
    step_tokens: float
    problem_sigma: float
    step_sigma: float
    separation: float
    wrong_answers: int
    wrong_zipf: float


@dataclass(slots=True)
class TreeScript:
    """Steps by chance, the same for the same path and the same number of siblings before."""

    trees: Mapping[str, Tree]
    _siblings: Counter[tuple[str, str]] = field(default_factory=Counter)

    def prompt_tokens(self, program_id: str) -> int:
        return self.trees[program_id].prompt_tokens

    def sample(self, asked: Asked) -> Sample:
        tree = self.trees[asked.program_id]
        steps = _STEP.findall(asked.path)
        place = asked.program_id, "".join(map("".join, steps))
        rng = random.Random(f"{place}:{self._siblings[place]}")
        self._siblings[place] += 1
        right = all(kind == "r" for kind, _ in steps)
        if STEP_STOP in asked.stops and len(steps) + 1 < tree.depth:
            right = self._goes_on_right(tree, right, rng)
            return Sample(_tokens(tree, rng), _mark(tree, right, rng) + STEP_STOP, ends=False)
        tokens = 0
        for _ in range(max(1, tree.depth - len(steps))):
            right = self._goes_on_right(tree, right, rng)
            tokens += _tokens(tree, rng)
        answer = _answer(tree, right, rng)
        return Sample(tokens, f"{_mark(tree, right, rng)}\\boxed{{{answer}}}")

    def _goes_on_right(self, tree: Tree, right: bool, rng: random.Random) -> bool:
        return rng.random() < tree.p_right ** (1 / tree.depth) and right


def reward_of(prompt: str, text: str) -> float:
    """The reward of a path, 0 to 1, as its last step carries it."""
    return int(_STEP.findall(text)[-1][1]) / 100


def made_tree(work: SearchWorkload, rng: random.Random) -> Tree:
    """A problem by the numbers of a workload."""
    spread = work.problem_sigma
    return Tree(
        prompt_tokens=prompt_length(work.prompt_tokens, rng),
        depth=rng.randint(*work.depth),
        p_right=rng.betavariate(*work.right),
        step_tokens=work.step_tokens * rng.lognormvariate(-(spread**2) / 2, spread),
        step_sigma=work.step_sigma,
        separation=work.separation,
        wrong_answers=work.wrong_answers,
        wrong_zipf=work.wrong_zipf,
    )


def won(tree: Tree, leaves: int, rng: random.Random) -> bool:
    """Whether a vote of so many independent paths, each by its reward, would be right."""
    weights: Counter[str] = Counter()
    for _ in range(leaves):
        right = rng.random() < tree.p_right
        answer = _answer(tree, right, rng)
        weights[answer] += int(_mark(tree, right, rng)[1:])
    return weights.most_common(1)[0][0] == RIGHT


def _tokens(tree: Tree, rng: random.Random) -> int:
    sigma = tree.step_sigma
    return max(4, round(tree.step_tokens * rng.lognormvariate(-(sigma**2) / 2, sigma)))


def _mark(tree: Tree, right: bool, rng: random.Random) -> str:
    logit = rng.gauss(tree.separation / 2 if right else -tree.separation / 2, 1.0)
    hundredths = min(99, max(0, round(100 / (1 + math.exp(-logit)))))
    return f"{'r' if right else 'w'}{hundredths:02d}"


def _answer(tree: Tree, right: bool, rng: random.Random) -> str:
    return RIGHT if right else wrong_answer(tree.wrong_answers, tree.wrong_zipf, rng)


def prompt_length(mean: int, rng: random.Random) -> int:
    return max(16, round(mean * rng.lognormvariate(-0.045, 0.3)))


def wrong_answer(count: int, zipf: float, rng: random.Random) -> str:
    """One of so many, the first ones more often by a Zipf law."""
    return str(2 + rng.choices(range(count), cum_weights=_zipf_weights(count, zipf))[0])


@cache
def _zipf_weights(count: int, zipf: float) -> Sequence[float]:
    return list(accumulate((1 + rank) ** -zipf for rank in range(count)))
