"""Small models that come with the package. Importing this loads no framework."""

from __future__ import annotations

import json
import os
from pathlib import Path

TINY_REASONER = "tiny_reasoner"
TINY_REWARD = "tiny_reward"
SMOLLM2 = "smollm2"


def default_model_path() -> Path:
    """The folder of the embedded tiny model, in the Hugging Face format."""
    return Path(__file__).resolve().parent / TINY_REASONER


def default_cache_dir() -> Path:
    """Where fetched models are kept: ``$SGLANG_DYNASOR_CACHE`` or ``~/.cache/sglang-dynasor``."""
    chosen = os.environ.get("SGLANG_DYNASOR_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "sglang-dynasor"


def resolve_model(name_or_path: str) -> Path:
    """Turn the name of an embedded model, ``smollm2`` or the path of a folder into a folder.

    Raises ValueError for an empty or unknown name, FileNotFoundError for a model that is not
    fetched yet and for a path without a model in it. Both messages say what is allowed.
    """
    allowed = f"{TINY_REASONER!r}, {SMOLLM2!r} or the path of a folder with a config.json"
    if not name_or_path:
        raise ValueError(f"no model given; use {allowed}")
    if name_or_path in (TINY_REASONER, TINY_REWARD):
        return default_model_path().parent / name_or_path
    if name_or_path == SMOLLM2:
        folder = default_cache_dir() / SMOLLM2
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{SMOLLM2!r} is not fetched yet (looked in {folder}); run: "
                "sglang-dynasor models fetch smollm2"
            )
        return folder
    folder = Path(name_or_path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or os.sep in name_or_path:
        raise FileNotFoundError(f"no model in {name_or_path!r}; use {allowed}")
    raise ValueError(f"unknown model {name_or_path!r}; use {allowed}")


def recommended_temperature(path: Path | str) -> float | None:
    """The sampling temperature in a model's generation_config.json; None when it names none."""
    file = Path(path) / "generation_config.json"
    if not file.is_file():
        return None
    value = json.loads(file.read_text()).get("temperature")
    return None if value is None else float(value)
