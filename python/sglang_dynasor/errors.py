"""One way to refuse a request and to say what is wrong with a field."""

from __future__ import annotations

from pydantic import ValidationError


class RequestError(ValueError):
    """A request that is refused. Every surface answers with `status_code` and, where its error
    bodies have one, with `param`, the field at fault. 503 where a retry may help, 409 where what
    the request asks for runs already.
    """

    def __init__(self, message: str, param: str | None = None, status_code: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status_code = status_code


def describe_validation_error(error: ValidationError, prefix: str = "") -> str:
    """Name each offending field, with `prefix`, and what it allows, in one line."""
    return "; ".join(validation_faults(error, prefix))


def validation_faults(error: ValidationError, prefix: str = "") -> list[str]:
    """Name each offending field, with `prefix`, and what it allows.

    The offending values are left out: they may be megabytes, or secret.
    """
    faults = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        faults.append(prefix + (f"{field}: {message}" if field else message))
    return faults
