"""Groups of mathematically equal answers, one answer after another."""

from __future__ import annotations

import time
from typing import Protocol

from sglang_dynasor.certaindex.canonical import canonical_key

MAX_COMPARED_GROUPS = 16
# A program whose answers keep the algebra busy goes on without it: one costs up to a time limit
# and a new worker per group.
_COMPARISON_BUDGET_S = 5.0


class Equality(Protocol):
    """What says that two answers are equal, such as `MathEquality`."""

    def equal(self, first: str, second: str) -> bool: ...


class AnswerGroups:
    """Gives each answer of one program the key of its group; a key never changes.

    An answer with a new `canonical_key` joins the first group whose first answer `equality` finds
    equal to it, of the 16 oldest groups, as long as the comparisons took less than 5 seconds in
    all; else its canonical key names a group of its own. So groups never merge, and the order of
    answers decides their names and, where `equality` is not transitive, who belongs to whom.
    Without `equality` the key is `canonical_key`. One caller at a time.
    """

    def __init__(self, equality: Equality | None = None) -> None:
        self._equality = equality
        self._group_keys: dict[str, str] = {}  # of each canonical key
        self._first_answers: dict[str, str] = {}  # of each group
        self._compared_s = 0.0

    def key(self, answer: str) -> str:
        """Return the key of the answer's group, "" where there is no answer.

        Raises what `equality` raises, RuntimeError in the case of MathEquality.
        """
        key = canonical_key(answer)
        if not key or self._equality is None:
            return key
        if key not in self._group_keys:
            group = self._equal_group(answer, self._equality) or key
            self._group_keys[key] = group
            self._first_answers.setdefault(group, answer)
        return self._group_keys[key]

    def _equal_group(self, answer: str, equality: Equality) -> str | None:
        for group in list(self._first_answers)[:MAX_COMPARED_GROUPS]:
            if self._compared_s >= _COMPARISON_BUDGET_S:
                return None
            start = time.monotonic()
            equal = equality.equal(self._first_answers[group], answer)
            self._compared_s += time.monotonic() - start
            if equal:
                return group
        return None
