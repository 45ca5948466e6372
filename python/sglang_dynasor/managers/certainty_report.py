"""Token certainty on its way to the client: collected per request, shaped when it is returned."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_dynasor.kernels.token_certainty import COLUMNS
from sglang_dynasor.managers.program_messages import CARRIER

SUMMARY = "certainty"
VALUES = "token_certainty"
# The log-sum-exp says nothing on its own: logits have no origin.
RETURNED = tuple(name for name in COLUMNS if name != "logsumexp")
_DECIMALS = 6  # float32 holds no more


def take_certainty(meta_info: dict[str, Any]) -> dict[str, Any]:
    """Move what was collected out of `meta_info`: `certainty` of the whole request, once it has
    ended, and `token_certainty`, one list per measure with a value for every token so far."""
    taken: dict[str, Any] = {}
    if (summary := meta_info.pop(SUMMARY, None)) is not None:
        taken[SUMMARY] = summary
    if rows := meta_info.pop(VALUES, None):
        values = np.round(np.array(rows), _DECIMALS)
        taken[VALUES] = {name: values[:, COLUMNS.index(name)].tolist() for name in RETURNED}
    return taken


def note_streamed(obj: Any, output: dict[str, Any], incremental: bool) -> None:
    """Keep the latest report of each choice on the request: an OpenAI stream ends with them.

    `incremental`: the chunks of this server hold what is new, not all that was generated so far.
    """
    reports: dict[int, dict[str, Any]] = vars(obj).setdefault("dynasor_reports", {})
    index = output.get("index", 0)
    report = dict(output["meta_info"][CARRIER])
    earlier = reports.get(index, {}).get(VALUES) if incremental else None
    if earlier is not None:
        new = report.get(VALUES, {})
        report[VALUES] = {name: values + new.get(name, []) for name, values in earlier.items()}
    reports[index] = report


def streamed_reports(obj: Any) -> list[dict[str, Any] | None]:
    """The reports that `note_streamed` kept, in the order of the choices."""
    reports: dict[int, dict[str, Any]] = vars(obj).get("dynasor_reports", {})
    return [reports[index] for index in sorted(reports)]
