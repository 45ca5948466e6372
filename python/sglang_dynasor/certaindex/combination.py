"""Several measures as one verdict: certain only if each of them says so (paper B.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sglang_dynasor.certaindex.entropy import AGREEMENT_DIGITS


@dataclass(frozen=True, slots=True)
class CombinedCertainty:
    """`certain` and, by measure, whether its threshold was met; None where it was not measured."""

    certain: bool
    met: dict[str, bool | None]


def combine(
    measures: Mapping[str, float | None], thresholds: Mapping[str, float]
) -> CombinedCertainty:
    """Compare each measure (0 to 1, None: not measured) with its own threshold by >=.

    Without any threshold nothing is certain, and a measure that is missing is not met. Raises
    ValueError for a threshold outside 0 to 1.
    """
    met: dict[str, bool | None] = {}
    for name, threshold in thresholds.items():
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold of {name} must be between 0 and 1, not {threshold}")
        value = measures.get(name)
        met[name] = (
            None
            if value is None
            else (round(value, AGREEMENT_DIGITS) >= round(threshold, AGREEMENT_DIGITS))
        )
    return CombinedCertainty(bool(met) and all(value is True for value in met.values()), met)
