"""Statistical quality of the keyed noise and of draws made with it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sglang_dynasor.platforms.keyed_noise import exponential_noise, random_words, row_keys

VOCABULARY = 96
# Each test below looks at a handful of fixed keys, so a fair source fails none of them at this
# level.
LEVEL = 1e-4


def keys(
    seeds: list[int] | range, positions: list[int] | range
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every seed at every position."""
    grid = torch.cartesian_prod(torch.tensor(list(seeds)), torch.tensor(list(positions)))
    return grid[:, 0], grid[:, 1]


def uniforms(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    words = random_words(seeds, positions, VOCABULARY).to(torch.float64)
    return (words + 2.0**31 + 0.5) / 2.0**32


def draws(weights: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return (weights / exponential_noise(seeds, positions, len(weights))).argmax(dim=1)


@pytest.mark.parametrize("seed", [0, 1, 42, -1, 2**63 - 1, -(2**63)])
def test_draws_over_positions_follow_the_distribution(seed: int) -> None:
    weights = torch.softmax(torch.linspace(0, 4, VOCABULARY), 0)
    sample = draws(weights, *keys([seed], range(40_000)))
    counts = torch.bincount(sample, minlength=VOCABULARY).numpy()
    expected = weights.double().numpy() * len(sample)
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > LEVEL


@pytest.mark.parametrize("position", [0, 1, 511, 100_000])
def test_draws_over_neighbouring_seeds_follow_the_distribution(position: int) -> None:
    sample = draws(torch.ones(VOCABULARY), *keys(range(40_000), [position]))
    counts = torch.bincount(sample, minlength=VOCABULARY).numpy()
    assert stats.chisquare(counts).pvalue > LEVEL


def test_unequal_weights_need_no_normalisation() -> None:
    sample = draws(torch.tensor([0.0, 30.0, 10.0, 0.0]), *keys(range(8), range(2_000)))
    counts = torch.bincount(sample, minlength=4)
    assert counts[0] == counts[3] == 0
    assert stats.binomtest(int(counts[1]), len(sample), 0.75).pvalue > LEVEL


@pytest.mark.parametrize(
    ("seed_step", "position_step"), [(1, 0), (0, 1), (1, -1), (-1, -1), (2, 1)]
)
def test_neighbouring_keys_are_independent(seed_step: int, position_step: int) -> None:
    seeds, positions = keys(range(1_000, 1_060), range(500, 560))
    here = draws(torch.ones(8), seeds, positions)
    there = draws(torch.ones(8), seeds + seed_step, positions + position_step)
    table = torch.bincount(here * 8 + there, minlength=64).view(8, 8).numpy()
    assert stats.chi2_contingency(table).pvalue > LEVEL


@pytest.mark.parametrize(("seed_step", "position_step"), [(1, 0), (0, 1), (1, 1)])
def test_noise_of_neighbouring_keys_is_uncorrelated(seed_step: int, position_step: int) -> None:
    seeds, positions = keys(range(40), range(40))
    here = uniforms(seeds, positions).flatten()
    there = uniforms(seeds + seed_step, positions + position_step).flatten()
    assert stats.pearsonr(here.numpy(), there.numpy()).pvalue > LEVEL
    # The same token next to itself, and next to its neighbour in the vocabulary.
    assert stats.pearsonr(here[1:].numpy(), here[:-1].numpy()).pvalue > LEVEL


def test_uniforms_are_uniform_over_tokens_positions_and_seeds() -> None:
    values = uniforms(*keys(range(50), range(50)))
    assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > LEVEL
    assert stats.kstest(values[:, 0].numpy(), "uniform").pvalue > LEVEL
    assert (
        stats.kstest(values.mean(dim=0).sub(0.5).mul((12 * 2500) ** 0.5).numpy(), "norm").pvalue
        > LEVEL
    )


def test_every_bit_of_the_words_is_balanced() -> None:
    words = random_words(*keys(range(64), range(64)), VOCABULARY).flatten()
    for bit in range(32):
        ones = int(((words >> bit) & 1).sum())
        assert stats.binomtest(ones, len(words), 0.5).pvalue > LEVEL, f"bit {bit}"


def test_no_two_keys_of_a_large_grid_collide() -> None:
    first, second = row_keys(*keys(range(-300, 300), range(600)))
    joined = first.to(torch.int64) * 2**32 + second.to(torch.int64)
    assert joined.unique().numel() == 600 * 600


def test_noise_is_positive_and_finite_even_at_the_ends() -> None:
    noise = exponential_noise(*keys(range(200), range(100)), VOCABULARY)
    assert bool((noise > 0).all()) and bool(noise.isfinite().all())
    assert stats.kstest(noise.flatten()[::7].numpy(), "expon").pvalue > LEVEL


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31)), min_size=1, max_size=12
    ),
    pick=st.integers(0, 11),
)
def test_a_row_does_not_depend_on_its_batch(rows: list[tuple[int, int]], pick: int) -> None:
    seeds = torch.tensor([seed for seed, _ in rows])
    positions = torch.tensor([position for _, position in rows])
    row = pick % len(rows)
    alone = random_words(seeds[row : row + 1], positions[row : row + 1], VOCABULARY)
    assert torch.equal(random_words(seeds, positions, VOCABULARY)[row : row + 1], alone)
    # A larger vocabulary (padded logits) leaves the words of the first tokens alone.
    assert torch.equal(random_words(seeds, positions, 128)[row, :VOCABULARY], alone[0])
