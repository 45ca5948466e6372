"""Triton kernels, installed as ``sglang_dynasor.kernels``."""
