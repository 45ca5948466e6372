"""How many tokens a branch will take: program locality with a learned prior (paper D.3.1).

The paper takes the mean of the program's own finished branches and leaves the cold start open.
Here that mean is shrunk toward a prior learned from finished branches of other programs: per class
(algorithm and profile) and prompt length, for longer questions tend to have longer answers.
"""

from __future__ import annotations

from dataclasses import dataclass

COLD_START_TOKENS = 256.0  # before anything has finished
_OWN_WEIGHT = 2.0  # branches the prior counts as, against a program's own
_BUCKET_WEIGHT = 4.0  # branches the class mean counts as, against its length bucket's
_MEMORY = 512.0  # branches after which the past fades: workloads change
_BUCKETS_PER_OCTAVE = 4  # of prompt length


@dataclass(slots=True)
class _Mean:
    count: float = 0.0
    total: float = 0.0

    def add(self, tokens: int) -> None:
        if self.count >= _MEMORY:
            keep = 1 - 1 / _MEMORY
            self.count *= keep
            self.total *= keep
        self.count += 1
        self.total += tokens

    def shrunk(self, prior: float, weight: float) -> float:
        return (self.total + prior * weight) / (self.count + weight)


class TokenPrior:
    """Mean tokens of finished branches per class, and per class and prompt length.

    Deterministic: the same branches in the same order give the same numbers on every rank.
    """

    def __init__(self) -> None:
        self._classes: dict[str, _Mean] = {}
        self._buckets: dict[tuple[str, int], _Mean] = {}

    def add(self, branch_class: str, prompt_tokens: int, tokens: int) -> None:
        """Count a finished branch that generated `tokens`."""
        self._classes.setdefault(branch_class, _Mean()).add(tokens)
        key = (branch_class, _bucket(prompt_tokens))
        self._buckets.setdefault(key, _Mean()).add(tokens)

    def tokens(self, branch_class: str, prompt_tokens: int) -> float:
        """Expected tokens of a branch of which nothing is known but class and prompt length."""
        overall = self._classes.get(branch_class)
        if overall is None:
            return COLD_START_TOKENS
        mean = overall.total / overall.count
        bucket = self._buckets.get((branch_class, _bucket(prompt_tokens)))
        return mean if bucket is None else bucket.shrunk(mean, _BUCKET_WEIGHT)


def own_mean(finished: int, tokens: int, prior: float) -> float:
    """Expected tokens of a program's next branch, given its `finished` ones and their `tokens`."""
    return _Mean(finished, tokens).shrunk(prior, _OWN_WEIGHT)


def _bucket(prompt_tokens: int) -> int:
    """Whole part of log2(length) * 4, in integers: equal on every machine."""
    # (2 ** (bucket / 4)) ** 4 = 2 ** bucket, so the bit length of length ** 4 tells it.
    return (max(prompt_tokens, 1) ** _BUCKETS_PER_OCTAVE).bit_length() - 1
