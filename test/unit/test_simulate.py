"""The workload of `sglang-dynasor simulate`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sglang_dynasor.simulate import WorkloadProgram, prompt_of


def program(name: str, prompt_tokens: int) -> WorkloadProgram:
    return WorkloadProgram(name, 0.0, prompt_tokens, "1", [(5, "1")])


def test_no_two_programs_share_more_of_a_prompt_than_chance_has_it() -> None:
    beginnings = {tuple(prompt_of(program(f"p{n}", 40))[:12]) for n in range(1000)}
    assert len(beginnings) == 1000


@given(st.text(max_size=20), st.integers(1, 600))
def test_a_prompt_is_as_long_as_it_says_and_always_the_same(name: str, length: int) -> None:
    prompt = prompt_of(program(name, length))
    assert len(prompt) == length
    assert prompt == prompt_of(program(name, length))
    assert {3 <= token < 19 for token in prompt} == {True}
