"""One way to say what is wrong with a field."""

from __future__ import annotations

from pydantic import ValidationError


def describe_validation_error(error: ValidationError) -> str:
    """Name each offending field and what it allows, in one line."""
    return "; ".join(validation_faults(error))


def validation_faults(error: ValidationError) -> list[str]:
    """Name each offending field and what it allows.

    The offending values are left out: they may be megabytes, or secret.
    """
    faults = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        faults.append(f"{field}: {message}" if field else message)
    return faults
