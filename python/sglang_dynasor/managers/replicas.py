"""Data-parallel replicas: how loaded each is, and messages to the one a program lives on.

Upstream: `sglang/srt/managers/data_parallel_controller.py` and `load_snapshot.py`.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.io_struct import sock_send

from sglang_dynasor.managers.program_messages import (
    CancelNodesReqInput,
    DemandReqInput,
    EndProgramReqInput,
    WatchReqInput,
)

_TO_ONE_REPLICA = (DemandReqInput, WatchReqInput, CancelNodesReqInput, EndProgramReqInput)


def replica_loads(manager: Any, status: list[bool] | None) -> dict[int, float]:
    """Requests of each replica that takes some, by rank, as its scheduler last published them.

    `status` says which replicas are alive, None: all.
    """
    ranks = range(manager.elastic_worker_count)
    alive = [rank for rank in ranks if status is None or status[rank]]
    loads = dict.fromkeys(alive, 0.0)
    if len(ranks) > 1:
        for snapshot in manager.load_snapshot_reader.read_all():
            if snapshot.dp_rank in loads:
                loads[snapshot.dp_rank] = snapshot.num_running_reqs + snapshot.num_waiting_reqs
    return loads


def send_to_replica(original: Any, controller: Any, message: Any) -> None:
    """Around `DataParallelController.send_control_message`, which sends to every replica."""
    if not isinstance(message, _TO_ONE_REPLICA):
        original(controller, message)
    elif worker := controller.workers[message.routed_dp_rank]:
        sock_send(worker, message)
