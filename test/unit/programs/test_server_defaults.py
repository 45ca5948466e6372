"""What requests without program fields get: the first entry that fits, as file or as text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs.server_defaults import ServerDefaults, read_defaults

CONFIG = DynasorConfig()
ENTRIES = """
- route: /v1/chat/*
  model: r1-*
  dynasor: {algorithm: cot, saving_effort: mild}
- route: /v1/chat/*
  dynasor: {mode: "off"}
- dynasor: {algorithm: self_consistency, mode: shadow, max_branches: 4}
"""


@pytest.mark.parametrize(
    ("route", "model", "algorithm"),
    [
        ("/v1/chat/completions", "r1-7b", "cot"),
        ("/v1/chat/completions", "other", None),
        ("/v1/completions", "r1-7b", "self_consistency"),
        ("", "", "self_consistency"),
    ],
)
def test_the_first_entry_that_fits_counts(
    tmp_path: Path, route: str, model: str, algorithm: str | None
) -> None:
    path = tmp_path / "defaults.yaml"
    path.write_text(ENTRIES)
    defaults = read_defaults(str(path), CONFIG)
    assert defaults.tells_models_apart
    spec = defaults.spec_of(route, model)
    assert (spec and spec.algorithm) == algorithm


def test_one_object_is_for_every_request() -> None:
    defaults = read_defaults(json.dumps({"algorithm": "cot"}), CONFIG)
    assert not defaults.tells_models_apart
    spec = defaults.spec_of("/generate", "m")
    assert spec is not None and spec.algorithm == "cot"


def test_without_a_setting_there_are_none() -> None:
    assert not read_defaults("", CONFIG) and not ServerDefaults()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("no/such/file.yaml", "no/such/file.yaml"),
        ("[{", "neither JSON nor YAML"),
        ('[{"rout": "*"}]', "entry 1: rout"),
        ('[{"dynasor": {}}, {"dynasor": {"algorithm": "tot"}}]', "entry 2: dynasor.algorithm"),
        ('[{"dynasor": {"algorithm": "cot", "window": 0}}]', "entry 1: dynasor.window"),
        ("[7]", "entry 1"),
    ],
)
def test_malformed_defaults_are_refused_naming_the_entry(given: str, named: str) -> None:
    with pytest.raises(ValueError, match="default: ") as caught:
        read_defaults(given, CONFIG)
    assert named in str(caught.value)
