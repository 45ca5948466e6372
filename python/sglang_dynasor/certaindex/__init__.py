"""How certain a program is: answers, their agreement, and the certaindex as branches finish."""

from sglang_dynasor.certaindex.answers import (
    ANSWER_FORMATS,
    MAX_PATTERN_LENGTH,
    canonical_key,
    check_pattern,
    extract_answer,
)
from sglang_dynasor.certaindex.entropy import path_agreement, window_agreement
from sglang_dynasor.certaindex.tracker import CertaindexTracker, Evidence, Vote

__all__ = [
    "ANSWER_FORMATS",
    "MAX_PATTERN_LENGTH",
    "CertaindexTracker",
    "Evidence",
    "Vote",
    "canonical_key",
    "check_pattern",
    "extract_answer",
    "path_agreement",
    "window_agreement",
]
