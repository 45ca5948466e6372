"""What profiles have in common: a JSON file whose faults are named."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from sglang_dynasor.errors import describe_validation_error


class ProfileFile(BaseModel):
    """A profile in a file; `what` is what messages call it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    what: ClassVar[str] = "profile"

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a profile file. Raises ValueError naming the file and each wrong field."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise ValueError(f"{cls.what} {path}: {error.strerror}") from None
        except ValidationError as error:
            raise ValueError(f"{cls.what} {path}: {describe_validation_error(error)}") from None

    def write(self, path: Path | str) -> None:
        """Write as JSON. Raises ValueError naming the file where it cannot be written."""
        try:
            Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ValueError(f"{self.what} {path}: {error.strerror}") from None
