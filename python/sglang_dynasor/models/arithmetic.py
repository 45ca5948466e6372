"""The task of the embedded tiny model: sums of two-digit numbers, worked out step by step.

A problem such as ``37+58+91`` has a *level*: its number of operands, 2 to 7. The plain solution is
the chain of partial sums and a boxed result. The thinking solution writes the same chain between
think tags, then re-checks itself until it has used at least ``THINK_FACTOR`` times the tokens the
answer needed: the behaviour of a long reasoning model, at a size that trains on one core.

Everything is seeded and uses the standard library only. One character is one token, so lengths
here are token counts (a think tag is one token as well).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LEVELS: tuple[int, ...] = (2, 3, 4, 5, 6, 7)
SMALLEST, LARGEST = 10, 99
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
THINK_FACTOR = 3.2

# Level 6 is rare in training and level 7 never seen, on purpose: some problems have to stay hard
# and some out of reach, or no program is ever uncertain.
TRAINED_LEVELS = LEVELS[:-1]
PLAIN_LEVEL_WEIGHTS: tuple[float, ...] = (0.16, 0.27, 0.28, 0.23, 0.06)
THINK_LEVEL_WEIGHTS: tuple[float, ...] = (0.24, 0.30, 0.26, 0.17, 0.03)
# Evaluation takes the levels in this turn: one problem in sixteen is out of reach.
EVALUATION_TURN = TRAINED_LEVELS * 3 + LEVELS[-1:]

# What may be forced onto a running thought to make it answer at once, and how often training
# shows it.
FORCED_ENDINGS: tuple[tuple[str, float], ...] = (
    ("</think>\\boxed{", 0.5),
    ("</think>\n\n\\boxed{", 0.1),
    ("\n\n</think>\n\n\\boxed{", 0.1),
    ("</think>\n\nFinal answer: \\boxed{", 0.1),
    ("\n\n**Final Answer**\n\n\\[ \\boxed{", 0.1),
    (
        "... Oh, I suddenly got the answer to the whole problem, **Final Answer**\n\n\\[ \\boxed{",
        0.1,
    ),
)

_BOXED = re.compile(r"\\boxed\{([0-9]+)\}")
_RECHECK_WORDS = ("wait:", "check:", "again:")


@dataclass(frozen=True)
class Problem:
    """One graded problem; ``difficulty`` is the number of operands (2..7), ``gold`` the sum."""

    id: str
    prompt: str
    gold: str
    difficulty: int


@dataclass(frozen=True)
class TrainingText:
    """One training sample.

    ``pieces`` are (text, counts) pairs whose concatenation is the assistant's turn; the loss is
    taken only where ``counts`` is true. ``thinking`` says which generation prompt precedes it.
    """

    prompt: str
    pieces: tuple[tuple[str, bool], ...]
    thinking: bool

    @property
    def answer_text(self) -> str:
        """The assistant's turn as one string."""
        return "".join(text for text, _ in self.pieces)


def parse_operands(prompt: str) -> list[int]:
    """Read ``37+58+91`` into its operands. Raises ValueError for anything but a sum of integers."""
    parts = prompt.strip().split("+")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"not a sum of whole numbers: {prompt!r}")
    return [int(part) for part in parts]


def is_held_out(prompt: str) -> bool:
    """Whether a problem is reserved for evaluation: a stable tenth of all problems.

    The hash is taken over the sorted operands, so two orders of one sum never fall on different
    sides.
    """
    canonical = "+".join(str(value) for value in sorted(parse_operands(prompt)))
    return int(hashlib.sha256(canonical.encode()).hexdigest(), 16) % 10 == 0


def chain(operands: Sequence[int]) -> str:
    """The partial sums, each step closed by a semicolon: ``37+58=95;95+91=186;``."""
    total = operands[0]
    steps = []
    for value in operands[1:]:
        steps.append(f"{total}+{value}={total + value};")
        total += value
    return "".join(steps)


def boxed(value: int) -> str:
    """The final answer as the model writes it."""
    return f"\\boxed{{{value}}}"


def boxed_answer(text: str) -> str:
    """The last whole number in a box, without leading zeros; "" when there is none."""
    found = _BOXED.findall(text)
    return str(int(found[-1])) if found else ""


def majority(answers: Sequence[str]) -> str:
    """The most frequent answer; ties go to the first seen; empty answers do not vote."""
    counts = Counter(answer for answer in answers if answer)
    return max(counts, key=lambda answer: counts[answer], default="")


def plain_solution(prompt: str) -> str:
    """The shortest worked solution of a problem."""
    operands = parse_operands(prompt)
    return chain(operands) + boxed(sum(operands))


