"""Fingerprints: whether two short answers are mathematically the same answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sglang_dynasor.certaindex.canonical import canonical_key

_RATIONAL = re.compile(r"-?[0-9]+(?:/[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What one answer says: equal text means equal answers.

    `name` is the unknown where the answer is one assignment or an inequality of one variable
    ("x = 3", "x < 3"), else None.
    """

    value: str
    name: str | None = None


def fingerprint(answer: str) -> Fingerprint | None:
    """Return the fingerprint, or None where the answer is not wholly understood."""
    key = canonical_key(answer)
    return Fingerprint(key) if _RATIONAL.fullmatch(key) else None


def same(a: Fingerprint, b: Fingerprint) -> bool:
    """Say whether two answers are equal; "x = 3" equals "3", but not "y = 3"."""
    return a.value == b.value and (a.name == b.name or None in (a.name, b.name))
