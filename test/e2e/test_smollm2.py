"""A real pretrained model on the CPU: minutes, hence slow; the first run downloads 93 MB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from sglang_dynasor import Program
from sglang_dynasor.models import smollm2

if TYPE_CHECKING:
    from sglang_dynasor import DynasorEngine

pytestmark = [pytest.mark.slow, pytest.mark.own_engine]


@pytest.fixture(scope="module")
def large_engine() -> Iterator[DynasorEngine]:
    from sglang_dynasor import DynasorEngine

    engine = DynasorEngine(model_path=str(smollm2.fetch()), sampling_backend="keyed", random_seed=1)
    yield engine
    engine.shutdown()


def test_a_pretrained_chat_model_votes_on_a_sum(large_engine: DynasorEngine) -> None:
    program = Program(
        messages=[{"role": "user", "content": "What is 2 + 2?"}],
        sampling_params={"temperature": 0.7, "max_new_tokens": 48, "sampling_seed": 5},
        dynasor={"algorithm": "self_consistency", "answer_format": "number", "max_branches": 8},
    )
    result = large_engine.run(program)
    assert result.answer == "4", result.report["votes"]
    assert result.report["branches"]["finished"] >= 3
    tokens = result.report["tokens"]
    assert result.completion_tokens == tokens["branch"] + tokens["cancelled"]
