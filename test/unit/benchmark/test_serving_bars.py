"""The bars of the serving benchmark, on results written by hand."""

from __future__ import annotations

from typing import Any

from serving_bars import bars


def result_with(**changes: Any) -> dict[str, Any]:
    ratio = {name: [[0.2, 0.1, 0.3]] * 2 for name in ("mean", "p50", "p95", "p99")}
    return {
        "loads": [0.5, 0.9],
        "ratios": {"full": ratio, "client_side": ratio},
        "full": {"p95_latency_s": [1.0, 2.0]},
        "client_side": {"p95_latency_s": [1.5, 2.5]},
        "harm": [{"harm_bound": 0.009}] * 2,
        "token_ratio": [2.9, 3.0],
        "rate_gain_at_p90": 3.2,
        "rate_gain_client_side": 2.5,
        **changes,
    }


def test_all_bars_of_what_was_run_are_met() -> None:
    met = bars(result_with())
    assert all(met.values())
    assert len(met) == 4 + 1 + 2 + 3
    assert not any("1.2" in name or "gang" in name for name in met)


def test_each_failure_is_seen_under_its_own_name() -> None:
    slow = {name: [[1.1, 1.0, 1.2]] * 2 for name in ("mean", "p50", "p95", "p99")}
    failing = {
        name
        for changes in (
            {"ratios": {"full": slow, "client_side": slow}},
            {"client_side": {"p95_latency_s": [1.5, 1.9]}},
            {"harm": [{"harm_bound": 0.009}, {"harm_bound": 0.02}]},
            {"token_ratio": [1.0, 3.1]},
            {"rate_gain_at_p90": 1.7, "token_ratio": [1.0, 1.0]},
        )
        for name, met in bars(result_with(**changes)).items()
        if not met
    }
    assert failing == {
        "full mean at load 0.5 at most 1.0",
        "full p95 at load 0.5 at most 1.0",
        "full mean at load 0.9 at most 0.7",
        "full p95 at load 0.9 at most 1.0",
        "full p95 below client_side's at every load",
        "harm bound at load 0.9 at most 0.01",
        "rate gain at least 1.05 x token ratio",
        "rate gain at least 1.8",
        "rate gain above client_side's",
    }


def test_without_a_search_there_is_no_bar_on_the_rate() -> None:
    result = result_with()
    del result["rate_gain_at_p90"]
    assert not any("rate gain" in name for name in bars(result))
