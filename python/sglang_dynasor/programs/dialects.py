"""Spellings of released Dynasor clients, in our words.

`dynasor` objects of the proxy (`saving_effort`), of ArcticInference (`probe_interval`,
`certainty_window`), and the `adaptive_compute` object of dynasor-vllm and dynasor-sglang.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from sglang_dynasor.errors import RequestError, describe_validation_error
from sglang_dynasor.programs.chain_of_thought_params import ChainOfThoughtParams
from sglang_dynasor.programs.params import AnswerParams, Fields

ADAPTIVE_COMPUTE = "adaptive_compute"
_ALIASES = {"certainty_window": "window", "token_interval": "probe_interval"}
# A request that names no algorithm and one of these means a chain of thought.
CHAIN_FIELDS = frozenset(ChainOfThoughtParams.model_fields) - frozenset(AnswerParams.model_fields)


class _AdaptiveCompute(Fields):
    mode: Literal["prompting"] = "prompting"
    probe_text: str = Field(min_length=1, max_length=2000)
    probe_text_end: str = Field("} \\]", max_length=200)
    certainty_window: int = Field(2, ge=1, le=1000)
    token_interval: int = Field(32, ge=1, le=2**31)


def in_our_words(fields: dict[str, Any]) -> dict[str, Any]:
    """A request object with aliases spelled as ours, and the algorithm its fields mean.

    Raises RequestError where both spellings of a field are given.
    """
    ours: dict[str, Any] = {}
    for name, value in fields.items():
        known = _ALIASES.get(name, name)
        if name == "deadline_s" and isinstance(value, int | float):
            known, value = "deadline_ms", max(1, round(value * 1000))
        if known in ours or (known != name and known in fields):
            raise RequestError(f"dynasor.{name}: is {known}, give one of them", f"dynasor.{name}")
        ours[known] = value
    if ours.get("saving_effort") == "":
        ours["saving_effort"] = "none"
    if "algorithm" not in ours and not CHAIN_FIELDS.isdisjoint(ours):
        ours["algorithm"] = "cot"
    return ours


def fields_of_adaptive_compute(given: object) -> dict[str, Any]:
    """The request object that an `adaptive_compute` object means. Raises RequestError."""
    if not isinstance(given, dict):
        message = f"{ADAPTIVE_COMPUTE}: must be an object, got {type(given).__name__}"
        raise RequestError(message, ADAPTIVE_COMPUTE)
    try:
        asked = _AdaptiveCompute.model_validate(given)
    except ValidationError as error:
        message = describe_validation_error(error, f"{ADAPTIVE_COMPUTE}.")
        raise RequestError(message, message.partition(":")[0]) from None
    return {
        "algorithm": "cot",
        "probe_text": asked.probe_text,
        "probe_text_end": asked.probe_text_end,
        "window": asked.certainty_window,
        "probe_interval": asked.token_interval,
        "on_exit": "insert",
    }
