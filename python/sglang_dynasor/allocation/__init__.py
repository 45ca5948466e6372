"""How much a program gets: stop rules, branch rules, grants, and what a branch is worth."""

from sglang_dynasor.allocation.branch_rules import BranchRule, BranchRules, TokenStop
from sglang_dynasor.allocation.budget_pool import BudgetPool
from sglang_dynasor.allocation.confidence_bar import ConfidenceBar
from sglang_dynasor.allocation.decision import Decision, RuleStop
from sglang_dynasor.allocation.demand import Demand
from sglang_dynasor.allocation.grants import (
    AdaptiveGrants,
    FixedGrants,
    GrantPolicy,
    parse_grants,
)
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
    "BetaRule",
    "BranchRule",
    "BranchRules",
    "BudgetPool",
    "ConfidenceBar",
    "DecidedRule",
    "Decision",
    "DeepConfRule",
    "Demand",
    "DirichletRule",
    "DynasorRule",
    "EProcessRule",
    "EscRule",
    "FixedGrants",
    "GrantPolicy",
    "HopelessRule",
    "RuleStop",
    "SprtRule",
    "StopRule",
    "ThresholdRule",
    "TokenStop",
    "branch_values",
    "expected_gain",
    "make_rule",
    "parse_grants",
]
