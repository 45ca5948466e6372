"""Names of our attention and sampling backends, and the calls that make SGLang know them.

Importing this module is cheap: the platform does it while upstream's own utilities are still being
imported, so everything that reaches for the model code is imported inside the functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

    from .batched_attention import BatchedAttnBackend
    from .keyed_sampler import KeyedSampler

ATTENTION_BACKEND = "batched_cpu"
SAMPLING_BACKEND = "keyed"


def add_choices() -> None:
    """Make the command line accept both names (upstream: ``arg_groups/choices.py``). Idempotent."""
    from sglang.srt.arg_groups import choices

    if ATTENTION_BACKEND not in choices.ATTENTION_BACKEND_CHOICES:
        choices.add_attention_backend_choices([ATTENTION_BACKEND])
    choices.SAMPLING_BACKEND_CHOICES.add(SAMPLING_BACKEND)


def register_attention() -> None:
    """Register ``batched_cpu`` (upstream: ``attention/attention_registry.py``). Idempotent."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    add_choices()
    register_attention_backend(ATTENTION_BACKEND)(_create_attention)


def register_keyed_sampler() -> None:
    """Register the opt-in sampler ``keyed`` (upstream: ``layers/sampler.py``). Idempotent."""
    from sglang.srt.layers import sampler

    add_choices()
    # A second registration under one name is legal upstream, but it warns.
    if SAMPLING_BACKEND not in sampler._CUSTOM_SAMPLER_FACTORIES:
        sampler.register_sampler_backend(SAMPLING_BACKEND, _create_sampler)


def _create_attention(model_runner: ModelRunner) -> BatchedAttnBackend:
    from .batched_attention import BatchedAttnBackend

    return BatchedAttnBackend(model_runner)


def _create_sampler() -> KeyedSampler:
    from .keyed_sampler import KeyedSampler, install_seed_hook

    install_seed_hook()
    return KeyedSampler()
