"""A world of chains of steps, for searches without an engine: each step may go wrong, for good."""

from __future__ import annotations

import random

from sglang_dynasor.programs import Finished, Start

STEP_TOKENS = 9
ANSWER_TOKENS = 5
RIGHT = "1"


class ArithmeticWorld:
    """Paths of `depth` steps, each right with probability `p_right`, by `seed` and name alone.

    A reward is near 0.9 where all steps so far are right, near 0.1 elsewhere; None where the
    reward model is `dead`.
    """

    def __init__(
        self, seed: int = 0, depth: int = 4, p_right: float = 0.9, *, dead: bool = False
    ) -> None:
        self.starts: list[Start] = []
        self.rewards: dict[str, float] = {}
        self._seed = seed
        self._depth = depth
        self._p_right = p_right
        self._dead = dead
        self._paths: dict[str | None, tuple[bool, int]] = {None: (True, 0)}

    def generate(self, start: Start) -> Finished:
        """A step where the start has a stop, otherwise the rest of the path and its answer."""
        self.starts.append(start)
        rng = random.Random(f"{self._seed}/{start.node}")
        right, depth = self._paths[start.parent]
        last = self._depth if not start.stop else depth + 1
        n_tokens = 0
        while depth < last:
            right = right and rng.random() < self._p_right
            depth += 1
            n_tokens += STEP_TOKENS
        self._paths[start.node] = right, depth
        if depth < self._depth:
            return Finished(start.node, "", n_tokens, "completed", matched_stop=start.stop)
        answer = RIGHT if right else str(rng.randint(2, 9))
        return Finished(start.node, "", n_tokens + ANSWER_TOKENS, "completed", answer, group=answer)

    def reward(self, node: str) -> float | None:
        if self._dead:
            return None
        rng = random.Random(f"reward {self._seed}/{node}")
        right, _ = self._paths[node]
        self.rewards[node] = min(1.0, max(0.0, (0.9 if right else 0.1) + rng.gauss(0, 0.05)))
        return self.rewards[node]
