"""The same programs on recorded samples: traces, replay, the fixed vote, and calibration."""

from sglang_dynasor.offline.curve import CurvePoint, cheapest_equal, fixed_curve
from sglang_dynasor.offline.replay import Contender, Order, Sample, Samples, full_vote, replay
from sglang_dynasor.offline.traces import TraceProblem, TraceSample, read_traces

__all__ = [
    "Contender",
    "CurvePoint",
    "Order",
    "Sample",
    "Samples",
    "TraceProblem",
    "TraceSample",
    "cheapest_equal",
    "fixed_curve",
    "full_vote",
    "read_traces",
    "replay",
]
