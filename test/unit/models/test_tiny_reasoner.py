"""The shipped folder: measured properties, weights, tokenizer and chat template."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sglang_dynasor import models
from sglang_dynasor.models import arithmetic
from sglang_dynasor.models.character_tokenizer import CHARACTERS, encode, generation_prompt

FOLDER = models.default_model_path()


@pytest.fixture(scope="module")
def properties() -> dict[str, Any]:
    return json.loads((FOLDER / "properties.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


def test_the_figures_belong_to_the_shipped_weights(properties: dict[str, Any]) -> None:
    weights = (FOLDER / "model.safetensors").read_bytes()
    assert properties["model_sha256"] == hashlib.sha256(weights).hexdigest()
    assert len(weights) <= 8 * 2**20


def test_the_recommended_temperature_is_the_measured_one(properties: dict[str, Any]) -> None:
    assert models.recommended_temperature(FOLDER) == properties["temperature"]


def test_single_samples_are_right_often_but_not_always(properties: dict[str, Any]) -> None:
    plain = properties["plain"]
    assert (plain["problems"], plain["samples_per_problem"]) == (1000, 16)
    assert 0.55 <= plain["single_accuracy"] <= 0.85


def test_accuracy_falls_with_difficulty(properties: dict[str, Any]) -> None:
    by_level = properties["plain"]["single_accuracy_by_difficulty"]
    values = [by_level[str(level)] for level in arithmetic.LEVELS]
    assert values == sorted(values, reverse=True) and values[0] - values[-1] > 0.1


def test_a_majority_of_sixteen_is_at_least_five_points_better(properties: dict[str, Any]) -> None:
    plain = properties["plain"]
    assert plain["majority_accuracy"] >= plain["single_accuracy"] + 0.05
    assert abs(plain["majority_by_k"]["1"] - plain["single_accuracy"]) < 0.01
    assert plain["majority_by_k"]["16"] > plain["majority_by_k"]["1"]


def test_a_few_problems_are_never_solved(properties: dict[str, Any]) -> None:
    assert 0 < properties["plain"]["never_solved"] <= 0.1


def test_wrong_answers_disagree_in_more_than_one_way(properties: dict[str, Any]) -> None:
    assert properties["plain"]["problems_with_two_or_more_wrong_answers"] > 0.1


def test_thinking_spends_three_times_the_tokens_needed(properties: dict[str, Any]) -> None:
    thinking = properties["thinking"]
    assert thinking["tokens_ratio"] >= 3.0 and thinking["accuracy"] > 0.4


def test_printable_text_survives_a_round_trip(tokenizer: Any) -> None:
    for text in ("".join(CHARACTERS), "a  b .\n\n , 'tis n't", r"\boxed{12} <think>x</think>"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text
        assert ids == encode(text)


def test_a_character_outside_the_vocabulary_becomes_unknown(tokenizer: Any) -> None:
    ids = tokenizer.encode("1\u00e92", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["1", "<unk>", "2"]


@pytest.mark.parametrize("thinking", [None, False, True])
def test_the_template_opens_a_thought_only_when_asked(
    tokenizer: Any, thinking: bool | None
) -> None:
    options = {} if thinking is None else {"enable_thinking": thinking}
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+2"}],
        add_generation_prompt=True,
        tokenize=False,
        **options,
    )
    assert text == generation_prompt("1+2", bool(thinking))


def test_the_template_renders_earlier_turns_and_refuses_other_roles(tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "1+2"}, {"role": "assistant", "content": "3"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<bos><|user|>1+2<|assistant|>3<eos>"
    with pytest.raises(Exception, match="unsupported role"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_greedy_decoding_solves_an_easy_problem(tokenizer: Any) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    problems = arithmetic.held_out_problems(8, seed=11, levels=(2, 3))
    right = 0
    for problem in problems:
        rendered = generation_prompt(problem.prompt, False)
        prompt = tokenizer.encode(rendered, add_special_tokens=False, return_tensors="pt")
        output = model.generate(prompt, max_new_tokens=60, do_sample=False)
        text = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
        right += text == arithmetic.plain_solution(problem.prompt)
    assert right >= 7


def test_the_embedded_model_is_found_by_name_and_by_path() -> None:
    assert models.resolve_model("tiny_reasoner") == models.resolve_model(str(FOLDER)) == FOLDER


def test_an_unknown_name_is_refused_with_the_names_allowed() -> None:
    for name in ("", "huge_reasoner"):
        with pytest.raises(ValueError, match="'tiny_reasoner', 'smollm2'"):
            models.resolve_model(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        models.resolve_model(str(tmp_path))


def test_a_model_that_is_not_fetched_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_DYNASOR_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="models fetch smollm2"):
        models.resolve_model("smollm2")


def test_a_folder_without_generation_defaults_has_no_temperature(tmp_path: Path) -> None:
    assert models.recommended_temperature(tmp_path) is None
    (tmp_path / "generation_config.json").write_text("{}")
    assert models.recommended_temperature(tmp_path) is None


def test_importing_the_models_loads_no_framework() -> None:
    code = (
        "import sys, sglang_dynasor.models, sglang_dynasor.models.arithmetic,"
        " sglang_dynasor.models.smollm2;"
        "assert not {'torch', 'sglang', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_tokenizer_keeps_no_prompt_it_has_seen(tokenizer: Any) -> None:
    """Its model caches whole words: without a split every prompt was one, 2 KB each."""
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    assert pre_tokenizer is not None
    assert [word for word, _ in pre_tokenizer.pre_tokenize_str("12+34")] == list("12+34")
