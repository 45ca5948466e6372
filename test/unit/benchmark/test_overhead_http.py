"""The pure parts of the overhead benchmark over HTTP."""

from __future__ import annotations

import json
from argparse import Namespace

from overhead import median_interval
from overhead_http import ARMS, WAVES, chat_body, summarise
from sglang_dynasor.managers.edge_checks import names_program

OPTIONS = Namespace(batch=4, tokens=10, temperature=1.0, seed=0)


def test_ratios_are_paired_by_round_and_above_one_where_the_plugin_is_faster() -> None:
    rounds = {
        "off": [(1.0, 0.5), (2.0, 1.0), (4.0, 2.0)],  # the machine grows slower: pairs cancel it
        "on": [(2.0, 0.25), (4.0, 0.5), (8.0, 1.0)],
    }
    rows = {row["arm"]: row for row in summarise(rounds, OPTIONS, median_interval)}
    assert list(rows) == list(ARMS)
    assert rows["off"]["requests_per_second"] == 4 * WAVES / 2
    assert (rows["off"]["ratio"], rows["on"]["ratio"], rows["on"]["cpu_ratio"]) == (1, 0.5, 2)
    assert rows["off"]["main_ms_per_request"] == round(1000 / (4 * WAVES), 4)
    assert (rows["on"]["low"], rows["on"]["high"]) == (0.5, 0.5)


def test_the_requests_name_no_program() -> None:
    body = chat_body(3, OPTIONS)
    assert json.loads(body)["stream"] is True
    assert not names_program(
        Namespace(sampling_params={}), Namespace(_body=body)
    )  # what is measured is the road of those without one
