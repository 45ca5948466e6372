"""Agreement between answers: the entropy form for paths, the window form for one chain of thought.

Paper sections 2.1 (C_k), 3.1 and B.1 (H~).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

from sglang_dynasor.certaindex.canonical import canonical_key

# Thresholds are met with >=, so 8 against 8 of 16 must be 0.75 and not 0.7499999999999999.
AGREEMENT_DIGITS = 9
_FIXED_POINT = 1 << 48


def path_agreement(counts: Iterable[int]) -> float:
    """Return H~ = (log n - H) / log n of n paths in groups of these sizes, rounded to 1e-9.

    0 = all answers differ, 1 = all are equal; n <= 1 is no evidence and gives 0. Zero counts
    change nothing. Raises ValueError on a negative count.
    """
    sizes = list(counts)
    if any(size < 0 for size in sizes):
        raise ValueError(f"counts must not be negative: {sizes}")
    return agreement(sum(c_log_c(size) for size in sizes), sum(sizes))


@lru_cache(maxsize=4096)
def c_log_c(count: int) -> int:
    """Return count * log(count) in fixed point: integer sums are the same in any order."""
    return round(_FIXED_POINT * count * math.log(count)) if count > 1 else 0


def agreement(sum_c_log_c: int, paths: int) -> float:
    """Return H~ from the summed `c_log_c` of the groups: sum(c log c) / (n log n)."""
    return round(sum_c_log_c / c_log_c(paths), AGREEMENT_DIGITS) if paths > 1 else 0.0


def window_agreement(answers: Sequence[str], window: int) -> float:
    """Return C_k: the share of the last `window` probe answers that equal the last one.

    Empty answers, and probes not made yet, are misses; an empty last answer gives 0. Raises
    ValueError where `window` is below 1.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    keys = [canonical_key(answer) for answer in answers[-window:]]
    if not keys or not keys[-1]:
        return 0.0
    return round(keys.count(keys[-1]) / window, AGREEMENT_DIGITS)
