"""Upstream's own tests build managers without `__init__`: ours must work like that too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import GenerateReqInput

from sglang_dynasor.errors import RequestError
from sglang_dynasor.managers.program_service import ProgramService
from sglang_dynasor.managers.tokenizer_manager import DynasorTokenizerManager


@pytest.fixture
def manager() -> Any:
    bare = DynasorTokenizerManager.__new__(DynasorTokenizerManager)
    bare.enable_metrics = False
    bare.sent = []
    bare._dispatch_to_scheduler = bare.sent.append
    bare.rid_to_state = {"r": SimpleNamespace(abort_sent=False, dispatched=False)}
    return bare


def test_a_bare_manager_aborts_its_requests(manager: Any) -> None:
    manager.abort_request("r")
    manager.abort_request(abort_all=True)
    manager._mark_state_dispatched("r")
    assert [(message.rid, message.abort_all) for message in manager.sent] == [
        ("r", False),
        ("", True),
    ]
    assert manager.rid_to_state["r"].dispatched


def test_a_request_that_is_aborted_is_not_taken_for_a_program_of_that_id(
    manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborted: list[tuple[str, str | None]] = []
    monkeypatch.setattr(
        ProgramService, "abort", lambda self, name, tenant: aborted.append((name, tenant))
    )
    manager.abort_request("r")  # also what upstream calls when a client hangs up
    assert not aborted
    manager.abort_for_tenant("r", "t")
    assert aborted == [("r", "t")]


def test_a_token_id_of_more_than_64_bits_is_refused_by_name(manager: Any) -> None:
    with pytest.raises(RequestError, match="prompt: not a token id") as caught:
        manager._create_tokenized_object(GenerateReqInput(input_ids=[2**63]), None, [2**63])
    assert caught.value.param == "prompt"
