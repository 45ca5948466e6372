"""Which answers of a program count as one, by its answer format and the server's settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from sglang_dynasor.certaindex import AnswerGroups, MathEquality, canonical_key
from sglang_dynasor.certaindex.embedding import EmbeddingGroups
from sglang_dynasor.config import DynasorConfig

# Where an answer may be a formula; the others are numbers, letters, code or prose.
_FORMULA_FORMATS = ("boxed", "regex")


class Grouping(Protocol):
    """The groups of one program's answers.

    `key` names the group of an answer, at once where `prepare` was awaited before. Where
    `revision` rises, keys given earlier have changed. `inactive` says what could not work, or "".
    """

    @property
    def revision(self) -> int: ...

    @property
    def inactive(self) -> str: ...

    def key(self, answer: str) -> str: ...

    async def prepare(self, answer: str) -> None: ...


class _Keys:
    """Keys that take their time are found in a thread, and kept."""

    revision = 0

    def __init__(self, key_of: Callable[[str], str], slow: bool) -> None:
        self._key_of = key_of
        self._slow = slow
        self._keys: dict[str, str] = {}
        self._unasked = 0

    @property
    def inactive(self) -> str:
        return f"{self._unasked} answers were compared by spelling only" if self._unasked else ""

    def key(self, answer: str) -> str:
        if answer not in self._keys:
            self._keys[answer] = self._key_of(answer)
        return self._keys[answer]

    async def prepare(self, answer: str) -> None:
        if not self._slow or answer in self._keys:
            return
        try:
            self._keys[answer] = await asyncio.to_thread(self._key_of, answer)
        except asyncio.CancelledError:
            self._unasked += 1
            self._keys[answer] = canonical_key(answer)
            raise


def grouping_of(
    answer_format: str, config: DynasorConfig, equality: MathEquality | None
) -> Grouping:
    """The grouping of one program: by algebra, by meaning, or by spelling and exact number."""
    if equality is not None and answer_format in _FORMULA_FORMATS:
        return _Keys(AnswerGroups(equality).key, slow=True)
    if config.embeddings_threshold and answer_format == "text":
        return _Keys(EmbeddingGroups(config.embeddings_threshold).key, slow=True)
    return _Keys(canonical_key, slow=False)
