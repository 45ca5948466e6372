"""Counter-based noise in plain torch: a pure function of (seed, position, token id).

All arithmetic is on wrapping integers, so the same key gives the same bits in every batch, row
order and process.
"""

from __future__ import annotations

import functools

import torch

# Odd multipliers of two published integer mixers: splitmix64 (Steele, Lea and Flood, 2014) for the
# row key, the low-bias 32-bit mixer found by the hash prospector search (Wellons, 2018) for the
# elements.
_SPLIT_STEP = 0x9E3779B97F4A7C15
_SPLIT_FIRST = 0xBF58476D1CE4E5B9
_SPLIT_SECOND = 0x94D049BB133111EB
_LOW_FIRST = 0x7FEB352D
_LOW_SECOND = 0x846CA68B


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _shift(value: torch.Tensor, by: int, bits: int) -> torch.Tensor:
    """Logical right shift; torch's own copies the sign bit."""
    return (value >> by).bitwise_and_((1 << (bits - by)) - 1)


def _mix64(value: torch.Tensor) -> torch.Tensor:
    """A bijection of int64; each input bit flips every output bit about half of the time."""
    value = (value ^ _shift(value, 30, 64)) * _signed(_SPLIT_FIRST, 64)
    value = (value ^ _shift(value, 27, 64)) * _signed(_SPLIT_SECOND, 64)
    return value ^ _shift(value, 31, 64)


def _mix32_(value: torch.Tensor) -> torch.Tensor:
    """The same for int32, in place."""
    value.bitwise_xor_(_shift(value, 16, 32)).mul_(_LOW_FIRST)
    value.bitwise_xor_(_shift(value, 15, 32)).mul_(_signed(_LOW_SECOND, 32))
    return value.bitwise_xor_(_shift(value, 16, 32))


def row_keys(seeds: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two independent keys per row, int32 [batch, 1], from integer [batch] seeds and positions.

    The seed is mixed before the position joins it: neighbouring seeds at neighbouring positions
    would otherwise meet in one key.
    """
    step = _signed(_SPLIT_STEP, 64)
    mixed = _mix64(seeds.to(torch.int64) + step)
    mixed = _mix64(mixed + positions.to(torch.int64) * step)
    words = mixed.view(torch.int32).view(-1, 2)
    return words[:, :1], words[:, 1:]


@functools.lru_cache(maxsize=8)
def _token_words(vocabulary: int, device: torch.device) -> torch.Tensor:
    """One well-mixed 32-bit word per token id, [vocabulary]."""
    return _mix32_(torch.arange(1, vocabulary + 1, dtype=torch.int32, device=device))


def random_words(seeds: torch.Tensor, positions: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Uniform 32-bit words (as int32), [batch, vocabulary]."""
    first, second = row_keys(seeds, positions)
    words = _mix32_(_token_words(vocabulary, seeds.device) ^ first)
    return _mix32_(words.bitwise_xor_(second))


def exponential_noise(
    seeds: torch.Tensor, positions: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """Unit exponential noise, float32 [batch, vocabulary], strictly positive and finite.

    Small values decide a race of exponentials, so they are the ones that get the full 2**-32
    resolution.
    """
    words = random_words(seeds, positions, vocabulary)
    # An int32 word w stands for the uniform number (w + 2**31 + 1/2) / 2**32. Adding in float64
    # keeps all 32 bits; the float32 result is exact enough everywhere but at 1, where it must not
    # become infinite.
    uniform = words.to(torch.float64).add_(2.0**31 + 0.5).mul_(2.0**-32).to(torch.float32)
    return uniform.clamp_(max=1.0 - 2.0**-24).neg_().log1p_().neg_()
