r"""Fingerprints: whether two short answers are mathematically the same answer.

Each answer is read alone, strictly, and evaluated at points that its own letters decide; what is
equal has the same text. So equality is transitive and knows no order, but for "3", which is both
"x = 3" and "y = 3". A false merge counts disagreement as agreement, so whatever has two readings,
or can't be checked, has no fingerprint: then the spelling decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from sglang_dynasor.certaindex.canonical import canonical_key
from sglang_dynasor.certaindex.formula import Unclear
from sglang_dynasor.certaindex.structure import meaning

MAX_ANSWER_LENGTH = 300  # characters


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What one answer says: equal `value` means equal answers, up to the name.

    `name` is the unknown where the answer is about one alone ("x = 3", "x < 3"), else None.
    """

    value: str
    name: str | None = None


def fingerprint(answer: str) -> Fingerprint | None:
    """Return the fingerprint, or None where the answer is not wholly understood or checkable.

    Takes milliseconds, and of an answer above 300 characters nothing. Depends on nothing but
    `canonical_key(answer)`.
    """
    text = canonical_key(answer)
    if not text or len(text) > MAX_ANSWER_LENGTH:
        return None
    try:
        found = meaning(text)
    except Unclear:
        return None
    return Fingerprint(blake2b(found.text.encode(), digest_size=16).hexdigest(), found.name)


def same(a: Fingerprint, b: Fingerprint) -> bool:
    """Say whether two answers are equal; "x = 3" equals "3", but not "y = 3"."""
    return a.value == b.value and (a.name == b.name or None in (a.name, b.name))
