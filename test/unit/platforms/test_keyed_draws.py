"""The keyed sampler on probabilities: filters, greedy rows, seeds and captured weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from sglang.srt.sampling.sampling_params import TOP_K_ALL

from sglang_dynasor.platforms.keyed_sampler import KeyedSampler, request_seed

VOCABULARY = 12
ROWS = 20_000


def sample(
    probs: torch.Tensor, simple: bool, capture: list[int] | None = None, **filters: Any
) -> tuple[torch.Tensor, Any]:
    """Draw once per row; row r has seed r // 100 and position r % 100."""
    rows = torch.arange(len(probs))
    info = SimpleNamespace(
        sampling_seed=rows // 100,
        top_ks=filters.get("top_ks", torch.full((len(probs),), TOP_K_ALL)),
        top_ps=filters.get("top_ps", torch.ones(len(probs))),
        min_ps=filters.get("min_ps", torch.zeros(len(probs))),
        need_min_p_sampling="min_ps" in filters,
        sampling_mask_batch_indices=None if capture is None else torch.tensor(capture),
    )
    # The constructor reads the engine's process-wide context; drawing needs none of it.
    sampler = object.__new__(KeyedSampler)
    return sampler._sample_from_probs(probs, info, rows % 100, simple)


@pytest.fixture
def probs() -> torch.Tensor:
    row = torch.softmax(torch.linspace(0, 2.5, VOCABULARY), 0)
    return row.repeat(ROWS, 1)


def assert_follows(tokens: torch.Tensor, expected: torch.Tensor) -> None:
    counts = torch.bincount(tokens, minlength=VOCABULARY)
    allowed = expected > 0
    assert int(counts[~allowed].sum()) == 0, "a filtered token was drawn"
    share = expected[allowed].double() / expected.double().sum()
    assert stats.chisquare(counts[allowed].numpy(), (share * ROWS).numpy()).pvalue > 1e-4


def test_without_filters_the_distribution_is_the_softmax(probs: torch.Tensor) -> None:
    tokens, capture = sample(probs.clone(), simple=True)
    assert tokens.dtype == torch.int32 and capture is None
    assert_follows(tokens, probs[0])


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"top_ks": torch.full((ROWS,), 4)}, 4),
        ({"top_ps": torch.full((ROWS,), 0.5)}, 3),
        ({"min_ps": torch.full((ROWS,), 0.4)}, 5),
        ({"top_ks": torch.full((ROWS,), 4), "top_ps": torch.full((ROWS,), 0.5)}, 3),
    ],
    ids=["top_k", "top_p", "min_p", "top_k and top_p"],
)
def test_filters_keep_the_best_tokens_in_proportion(
    probs: torch.Tensor, filters: dict[str, torch.Tensor], kept: int
) -> None:
    expected = probs[0].clone()
    expected[: VOCABULARY - kept] = 0
    tokens, _ = sample(probs, simple=False, **filters)
    assert_follows(tokens, expected)


def test_greedy_rows_of_a_mixed_batch_take_the_best_token(probs: torch.Tensor) -> None:
    top_ks = torch.full((ROWS,), TOP_K_ALL)
    top_ks[::2] = 1
    tokens, _ = sample(probs, simple=False, top_ks=top_ks)
    assert bool((tokens[::2] == VOCABULARY - 1).all())
    assert len(tokens[1::2].unique()) == VOCABULARY


def test_a_filter_that_removes_nothing_does_not_change_the_draw(probs: torch.Tensor) -> None:
    plain, _ = sample(probs[:500].clone(), simple=True)
    sorted_columns, _ = sample(probs[:500].clone(), simple=False)
    assert torch.equal(plain, sorted_columns)


def test_asked_rows_get_their_filtered_weights_back(probs: torch.Tensor) -> None:
    top_ks = torch.full((10,), 3)
    tokens, capture = sample(probs[:10], simple=False, capture=[2, 7], top_ks=top_ks)
    assert capture.weights.shape == capture.token_ids.shape == (2, VOCABULARY)
    assert int((capture.weights > 0).sum()) == 6
    for row, index in enumerate([2, 7]):
        column = int((capture.token_ids[row] == tokens[index]).nonzero())
        assert capture.weights[row, column] == capture.selected_weight[row]


def test_a_batch_without_seeds_is_refused(probs: torch.Tensor) -> None:
    info = SimpleNamespace(sampling_seed=None)
    with pytest.raises(RuntimeError, match="hook is not installed"):
        object.__new__(KeyedSampler)._sample_from_probs(probs, info, torch.arange(ROWS), True)


def test_a_given_seed_is_used_as_it_is_and_other_requests_differ_by_id() -> None:
    assert request_seed(0, "a", 1) == 0
    assert request_seed(-5, "a", 1) == -5
    assert request_seed(None, "p::0", 1) == request_seed(None, "p::0", 1)
    made = {request_seed(None, f"p::{branch}", seed) for branch in range(64) for seed in range(4)}
    assert len(made) == 256
    assert all(-(2**63) <= seed < 2**63 for seed in made)
