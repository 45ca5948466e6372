"""Program messages reach the replica of their program, everything else what upstream chooses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import AbortReq

from sglang_dynasor.managers import replicas
from sglang_dynasor.managers.program_messages import CancelNodesReqInput, EndProgramReqInput


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Pairs of worker and message."""
    pairs: list[Any] = []
    monkeypatch.setattr(replicas, "sock_send", lambda *pair: pairs.append(pair))
    return pairs


def send(message: Any, workers: list[Any]) -> list[Any]:
    """What upstream would have sent itself."""
    others: list[Any] = []
    controller = SimpleNamespace(workers=workers)
    replicas.send_to_replica(lambda _, message: others.append(message), controller, message)
    return others


@pytest.mark.parametrize("rank", [0, 1])
def test_a_program_message_goes_to_one_replica(sent: list[Any], rank: int) -> None:
    for message in (
        EndProgramReqInput(tenant="t", program_id="p", routed_dp_rank=rank, message_id=""),
        CancelNodesReqInput(tenant="t", program_id="p", routed_dp_rank=rank, rids=[]),
    ):
        assert not send(message, ["zero", "one"])
        assert sent.pop() == (["zero", "one"][rank], message)


def test_a_replica_that_is_gone_is_told_nothing(sent: list[Any]) -> None:
    message = EndProgramReqInput(tenant="t", program_id="p", routed_dp_rank=1, message_id="")
    assert not send(message, ["zero", None])
    assert not sent


def test_upstreams_messages_go_where_they_went(sent: list[Any]) -> None:
    message = AbortReq(rid="r")
    assert send(message, ["zero", "one"]) == [message]
    assert not sent


def test_the_load_of_a_replica_is_what_runs_and_what_waits_there() -> None:
    loads = [
        SimpleNamespace(dp_rank=rank, num_running_reqs=2 * rank, num_waiting_reqs=1)
        for rank in (1, 2)
    ]
    manager = SimpleNamespace(
        elastic_worker_count=4, load_snapshot_reader=SimpleNamespace(read_all=lambda: loads)
    )
    # One that has published nothing yet has nothing.
    assert replicas.replica_loads(manager, None) == {0: 0, 1: 3, 2: 5, 3: 0}
    assert replicas.replica_loads(manager, [True, False, True, False]) == {0: 0, 2: 5}


def test_a_single_replica_needs_no_look_at_the_load() -> None:
    assert replicas.replica_loads(SimpleNamespace(elastic_worker_count=1), None) == {0: 0.0}
