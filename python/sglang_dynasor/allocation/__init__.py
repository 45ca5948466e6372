"""How much a program gets: stop rules, grant policies, and their replay on recorded samples."""

from sglang_dynasor.allocation.branch_rules import BranchRule, BranchRules, TokenStop
from sglang_dynasor.allocation.budget_pool import BudgetPool
from sglang_dynasor.allocation.confidence_bar import ConfidenceBar
from sglang_dynasor.allocation.curve import CurvePoint, cheapest_equal, fixed_curve
from sglang_dynasor.allocation.decision import Decision, RuleStop
from sglang_dynasor.allocation.grants import (
    AdaptiveGrants,
    FixedGrants,
    GrantPolicy,
    parse_grants,
)
from sglang_dynasor.allocation.policies import AllocationPolicy, run_policy
from sglang_dynasor.allocation.replay import Outcome, Sample, full_vote, replay
from sglang_dynasor.allocation.rules import (
    RULES,
    WEIGHT_RULES,
    BetaRule,
    DecidedRule,
    DeepConfRule,
    DirichletRule,
    DynasorRule,
    EProcessRule,
    EscRule,
    HopelessRule,
    SprtRule,
    StopRule,
    ThresholdRule,
    make_rule,
)
from sglang_dynasor.allocation.value import branch_values, expected_gain

__all__ = [
    "RULES",
    "WEIGHT_RULES",
    "AdaptiveGrants",
    "AllocationPolicy",
    "BetaRule",
    "BranchRule",
    "BranchRules",
    "BudgetPool",
    "ConfidenceBar",
    "CurvePoint",
    "DecidedRule",
    "Decision",
    "DeepConfRule",
    "DirichletRule",
    "DynasorRule",
    "EProcessRule",
    "EscRule",
    "FixedGrants",
    "GrantPolicy",
    "HopelessRule",
    "Outcome",
    "RuleStop",
    "Sample",
    "SprtRule",
    "StopRule",
    "ThresholdRule",
    "TokenStop",
    "branch_values",
    "cheapest_equal",
    "expected_gain",
    "fixed_curve",
    "full_vote",
    "make_rule",
    "parse_grants",
    "replay",
    "run_policy",
]
