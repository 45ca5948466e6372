"""Certainty on its way to the client: one value per token in every kind of stream."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sglang_dynasor.kernels.token_certainty import COLUMNS
from sglang_dynasor.managers.certainty_report import (
    RETURNED,
    note_streamed,
    streamed_reports,
    take_certainty,
)


def rows(*numbers: float) -> list[list[float]]:
    return [[number + column for column in range(len(COLUMNS))] for number in numbers]


def test_values_become_one_list_per_measure_and_leave_the_meta_information() -> None:
    meta: dict[str, Any] = {"id": "x", "certainty": {"tokens": 2}, "token_certainty": rows(1, 10)}
    taken = take_certainty(meta)
    assert meta == {"id": "x"}
    assert taken["certainty"] == {"tokens": 2}
    assert set(taken["token_certainty"]) == set(COLUMNS) - {"logsumexp"} == set(RETURNED)
    for name in RETURNED:
        column = COLUMNS.index(name)
        assert taken["token_certainty"][name] == [1.0 + column, 10.0 + column]


def test_values_are_rounded_to_what_float32_holds() -> None:
    meta = {"token_certainty": [[float(np.float32(0.1))] * len(COLUMNS)]}
    assert take_certainty(meta)["token_certainty"]["entropy"] == [0.1]


def test_without_measurement_nothing_is_added() -> None:
    assert take_certainty({"id": "x"}) == {}


@pytest.mark.parametrize("incremental", [True, False])
def test_a_stream_ends_with_the_values_of_all_its_tokens(incremental: bool) -> None:
    obj = SimpleNamespace()
    for seen in range(1, 4):
        values = [float(token) for token in range(seen - 1 if incremental else 0, seen)]
        for index in (1, 0):
            report = {"program_id": "p", "token_certainty": {"entropy": values}}
            output = {"index": index, "meta_info": {"dynasor": report}}
            note_streamed(obj, output, incremental)
    reports = streamed_reports(obj)
    assert [report["token_certainty"]["entropy"] for report in reports if report] == [
        [0.0, 1.0, 2.0]
    ] * 2
    assert streamed_reports(SimpleNamespace()) == []
