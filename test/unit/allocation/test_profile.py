"""Calibration profiles: their file, the model they hold for, and the warning at start-up."""

from __future__ import annotations

import hashlib
import json
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from sglang_dynasor.allocation.chain_profile import ChainProfile
from sglang_dynasor.allocation.profile import CalibrationProfile
from sglang_dynasor.allocation.profile_file import checkpoint_hash
from sglang_dynasor.config import CONFIG_VARIABLE
from sglang_dynasor.handshake import warn_of_profile_mismatch

HASH, OTHER_HASH = "0" * 64, "f" * 64


def profile(**changes: Any) -> CalibrationProfile:
    fields: dict[str, Any] = {
        "model": "org/tiny",
        "checkpoint_sha256": HASH,
        "rule": "beta",
        "threshold": 0.9,
        "min_branches": 3,
        "max_branches": 16,
        "max_harm": 0.01,
        "confidence": 0.95,
        "problems": 300,
        "harm": 0,
        "harm_bound": 0.00994,
        "tokens_saved": 0.5,
        "created": date(2026, 1, 2),
    }
    return CalibrationProfile(**fields | changes)


def test_a_written_profile_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile().write(path)
    assert CalibrationProfile.read(path) == profile()
    assert json.loads(path.read_text())["created"] == "2026-01-02"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("model", ""),
        ("checkpoint_sha256", "abc"),
        ("rule", "unknown"),
        ("threshold", 1.5),
        ("threshold", None),
        ("min_branches", 0),
        ("max_branches", "16"),
        ("max_harm", 0.0),
        ("confidence", 1.0),
        ("problems", 0),
        ("harm", -1),
        ("created", "yesterday"),
        ("confidence_bar", 0.0),
        ("keep_top", 0.5),
        ("group_tokens", 16),
        ("unheard_of", 1),
    ],
)
def test_a_wrong_field_is_refused_by_file_and_name(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "profile.json"
    fields = json.loads(profile().model_dump_json())
    path.write_text(json.dumps(fields | {field: value}))
    with pytest.raises(ValueError, match=rf"profile\.json: .*{field}"):
        CalibrationProfile.read(path)


def test_a_missing_or_broken_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(ValueError, match=r"profile\.json: No such file"):
        CalibrationProfile.read(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"profile\.json: Invalid JSON"):
        CalibrationProfile.read(path)
    with pytest.raises(ValueError, match="absent"):
        profile().write(tmp_path / "absent" / "profile.json")


@pytest.mark.parametrize(
    ("mine", "model", "checkpoint", "told"),
    [
        (HASH, "org/tiny", HASH, None),
        (HASH, "/copies/renamed", HASH, None),
        (HASH, "org/tiny", OTHER_HASH, OTHER_HASH[:12]),
        (HASH, "/models/tiny/", None, None),
        (HASH, "/models/other", None, "other"),
        (None, "tiny", HASH, None),
        (None, "other", HASH, "other"),
    ],
)
def test_hashes_decide_where_both_are_known_and_names_elsewhere(
    mine: str | None, model: str, checkpoint: str | None, told: str | None
) -> None:
    sentence = profile(checkpoint_sha256=mine).mismatch(model, checkpoint)
    assert (sentence is None) == (told is None)
    assert told is None or told in str(sentence)


def test_the_checkpoint_hash_is_of_names_sizes_and_contents_in_order(tmp_path: Path) -> None:
    assert checkpoint_hash(tmp_path) is None
    assert checkpoint_hash(tmp_path / "absent") is None
    (tmp_path / "b.safetensors").write_bytes(b"22")
    (tmp_path / "a.safetensors").write_bytes(b"1")
    (tmp_path / "config.json").write_bytes(b"not weights")
    expected = hashlib.sha256(b"a.safetensors\x001\x001" + b"b.safetensors\x002\x0022").hexdigest()
    assert checkpoint_hash(tmp_path) == expected


@pytest.mark.parametrize("kind", ["profile", "chain_profile"])
@pytest.mark.parametrize(("model", "told"), [("org/tiny", 0), ("org/other", 1)])
def test_a_start_with_another_model_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, model: str, told: int
) -> None:
    path = tmp_path / "profile.json"
    made = profile() if kind == "profile" else chain_profile()
    made.write(path)
    monkeypatch.setenv(CONFIG_VARIABLE, json.dumps({kind: str(path)}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_profile_mismatch(model)
    assert len(caught) == told
    assert all("'org/tiny', not for 'org/other'" in str(item.message) for item in caught)


def chain_profile() -> ChainProfile:
    created = date(2026, 1, 1)
    return ChainProfile(model="org/tiny", confidence=0.9, problems=90, created=created, levels={})
