"""Calibration profiles: a stop rule's setting, what it promises, and the model it holds for."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field, model_validator

from sglang_dynasor.allocation.profile_file import ProfileFile
from sglang_dynasor.allocation.rules import make_rule


class CalibrationProfile(ProfileFile):
    """What `sglang-dynasor calibrate` found; settings take rule, threshold and branches from it.

    `harm` of `problems` were answered wrongly where the vote of all `max_branches` was right;
    with `confidence`, at most the share `max_harm` of all problems of the kind is. `harm_bound`
    is this one setting's exact one-sided upper bound. Fractions are from 0 to 1; `tokens_saved`
    is against all branches, measured on the calibration's own problems.

    `confidence_bar` (nats, over groups of `group_tokens`) is where the `keep_top` most confident
    branches were; what the profile promises then holds with the others pruned.
    """

    version: Literal[1] = 1
    rule: str
    threshold: float = Field(ge=0, le=1)
    min_branches: int = Field(ge=1, le=512)
    max_branches: int = Field(ge=1, le=512)
    max_harm: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    problems: int = Field(ge=1)
    harm: int = Field(ge=0)
    harm_bound: float = Field(ge=0, le=1)
    tokens_saved: float = Field(ge=0, le=1)
    created: date
    confidence_bar: float | None = Field(None, gt=0)
    keep_top: float | None = Field(None, gt=0, lt=1)
    group_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check_rule(self) -> CalibrationProfile:
        make_rule(self.rule, threshold=self.threshold, min_branches=self.min_branches)
        of_the_bar = (self.confidence_bar, self.keep_top, self.group_tokens)
        if None in of_the_bar and any(value is not None for value in of_the_bar):
            raise ValueError("confidence_bar, keep_top, group_tokens: give all or none")
        return self
