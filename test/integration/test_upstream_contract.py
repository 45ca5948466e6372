"""The installed SGLang still has what we override, call and read, as recorded from 0.5.23."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RECORD = Path(__file__).with_name("upstream_contract.json")
TOOL = Path(__file__).parents[2] / "tools" / "record_upstream_contract.py"
HOW = "if the change is understood, run tools/record_upstream_contract.py"


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_upstream_contract", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recorded: dict[str, dict[str, Any]] = json.loads(RECORD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def installed() -> dict[str, dict[str, Any]]:
    return load_tool().contract()


@pytest.mark.parametrize(
    ("section", "path"), [(section, path) for section in recorded for path in recorded[section]]
)
def test_upstream_is_as_recorded(
    installed: dict[str, dict[str, Any]], section: str, path: str
) -> None:
    assert installed[section].get(path) == recorded[section][path], HOW


def test_everything_we_use_is_recorded(installed: dict[str, dict[str, Any]]) -> None:
    missing = [
        path
        for section in installed
        for path in installed[section]
        if path not in recorded[section]
    ]
    assert missing == [], HOW


def test_the_record_holds_no_name_that_upstream_lacks() -> None:
    assert all(None not in fields.values() for fields in recorded["fields"].values())
    assert all(all(names.values()) for names in recorded["attributes"].values())
    assert len(recorded["functions"]) > 40


def test_the_record_sees_upstreams_classes_not_ours() -> None:
    tool = load_tool()
    scheduler = tool.upstream("sglang.srt.managers.scheduler.Scheduler")
    assert scheduler.__module__ == "sglang.srt.managers.scheduler"
