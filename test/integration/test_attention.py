"""``batched_cpu`` in a running engine: the answers of ``torch_native``, also after retraction."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sglang

import sglang_dynasor.platforms as platforms

MODEL = Path(platforms.__file__).parents[1] / "models" / "tiny_reasoner"
LOGPROB_TOLERANCE = 1e-4
# Two tokens this close may change places when a matrix product rounds differently.
TIE_MARGIN = 1e-3
PROMPTS = 24
NEW_TOKENS = 48
# Far less than the retraction test's requests need together, enough for any one of them.
POOL_TOKENS = 1_600

pytestmark = [
    pytest.mark.own_engine,
    pytest.mark.skipif(platforms.activate() is None, reason="the machine has an accelerator"),
]


def start(**arguments: Any) -> sglang.Engine:
    return sglang.Engine(
        model_path=str(MODEL), max_total_tokens=POOL_TOKENS, chunked_prefill_size=128, **arguments
    )


def prompts() -> list[list[int]]:
    """Character tokens, 3 to 190 of them: some prompts are longer than a prefill chunk."""
    source = random.Random(7)
    lengths = [3, 190, 130, *(source.randrange(4, 40) for _ in range(PROMPTS - 3))]
    return [[source.randrange(6, 102) for _ in range(length)] for length in lengths]


def greedy(engine: sglang.Engine, requests: list[list[int]], tokens: int) -> list[dict[str, Any]]:
    return engine.generate(
        input_ids=requests,
        sampling_params={"temperature": 0, "max_new_tokens": tokens, "min_new_tokens": tokens},
        return_logprob=True,
        top_logprobs_num=2,
    )


def score(engine: sglang.Engine, texts: list[list[int]]) -> list[list[float]]:
    """Teacher-forced log probability of every token but the first."""
    results = engine.generate(
        input_ids=texts,
        sampling_params={"temperature": 0, "max_new_tokens": 1},
        return_logprob=True,
        logprob_start_len=0,
    )
    return [
        [entry[0] for entry in result["meta_info"]["input_token_logprobs"][1:]]
        for result in results
    ]


def assert_equal_until_a_tie(expected: dict[str, Any], actual: dict[str, Any]) -> None:
    """Greedy tokens are equal up to the first position whose two best tokens are tied.

    Also compares the log probability of every token up to there.
    """
    pairs = zip(expected["output_ids"], actual["output_ids"], strict=True)
    for position, (wanted, got) in enumerate(pairs):
        if wanted != got:
            best, second = expected["meta_info"]["output_top_logprobs"][position]
            assert best[0] - second[0] < TIE_MARGIN, f"diverged at {position} without a tie"
            return
        logprobs = [
            result["meta_info"]["output_token_logprobs"][position][0]
            for result in (expected, actual)
        ]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=LOGPROB_TOLERANCE)


@pytest.fixture(scope="module")
def native() -> tuple[list[dict[str, Any]], list[list[float]]]:
    """Greedy results and scores of the same work under torch_native; its engine is gone after."""
    engine = start(attention_backend="torch_native")
    try:
        results = greedy(engine, prompts(), NEW_TOKENS)
        engine.flush_cache()
        return results, score(engine, texts_of(results))
    finally:
        engine.shutdown()


def texts_of(results: list[dict[str, Any]]) -> list[list[int]]:
    return [
        prompt + result["output_ids"] for prompt, result in zip(prompts(), results, strict=True)
    ]


@pytest.fixture(scope="module")
def engine(native: Any) -> Iterator[sglang.Engine]:
    """The platform's own defaults, started after the torch_native engine has ended."""
    engine = start(schedule_conservativeness=0.01)
    yield engine
    engine.shutdown()


def test_an_engine_without_further_flags_runs_our_backend(engine: sglang.Engine) -> None:
    info = engine.get_server_info()
    assert info["attention_backend"] == "batched_cpu"
    assert info["device"] == "cpu" and info["dtype"] == "float32"


def test_greedy_decoding_equals_torch_native(engine: sglang.Engine, native: Any) -> None:
    engine.flush_cache()
    for expected, actual in zip(native[0], greedy(engine, prompts(), NEW_TOKENS), strict=True):
        assert_equal_until_a_tie(expected, actual)


def test_teacher_forced_logprobs_equal_torch_native(engine: sglang.Engine, native: Any) -> None:
    engine.flush_cache()
    ours = score(engine, texts_of(native[0]))
    for expected, actual in zip(native[1], ours, strict=True):
        assert actual == pytest.approx(expected, abs=LOGPROB_TOLERANCE)


def test_a_cached_prefix_gives_the_same_logprobs(engine: sglang.Engine, native: Any) -> None:
    """The second half of each text is decided on keys another request computed."""
    engine.flush_cache()
    text, expected = max(
        zip(texts_of(native[0]), native[1], strict=True), key=lambda one: len(one[0])
    )
    half = len(text) // 2
    engine.generate(input_ids=text[:half], sampling_params={"temperature": 0, "max_new_tokens": 1})
    result = engine.generate(
        input_ids=text,
        sampling_params={"temperature": 0, "max_new_tokens": 1},
        return_logprob=True,
        logprob_start_len=half,
    )
    assert result["meta_info"]["cached_tokens"] >= half - 1
    found = [entry[0] for entry in result["meta_info"]["input_token_logprobs"][1:]]
    assert found == pytest.approx(expected[half:], abs=LOGPROB_TOLERANCE)


def test_retracted_requests_give_the_same_text(engine: sglang.Engine) -> None:
    tokens = 120
    short = [prompt[:30] for prompt in prompts()]
    alone = []
    for prompt in short[:6]:
        engine.flush_cache()
        alone += greedy(engine, [prompt], tokens)
    engine.flush_cache()
    crowded = greedy(engine, short, tokens)
    assert sum(result["meta_info"]["num_retractions"] for result in crowded) > 0
    for expected, actual in zip(alone, crowded[:6], strict=True):
        assert_equal_until_a_tie(expected, actual)
