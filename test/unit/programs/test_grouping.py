"""Which grouping a program's answers get."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from sglang_dynasor.certaindex import MathEquality
from sglang_dynasor.certaindex import embedding as embedding_module
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import Grouping, grouping_of


def keys_of(grouping: Grouping, *answers: str) -> list[str]:
    for answer in answers:
        asyncio.run(grouping.prepare(answer))
    return [grouping.key(answer) for answer in answers]


@pytest.mark.parametrize("answer_format", ["number", "choice", "json", "code", "text"])
def test_formats_without_formulas_are_grouped_by_spelling_at_once(answer_format: str) -> None:
    with MathEquality() as equality:
        grouping = grouping_of(answer_format, DynasorConfig(), equality)
    assert grouping.key("0.50") == grouping.key("1/2")


def test_formulas_are_grouped_by_algebra() -> None:
    with MathEquality() as equality:
        grouping = grouping_of("boxed", DynasorConfig(), equality)
        first, second, other = keys_of(grouping, "x+1", "1+x", "x+2")
    assert first == second != other
    grouping = grouping_of("boxed", DynasorConfig(), None)
    assert len(set(keys_of(grouping, "x+1", "1+x"))) == 2


def test_open_answers_are_grouped_by_meaning_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang_dynasor.config.find_spec", lambda name: "found")
    vectors = {"a cat": (1.0, 0.0), "one cat": (0.8, 0.6), "a dog": (0.0, 1.0)}
    monkeypatch.setattr(embedding_module, "embedding", lambda text: np.array(vectors[text]))
    grouping = grouping_of("text", DynasorConfig(embeddings_threshold=0.75), None)
    keys = keys_of(grouping, *vectors)
    assert keys[0] == keys[1] != keys[2]
