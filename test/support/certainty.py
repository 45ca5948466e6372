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
