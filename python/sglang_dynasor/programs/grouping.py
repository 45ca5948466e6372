"""Which answers of a program count as one, by its answer format and the server's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sglang_dynasor.certaindex import AnswerGroups, MathEquality, canonical_key
from sglang_dynasor.certaindex.embedding import EmbeddingGroups
from sglang_dynasor.config import DynasorConfig

# Where an answer may be a formula; the others are numbers, letters, code or prose.
_FORMULA_FORMATS = ("boxed", "regex")


@dataclass(frozen=True, slots=True)
class Grouping:
    """`key_of` gives the group of an answer; `slow` says that it may take its time."""

    key_of: Callable[[str], str]
    slow: bool


def grouping_of(
    answer_format: str, config: DynasorConfig, equality: MathEquality | None
) -> Grouping:
    """The grouping of one program: by algebra, by meaning, or by spelling and exact number."""
    if equality is not None and answer_format in _FORMULA_FORMATS:
        return Grouping(AnswerGroups(equality).key, slow=True)
    if config.embeddings_threshold and answer_format == "text":
        return Grouping(EmbeddingGroups(config.embeddings_threshold).key, slow=True)
    return Grouping(canonical_key, slow=False)
