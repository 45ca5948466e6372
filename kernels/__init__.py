"""Triton kernels, installed as ``sglang_dynasor.kernels``."""

from .token_certainty import COLUMNS, token_certainty

__all__ = ["COLUMNS", "token_certainty"]
