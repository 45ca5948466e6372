"""The sampler ``keyed`` in a running engine: draws follow the request, not its batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sglang
import torch

import sglang_dynasor.platforms as platforms
from sglang_dynasor.platforms.keyed_noise import exponential_noise

MODEL = Path(platforms.__file__).parents[1] / "models" / "tiny_reasoner"
VOCABULARY = 104
# Two tokens this close, noise included, may change places when a matrix product rounds differently.
TIE_MARGIN = 1e-3
NEW_TOKENS = 40
BATCH = 32

pytestmark = [
    pytest.mark.own_engine,
    pytest.mark.skipif(platforms.activate() is None, reason="the machine has an accelerator"),
]


@pytest.fixture(scope="module")
def engine() -> Iterator[sglang.Engine]:
    engine = sglang.Engine(
        model_path=str(MODEL), sampling_backend="keyed", chunked_prefill_size=64, random_seed=3
    )
    yield engine
    engine.shutdown()


def prompt(number: int) -> list[int]:
    source = random.Random(number)
    return [source.randrange(6, 102) for _ in range(source.randrange(3, 150))]


def parameters(seed: int | None, **changes: Any) -> dict[str, Any]:
    return {
        "temperature": 1.0,
        "max_new_tokens": NEW_TOKENS,
        "ignore_eos": True,
        "sampling_seed": seed,
        **changes,
    }


def run(engine: sglang.Engine, ids: Any, params: Any, **changes: Any) -> Any:
    """Generate with the log probability of the whole vocabulary at every new token."""
    return engine.generate(
        input_ids=ids,
        sampling_params=params,
        return_logprob=True,
        top_logprobs_num=VOCABULARY,
        **changes,
    )


def race(result: dict[str, Any], seed: int, prompt_length: int, step: int) -> torch.Tensor:
    """Log of each token's arrival rate in the race at one step: log probability minus log noise."""
    logprobs = torch.full((VOCABULARY,), -torch.inf)
    for logprob, token, _ in result["meta_info"]["output_top_logprobs"][step]:
        logprobs[token] = logprob
    # The token after a text of n tokens is drawn at position n - 1.
    position = torch.tensor([prompt_length + step - 1])
    return logprobs - exponential_noise(torch.tensor([seed]), position, VOCABULARY)[0].log()


def assert_equal_until_a_tie(
    expected: dict[str, Any], actual: dict[str, Any], seed: int, prompt_length: int
) -> None:
    pairs = zip(expected["output_ids"], actual["output_ids"], strict=True)
    for step, (wanted, got) in enumerate(pairs):
        if wanted != got:
            best, second = race(expected, seed, prompt_length, step).topk(2).values
            assert float(best - second) < TIE_MARGIN, f"diverged at step {step} without a tie"
            return


@pytest.mark.parametrize("seed", [0, 1, -7, 2**63 - 1])
def test_tokens_are_the_winners_of_the_race_for_seed_and_position(
    engine: sglang.Engine, seed: int
) -> None:
    ids = prompt(1)
    result = run(engine, ids, parameters(seed))
    for step, token in enumerate(result["output_ids"]):
        rates = race(result, seed, len(ids), step)
        assert float(rates.max() - rates[token]) < TIE_MARGIN, f"step {step}"


def test_a_request_draws_the_same_alone_and_inside_a_batch(engine: sglang.Engine) -> None:
    prompts = [prompt(number) for number in range(BATCH)]
    settings = [parameters(seed=100 + number) for number in range(BATCH)]
    # The others end at different steps: the batch shrinks, rows move.
    for number in range(1, BATCH, 3):
        settings[number]["max_new_tokens"] = 3 + number
    together = run(engine, prompts, settings)
    for number in (0, 9, 18, 30):
        engine.flush_cache()
        alone = run(engine, prompts[number], settings[number])
        assert_equal_until_a_tie(alone, together[number], 100 + number, len(prompts[number]))


def test_a_cached_or_chunked_prompt_draws_the_same(engine: sglang.Engine) -> None:
    ids = [*prompt(2), *prompt(3), *prompt(4)][:200]
    engine.flush_cache()
    chunked = run(engine, ids, parameters(5))
    cached = run(engine, ids, parameters(5))
    assert chunked["meta_info"]["cached_tokens"] == 0 < cached["meta_info"]["cached_tokens"]
    assert_equal_until_a_tie(chunked, cached, 5, len(ids))


def test_other_seeds_draw_other_tokens(engine: sglang.Engine) -> None:
    results = run(engine, [prompt(5)] * 8, [parameters(seed) for seed in range(8)])
    assert len({tuple(result["output_ids"]) for result in results}) == 8


def test_requests_without_a_seed_follow_their_id(engine: sglang.Engine) -> None:
    ids, settings = [prompt(6)] * 4, [parameters(None) for _ in range(4)]
    names = [f"p::{branch}" for branch in range(4)]
    first = run(engine, ids, settings, rid=names)
    engine.flush_cache()
    second = run(engine, ids, settings, rid=names)
    anonymous = run(engine, ids, settings)
    for one, two in zip(first, second, strict=True):
        assert one["output_ids"][:8] == two["output_ids"][:8]
    outputs = {tuple(result["output_ids"]) for result in (*first, *anonymous)}
    assert len(outputs) == 8, "branches without a seed must not be copies of each other"


def test_greedy_rows_in_a_sampled_batch_stay_greedy(engine: sglang.Engine) -> None:
    ids = prompt(7)
    greedy = parameters(1, temperature=0)
    alone = run(engine, ids, greedy)
    mixed = run(engine, [ids, prompt(8), prompt(9)], [greedy, parameters(2), parameters(3)])[0]
    for step, (wanted, got) in enumerate(
        zip(alone["output_ids"], mixed["output_ids"], strict=True)
    ):
        best, second = alone["meta_info"]["output_top_logprobs"][step][:2]
        if wanted != got:
            assert best[0] - second[0] < TIE_MARGIN
            break


def test_filters_hold_per_request(engine: sglang.Engine) -> None:
    filters: list[dict[str, Any]] = [{"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}, {}]
    settings = [parameters(seed, **kept) for seed, kept in enumerate(filters)]
    results = run(engine, [prompt(10)] * 4, settings)
    for step in range(NEW_TOKENS):
        ranked = [result["meta_info"]["output_top_logprobs"][step] for result in results]
        drawn = [result["output_ids"][step] for result in results]
        assert drawn[0] in [token for _, token, _ in ranked[0][:2]]
        ahead = torch.tensor([p for p, token, _ in ranked[1] if p > _of(ranked[1], drawn[1])])
        assert float(ahead.exp().sum()) <= 0.5 + 1e-4
        assert _of(ranked[2], drawn[2]) - ranked[2][0][0] >= torch.tensor(0.5).log() - 1e-4


def _of(ranked: list[Any], token: int) -> float:
    return next(logprob for logprob, candidate, _ in ranked if candidate == token)