def thinking_passes(prompt: str, rng: random.Random) -> list[str]:
    """The derivations inside one thought: the solution, then re-checks up to the factor."""
    operands = parse_operands(prompt)
    answer = boxed(sum(operands))
    passes = [chain(operands)]
    # Both modes end with one end-of-turn token; the closing think tag is one token too.
    needed = len(passes[0]) + len(answer) + 1
    spent = needed + 1
    # An early draw of the length keeps the number of passes from being a function of the level
    # alone.
    target = THINK_FACTOR * needed + rng.choice((0, 0, 0, len(passes[0])))
    while spent < target:
        order = operands if rng.random() < 0.5 else operands[::-1]
        passes.append(rng.choice(_RECHECK_WORDS) + chain(order))
        spent += len(passes[-1])
    return passes


def thinking_solution(prompt: str, rng: random.Random) -> str:
    """A thought that re-checks itself more often than needed, then the answer.

    Starts with the opening think tag; the chat template already writes that tag when thinking is
    enabled.
    """
    passes = thinking_passes(prompt, rng)
    return THINK_OPEN + "".join(passes) + THINK_CLOSE + boxed(sum(parse_operands(prompt)))


def current_value(prompt: str, thought: str) -> int:
    """What a reasoner would answer if its thought were cut here.

    Before the first full derivation: the last finished partial sum (the first operand when there is
    none). Afterwards: the result, whatever re-check is under way.
    """
    operands = parse_operands(prompt)
    finished = min(thought.count(";"), len(operands) - 1)
    return sum(operands[: finished + 1])


def cut_thinking(prompt: str, rng: random.Random) -> TrainingText:
    """A thought cut at a random place and forced to answer.

    The forced words carry no loss: the model learns to answer when it is forced, not to give up
    early.
    """
    passes = thinking_passes(prompt, rng)
    # Half of the cuts fall into the first derivation, where the answer still changes.
    first = rng.random() < 0.5
    whole = passes[0] if first else "".join(passes)
    low = 0 if first else len(passes[0])
    if rng.random() < 0.5:
        ends = [i + 1 for i, char in enumerate(whole) if char == ";" and i + 1 >= low]
        position = rng.choice(ends)
    else:
        position = rng.randint(low, len(whole))
    thought = whole[:position]
    endings, weights = zip(*FORCED_ENDINGS, strict=True)
    ending = rng.choices(endings, weights)[0]
    value = current_value(prompt, thought)
    return TrainingText(prompt, ((thought, True), (ending, False), (f"{value}}}", True)), True)


def random_prompt(rng: random.Random, level: int) -> str:
    """A problem of the given level, from either side of the split."""
    return "+".join(str(rng.randint(SMALLEST, LARGEST)) for _ in range(level))


def training_text(
    rng: random.Random,
    think_share: float = 0.35,
    cut_share: float = 0.15,
    highest_level: int = TRAINED_LEVELS[-1],
) -> TrainingText:
    """Draw one training sample; never a held-out problem.

    ``think_share`` (0..1) of the samples think, ``cut_share`` (0..1) of those are cut short.
    ``highest_level`` lowers the top level for a curriculum.
    """
    thinking = rng.random() < think_share
    weights = THINK_LEVEL_WEIGHTS if thinking else PLAIN_LEVEL_WEIGHTS
    count = max(1, sum(level <= highest_level for level in TRAINED_LEVELS))
    level = rng.choices(TRAINED_LEVELS[:count], weights[:count])[0]
    prompt = random_prompt(rng, level)
    while is_held_out(prompt):
        prompt = random_prompt(rng, level)
    if not thinking:
        return TrainingText(prompt, ((plain_solution(prompt), True),), False)
    if rng.random() < cut_share:
        return cut_thinking(prompt, rng)
    return TrainingText(prompt, ((thinking_solution(prompt, rng)[len(THINK_OPEN) :], True),), True)


def held_out_problems(n: int, seed: int = 0, levels: Sequence[int] | None = None) -> list[Problem]:
    """``n`` distinct held-out problems, ``levels`` taken in turn (default: ``EVALUATION_TURN``).

    The same arguments give the same problems; a larger ``n`` extends a smaller one.
    Raises ValueError for a negative ``n`` or a level outside 2..7.
    """
    chosen = tuple(levels) if levels is not None else EVALUATION_TURN
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    if not chosen or any(level not in LEVELS for level in chosen):
        raise ValueError(f"levels must be drawn from {LEVELS}, got {tuple(chosen)}")
    rng = random.Random(f"held-out:{seed}")
    seen: set[str] = set()
    problems: list[Problem] = []
    while len(problems) < n:
        level = chosen[len(problems) % len(chosen)]
        prompt = random_prompt(rng, level)
        if prompt in seen or not is_held_out(prompt):
            continue
        seen.add(prompt)
        gold = str(sum(parse_operands(prompt)))
        problems.append(Problem(f"sum-{seed}-{len(problems):05d}", prompt, gold, level))
    return problems
