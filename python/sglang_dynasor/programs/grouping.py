"""Which answers of a program count as one, by its answer format and the server's settings."""

from __future__ import annotations

from typing import Protocol

from sglang_dynasor.certaindex import AnswerGroups, MathEquality
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


def grouping_of(
    answer_format: str, config: DynasorConfig, equality: MathEquality | None
) -> Grouping:
    """The grouping of one program: by algebra, by meaning, or by spelling and exact number."""
    if equality is not None and answer_format in _FORMULA_FORMATS:
        return AnswerGroups(equality)
    if config.embeddings_threshold and answer_format == "text":
        return EmbeddingGroups(config.embeddings_threshold)
    return AnswerGroups()
