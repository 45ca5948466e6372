"""How certain a program is: answers, their agreement, and the certaindex as branches finish."""

from sglang_dynasor.certaindex.answer_groups import AnswerGroups
from sglang_dynasor.certaindex.answers import (
    ANSWER_FORMATS,
    MAX_PATTERN_LENGTH,
    canonical_key,
    check_pattern,
    extract_answer,
)
from sglang_dynasor.certaindex.certainty_table import CertaintyTable
from sglang_dynasor.certaindex.combination import CombinedCertainty, combine
from sglang_dynasor.certaindex.entropy import path_agreement, window_agreement
from sglang_dynasor.certaindex.equality import MathEquality
from sglang_dynasor.certaindex.reward import (
    REWARD_OF_ALGORITHM,
    aggregate_reward,
    normalised_reward,
)
from sglang_dynasor.certaindex.token_certainty import (
    CERTAINTY_GROUP_TOKENS,
    CERTAINTY_TOP_K,
    TokenCertainty,
    keep_top_threshold,
)
from sglang_dynasor.certaindex.tracker import CertaindexTracker, Evidence, Vote
from sglang_dynasor.certaindex.weighted_tracker import WeightedTracker

__all__ = [
    "ANSWER_FORMATS",
    "CERTAINTY_GROUP_TOKENS",
    "CERTAINTY_TOP_K",
    "MAX_PATTERN_LENGTH",
    "REWARD_OF_ALGORITHM",
    "AnswerGroups",
    "CertaindexTracker",
    "CertaintyTable",
    "CombinedCertainty",
    "Evidence",
    "MathEquality",
    "TokenCertainty",
    "Vote",
    "WeightedTracker",
    "aggregate_reward",
    "canonical_key",
    "check_pattern",
    "combine",
    "extract_answer",
    "keep_top_threshold",
    "normalised_reward",
    "path_agreement",
    "window_agreement",
]
