"""Groups of mathematically equal answers, the same whatever the order of the answers."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from sglang_dynasor.certaindex.canonical import canonical_key
from sglang_dynasor.certaindex.equality import Verdict

# A program whose answers keep the algebra busy goes on without it: each costs up to two limits.
MAX_UNANSWERED = 3


class Equality(Protocol):
    """What says what an answer is, such as `MathEquality`."""

    def verdict(self, answer: str) -> Verdict: ...

    async def verdict_async(self, answer: str) -> Verdict: ...


class AnswerGroups:
    """Gives each answer of one program the key of its group.

    Answers are one group where their `canonical_key` is the same, or their fingerprints have the
    same value; those that name an unknown ("x = 3", "3") only as long as it is the same one. Once
    there is "y = 3" too, "x = 3", "y = 3" and "3" are three groups: what equals two that differ
    joins neither. So the groups follow from the set of answers seen, not from their order, and a
    later answer can take a group apart: `revision` then rises, and keys must be asked for again.

    An answer without a verdict is grouped by its spelling. After 3 of them a program asks no
    further questions; only which those are depends on the order. Without `equality` the key is
    `canonical_key`. One caller at a time.
    """

    def __init__(self, equality: Equality | None = None) -> None:
        self.revision = 0
        self._equality = equality
        self._verdicts: dict[str, Verdict] = {}  # of each canonical key
        self._names: dict[str, set[str]] = {}  # of each value
        self._unanswered: Counter[str] = Counter()

    def key(self, answer: str) -> str:
        """Return the key of the answer's group, "" where there is no answer.

        Where `prepare` has not asked before, this waits for the verdict.
        """
        key = canonical_key(answer)
        if self._equality is None or not key:
            return key
        if key not in self._verdicts and self._may_ask(key):
            self._take(key, self._equality.verdict(key))
        return self._group(key)

    async def prepare(self, answer: str) -> None:
        """Ask what `key` needs to know; cancelled, it leaves the answer to its spelling."""
        key = canonical_key(answer)
        if self._equality is None or not key or key in self._verdicts or not self._may_ask(key):
            return
        verdict = None
        try:
            verdict = await self._equality.verdict_async(key)
        finally:
            self._take(key, verdict)

    @property
    def inactive(self) -> str:
        """How many answers had no verdict and were left to their spelling, and why; or ""."""
        if not self._unanswered:
            return ""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._unanswered.items())
        return f"answers compared by spelling only: {reasons}"

    def _may_ask(self, key: str) -> bool:
        if self._unanswered.total() < MAX_UNANSWERED:
            return True
        self._unanswered["came after too many without a verdict"] += 1
        self._verdicts[key] = Verdict()
        return False

    def _take(self, key: str, verdict: Verdict | None) -> None:
        if verdict is None:
            self._unanswered["came with the deadline"] += 1
        elif verdict.fault is not None:
            self._unanswered[verdict.fault] += 1
        self._verdicts[key] = verdict or Verdict()
        found = self._verdicts[key].fingerprint
        if found is None:
            return
        names = self._names.setdefault(found.value, set())
        if found.name is not None and found.name not in names:
            names.add(found.name)
            self.revision += len(names) == 2

    def _group(self, key: str) -> str:
        found = self._verdicts[key].fingerprint
        if found is None:
            return key
        # Marked, for a value may be spelled like an answer that nobody understood.
        group = f"\0{found.value}"
        if found.name is not None and len(self._names[found.value]) > 1:
            group += f"\0{found.name}"
        return group
