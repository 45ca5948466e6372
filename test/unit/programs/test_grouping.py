"""Which grouping a program's answers get."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_dynasor.certaindex import MathEquality
from sglang_dynasor.certaindex import embedding as embedding_module
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs import grouping_of


@pytest.mark.parametrize("answer_format", ["number", "choice", "json", "code", "text"])
def test_formats_without_formulas_are_grouped_by_spelling_at_once(answer_format: str) -> None:
    with MathEquality() as equality:
        grouping = grouping_of(answer_format, DynasorConfig(), equality)
    assert not grouping.slow
    assert grouping.key_of("0.50") == grouping.key_of("1/2")


def test_formulas_are_grouped_by_algebra() -> None:
    with MathEquality() as equality:
        grouping = grouping_of("boxed", DynasorConfig(), equality)
        assert grouping.slow
        assert grouping.key_of("x+1") == grouping.key_of("1+x") != grouping.key_of("x+2")
    assert not grouping_of("boxed", DynasorConfig(), None).slow


def test_open_answers_are_grouped_by_meaning_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang_dynasor.config.find_spec", lambda name: "found")
    vectors = {"a cat": (1.0, 0.0), "one cat": (0.8, 0.6), "a dog": (0.0, 1.0)}
    monkeypatch.setattr(embedding_module, "embedding", lambda text: np.array(vectors[text]))
    grouping = grouping_of("text", DynasorConfig(embeddings_threshold=0.75), None)
    assert grouping.slow
    keys = [grouping.key_of(text) for text in vectors]
    assert keys[0] == keys[1] != keys[2]
