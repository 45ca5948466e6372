"""What profiles have in common: a JSON file whose faults are named, and the model they hold for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sglang_dynasor.errors import describe_validation_error

_BLOCK_BYTES = 1 << 20


class ProfileFile(BaseModel):
    """A profile in a file; `what` is what messages call it.

    `checkpoint_sha256` is that of the weights (`checkpoint_hash`), where they were at hand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    what: ClassVar[str] = "profile"
    model: str = Field(min_length=1)
    checkpoint_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")

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

    def mismatch(self, model: str, checkpoint_sha256: str | None) -> str | None:
        """Say in one sentence why the profile does not hold for this model; None where it does.

        Checkpoints are compared where both hashes are known: then a name is only a place. Else
        the names decide, by the last part of a path or of a hub's owner/name.
        """
        if self.checkpoint_sha256 and checkpoint_sha256:
            same = self.checkpoint_sha256 == checkpoint_sha256
            what = f"a checkpoint with sha256 {self.checkpoint_sha256[:12]}..., {model} has "
            what += f"{checkpoint_sha256[:12]}..."
        else:
            same = Path(self.model).name == Path(model).name
            what = f"model {self.model!r}, not for {model!r}"
        return None if same else f"the {self.what.replace('_', ' ')} was made for {what}"


def checkpoint_hash(folder: Path | str) -> str | None:
    """Return the sha256 over name, size and content of a folder's *.safetensors files, by name.

    None where there are none: a hub's name, or weights in another format. Reads every byte of
    the weights.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
