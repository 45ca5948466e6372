"""Single chains on recorded probes: what a rule would have done, and what can be promised of it.

Angelopoulos, Bates, Candes, Jordan, Lei: "Learn then Test", arXiv 2110.01052 (2021). The chains of
one problem are not independent samples: a problem is one observation, the mean harm of its chains,
and the test is that of Hoeffding and Bentkus for bounded means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from sglang_dynasor.allocation.chain_profile import RISK_OF_EFFORT, ChainLevel, Effort
from sglang_dynasor.allocation.chain_rule import ChainRule
from sglang_dynasor.certaindex import canonical_key
from sglang_dynasor.offline.replay import Sample, Samples
from sglang_dynasor.offline.traces import TraceProblem, TraceSample, right_keys
from sglang_dynasor.programs import Replayed, replay_nodes
from sglang_dynasor.programs.chain_of_thought import ChainOfThought
from sglang_dynasor.programs.chain_of_thought_params import ChainSettings

# From the most careful to the most saving; fixed before any trace was seen.
WINDOWS = (64, 48, 40, 32, 24, 20, 16, 12, 10, 8, 6, 5, 4, 3, 2)
KeyOf = Callable[[str], str]


def replay_chain(
    sample: TraceSample, rule: ChainRule, interval: int, key_of: KeyOf = canonical_key
) -> Replayed:
    """One recorded chain under a rule that is asked at each of its probes, `interval` apart.

    At an exit the probes' answer is inserted: what the model would have written instead no trace
    tells.
    """
    recorded = Sample(sample.answer, sample.n_tokens, sample.correct, probes=sample.probes)
    samples = Samples([recorded], key_of)
    settings = ChainSettings(
        max_branches=1, rule=rule, probe_interval=interval, on_exit="insert", probe_text="so"
    )
    return replay_nodes(
        ChainOfThought(settings), lambda start: samples.nodes["0"], probes_of=samples.probes_of
    )


def spacing_of(problems: Sequence[TraceProblem]) -> int:
    """Tokens between the probes of these traces. Raises ValueError where there are none."""
    gaps = [gap for problem in problems for sample in problem.samples for gap in _gaps(sample)]
    if not gaps:
        raise ValueError("the traces have no probes: record them with --probe-interval")
    return int(np.median(gaps))


def _gaps(sample: TraceSample) -> Iterator[int]:
    places = [0, *(probe.at for probe in sample.probes)]
    return (later - earlier for earlier, later in pairwise(places))


@dataclass(frozen=True, slots=True)
class ChainEffects:
    """What rules (rows) do to problems (columns), each the mean over the problem's chains.

    `harm`: the whole chain is right and the stopped one wrong; `gain`: the reverse. `tokens` hold
    `probe_tokens`; `full_tokens`, of whole chains, have one row.
    """

    accuracy: NDArray[np.float64]
    harm: NDArray[np.float64]
    gain: NDArray[np.float64]
    tokens: NDArray[np.float64]
    probe_tokens: NDArray[np.float64]
    full_tokens: NDArray[np.float64]
    full_accuracy: NDArray[np.float64]

    def figures(self, row: int) -> dict[str, float]:
        """The means of one rule over all problems."""
        full, spent = self.full_tokens.sum(), self.tokens[row].sum()
        return {
            "accuracy": float(self.accuracy[row].mean()),
            "harm": float(self.harm[row].mean()),
            "gain": float(self.gain[row].mean()),
            "tokens": float(self.tokens[row].mean()),
            "tokens_saved": float(1 - spent / full) if full else 0.0,
            "probe_token_share": float(self.probe_tokens[row].sum() / spent) if spent else 0.0,
        }


class _End(NamedTuple):
    """Where a chain was ended: what it answered, and its tokens, those of probes among them."""

    answer: str
    tokens: int
    probe_tokens: int = 0


def replay_chains(
    problems: Sequence[TraceProblem], rules: Sequence[ChainRule], interval: int
) -> ChainEffects:
    """Replay every chain of every problem under every rule."""

    def end(sample: TraceSample, rule: ChainRule) -> _End:
        run = replay_chain(sample, rule, interval)
        return _End(run.outcome.answer, run.tokens, run.probe_tokens)

    return _effects(problems, [partial(end, rule=rule) for rule in rules])


def budget_figures(problems: Sequence[TraceProblem], budget: int) -> dict[str, float]:
    """A plain limit of tokens: where a chain is longer, its last probe before it answers."""

    def end(sample: TraceSample) -> _End:
        if sample.n_tokens <= budget:
            return _End(sample.answer, sample.n_tokens)
        before = [probe.answer for probe in sample.probes if probe.at <= budget]
        return _End(before[-1] if before else "", budget)

    return _effects(problems, [end]).figures(0)


def _effects(
    problems: Sequence[TraceProblem], ways: Sequence[Callable[[TraceSample], _End]]
) -> ChainEffects:
    shape = (len(ways), len(problems))
    accuracy, harm, gain, tokens, probes = (np.zeros(shape) for _ in range(5))
    full_tokens, full_accuracy = np.zeros(len(problems)), np.zeros(len(problems))
    for column, problem in enumerate(problems):
        right = right_keys(problem, canonical_key)
        chains = len(problem.samples)
        for sample in problem.samples:
            whole = canonical_key(sample.answer) in right
            full_tokens[column] += sample.n_tokens / chains
            full_accuracy[column] += whole / chains
            for row, way in enumerate(ways):
                end = way(sample)
                is_right = canonical_key(end.answer) in right
                accuracy[row, column] += is_right / chains
                harm[row, column] += (whole and not is_right) / chains
                gain[row, column] += (is_right and not whole) / chains
                tokens[row, column] += end.tokens / chains
                probes[row, column] += end.probe_tokens / chains
    return ChainEffects(accuracy, harm, gain, tokens, probes, full_tokens, full_accuracy)


def mean_harm_p_value(mean: float, n: int, max_harm: float) -> float:
    """An exact p-value of "the true mean of a harm within 0 and 1 exceeds `max_harm`".

    The smaller of Hoeffding's and Bentkus' bounds, from the mean of `n` independent problems.
    """
    if mean >= max_harm:
        return 1.0
    hoeffding = math.exp(-n * _relative_entropy(mean, max_harm))
    bentkus = math.e * float(stats.binom.cdf(math.ceil(round(n * mean, 9)), n, max_harm))
    return min(1.0, hoeffding, bentkus)


def mean_harm_bound(mean: float, n: int, confidence: float) -> float:
    """The upper bound of the true mean harm, 0 to 1: where its p-value meets the risk."""

    def above(max_harm: float) -> float:
        return mean_harm_p_value(mean, n, max_harm) - (1 - confidence)

    highest = 1 - 1e-9
    if above(highest) > 0:
        return 1.0
    return float(optimize.brentq(above, max(mean, 1e-12), highest, xtol=1e-6))


def _relative_entropy(mean: float, other: float) -> float:
    """KL divergence of two coins, nats."""
    entropy = (1 - mean) * math.log((1 - mean) / (1 - other))
    return entropy + (mean * math.log(mean / other) if mean > 0 else 0.0)


def promised_levels(
    effects: ChainEffects, interval: int, confidence: float, windows: Sequence[int] = WINDOWS
) -> dict[Effort, ChainLevel]:
    """For each effort the most saving window that keeps its risk; none where nothing does.

    The windows are tested from the most careful on, and testing ends with the first that fails.
    """
    n = effects.harm.shape[1]
    levels: dict[Effort, ChainLevel] = {}
    for effort, max_harm in RISK_OF_EFFORT.items():
        for row, window in enumerate(windows):
            harm = float(effects.harm[row].mean())
            if mean_harm_p_value(harm, n, max_harm) > 1 - confidence:
                break
            levels[effort] = ChainLevel(
                probe_interval=interval,
                window=window,
                tau=1.0,
                warmup_tokens=0,
                max_harm=max_harm,
                harm=harm,
                harm_bound=mean_harm_bound(harm, n, confidence),
                tokens_saved=effects.figures(row)["tokens_saved"],
            )
    return levels
