"""The confidence bar of a trace: where its most confident branches are, and who is below."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_dynasor.certaindex import keep_top_threshold
from sglang_dynasor.offline.traces import TraceProblem, TraceSample


def recorded_bar(problems: Sequence[TraceProblem], keep_top: float) -> tuple[float, int]:
    """Return the bar of a trace in nats, and the tokens of the groups it is for.

    The `keep_top` (0 to 1) most confident recorded branches reach it, of those with a full group:
    the others can't be pruned. Raises ValueError where certainty was not recorded, or not in groups
    of one size.
    """
    unmeasured = [problem.id for problem in problems if problem.certainty is None]
    sizes = sorted({problem.certainty.group_tokens for problem in problems if problem.certainty})
    if unmeasured or len(sizes) != 1:
        found = f"problem {unmeasured[0]} has none" if unmeasured else f"groups of {sizes}"
        raise ValueError(f"keep_top needs traces with token certainty in one group size: {found}")
    lowest = [
        confidence
        for problem in problems
        for sample in problem.samples
        if (confidence := _lowest_full_group(sample, problem)) is not None
    ]
    return keep_top_threshold(lowest, keep_top), sizes[0]


def is_below(bar: float | None, sample: TraceSample, problem: TraceProblem) -> bool:
    """Whether the bar would have pruned a recorded branch."""
    lowest = _lowest_full_group(sample, problem)
    return bar is not None and lowest is not None and lowest < bar


def _lowest_full_group(sample: TraceSample, problem: TraceProblem) -> float | None:
    if sample.certainty is None or problem.certainty is None:
        return None
    full = sample.n_tokens >= problem.certainty.group_tokens
    return sample.certainty["lowest_group"] if full else None
