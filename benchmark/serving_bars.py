"""What the package promises over lpm_fixed, checked on a result of the serving benchmark."""

from __future__ import annotations

from typing import Any

# System, load, statistic, highest ratio to lpm_fixed.
RATIO_BARS = (
    ("full", 0.5, "mean", 1.0),
    ("full", 0.5, "p95", 1.0),
    ("full", 0.9, "mean", 0.7),
    ("full", 0.9, "p95", 1.0),
    ("full", 1.2, "mean", 0.25),
    ("gang_sjf_fixed", 0.9, "mean", 0.8),
    ("gang_sjf_fixed", 0.9, "p99", 1.1),
)
MIX_BARS = (("full", 0.9, "mean", 0.6), ("full", 0.9, "p95", 1.0))
HIGHEST_HARM_BOUND = 0.01
LEAST_RATE_GAIN = 1.8
LEAST_GAIN_OVER_TOKENS = 1.05  # order must add to what stopping gives
TOKEN_LOAD = 0.9


def bars(result: dict[str, Any]) -> dict[str, bool]:
    """Each bar and whether it is met; one whose system, load or search was not run is absent."""
    loads, ratios = result["loads"], result["ratios"]
    asked = MIX_BARS if "kinds" in result else RATIO_BARS
    met = {
        f"{system} {statistic} at load {load} at most {bar}": (
            ratios[system][statistic][loads.index(load)][0] <= bar
        )
        for system, load, statistic, bar in asked
        if system in ratios and load in loads
    }
    if {"full", "client_side"} <= ratios.keys():
        ours, theirs = (result[name]["p95_latency_s"] for name in ("full", "client_side"))
        met["full p95 below client_side's at every load"] = all(
            own < other for own, other in zip(ours, theirs, strict=True)
        )
    for load, entry in zip(loads, result.get("harm", ()), strict=False):
        met[f"harm bound at load {load} at most {HIGHEST_HARM_BOUND}"] = (
            entry["harm_bound"] <= HIGHEST_HARM_BOUND
        )
    gain = result.get("rate_gain_at_p90")
    if gain is None:
        return met
    met[f"rate gain at least {LEAST_RATE_GAIN}"] = gain >= LEAST_RATE_GAIN
    if TOKEN_LOAD in loads:
        tokens = result["token_ratio"][loads.index(TOKEN_LOAD)]
        met[f"rate gain at least {LEAST_GAIN_OVER_TOKENS} x token ratio"] = (
            gain >= LEAST_GAIN_OVER_TOKENS * tokens
        )
    if result.get("rate_gain_client_side") is not None:
        met["rate gain above client_side's"] = gain > result["rate_gain_client_side"]
    return met
