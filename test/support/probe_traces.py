"""Made-up problems with probe traces: branches guess alike at first, then each settles."""

from __future__ import annotations

import json
import random
from typing import Any


def made_up_problem(
    seed: int, branches: int, every: int = 500, mean_tokens: int = 8000
) -> dict[str, Any]:
    """One problem as a line of a trace file.

    All branches share a first guess. Each settles on its final answer somewhere on its way, most
    in the last half; how many end with the right one is the problem's own difficulty.
    """
    rng = random.Random(f"probes:{seed}")
    right, guess = "42", rng.choice(["7", "42"])
    others = ["7", "11", "13"]
    p_right = rng.betavariate(1.6, 0.7)
    samples = []
    for _ in range(branches):
        n_tokens = max(600, round(mean_tokens * rng.lognormvariate(-0.1, 0.45)))
        answer = right if rng.random() < p_right else rng.choice(others)
        settles = n_tokens * rng.betavariate(4, 2)
        probes = []
        for at in range(every, n_tokens, every):
            shown = answer if at >= settles else guess if rng.random() < 0.7 else rng.choice(others)
            probes.append({"at": at, "answer": shown if rng.random() < 0.97 else ""})
        samples.append({"answer": answer, "n_tokens": n_tokens, "probes": probes})
    return {"id": str(seed), "gold": right, "model": "made up", "samples": samples}


def made_up_lines(problems: int, branches: int, **kwargs: Any) -> str:
    """A trace file of such problems."""
    made = (made_up_problem(seed, branches, **kwargs) for seed in range(problems))
    return "".join(json.dumps(problem) + "\n" for problem in made)
