"""A verifier for the virtual clock."""

from __future__ import annotations


def reward_of_length(prompt: str, text: str) -> float:
    """A tenth for each character."""
    return len(text) / 10
