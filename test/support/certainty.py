"""Per-token certainty against log probabilities of the same request."""

from __future__ import annotations

from typing import Any

import pytest

TOP_K = 20
WITH_LOGPROBS: dict[str, Any] = {"return_logprob": True, "top_logprobs_num": TOP_K}


def assert_measured(output: dict[str, Any]) -> None:
    """Every token has its own values, and the fold counts each once.

    Upstream's log probabilities come from the same logits by another way: they must agree token by
    token. The request is to be sent with `WITH_LOGPROBS`, at temperature 0 or 1.
    """
    meta = output["meta_info"]
    report = meta["dynasor"]
    values = report["token_certainty"]
    confidence = [
        -sum(logprob for logprob, *_ in likeliest) / len(likeliest)
        for likeliest in meta["output_top_logprobs"]
    ]
    assert len(confidence) == meta["completion_tokens"] > 0
    assert values["confidence"] == pytest.approx(confidence, abs=1e-3)
    best = [likeliest[0][0] for likeliest in meta["output_top_logprobs"]]
    assert [pytest.approx(p, rel=1e-3) for p in values["top1_probability"]] == [
        2.718281828459045**logprob for logprob in best
    ]
    assert {len(column) for column in values.values()} == {len(confidence)}
    summary = report["certainty"]
    assert summary["tokens"] == len(confidence)
    assert summary["mean"] == pytest.approx(sum(confidence) / len(confidence), abs=1e-3)


# Every branch writes one character for ever.
LOOPING = {"temperature": 1.0, "max_new_tokens": 300, "ignore_eos": True, "logit_bias": {"40": 100}}
PRUNED_AT_ONCE = {
    "algorithm": "self_consistency",
    "max_branches": 6,
    "min_branches": 2,
    "grants": "6",
    "branch_rule": "deepconf",
    "confidence_bar": 1000.0,
    "detail": "branches",
}
# Under overlap scheduling a running branch commits at most two tokens after the decision.
LATE_TOKENS = 2


def assert_pruned(report: dict[str, Any], group_tokens: int) -> None:
    """The branches that may be pruned ended with their first full group, without a vote."""
    details = report["branch_details"]
    assert [item["stop_reason"] for item in details[2:]] == ["pruned"] * (len(details) - 2)
    assert len(details) > 2
    for item in details[2:]:
        assert group_tokens <= item["tokens"] <= group_tokens + LATE_TOKENS
    assert not {"pruned"} & {item["stop_reason"] for item in details[:2]}
    assert sum(vote["count"] for vote in report["votes"]) <= 2
