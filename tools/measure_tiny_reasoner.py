"""Measure the embedded tiny model by sampling, and write the figures next to its weights.

    python tools/measure_tiny_reasoner.py --model DIR --temperature 1.6
    python tools/measure_tiny_reasoner.py --model DIR --sweep 1.0,1.2,1.4 --problems 200 --samples 4

Problems are held-out ones, levels in turn. Samples are drawn from the full distribution at one
temperature: no top-k, no top-p. A sweep prints one line per temperature and writes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from sglang_dynasor.models import arithmetic, default_model_path

PROBE_INTERVAL = 16
BATCH = 800
RANDOM_ORDERS = 64


@dataclass(frozen=True)
class Sample:
    """One sampled turn: text, boxed answer ("" when there is none), length in tokens."""

    text: str
    answer: str
    tokens: int


class Sampler:
    """Batched sampling with a key-value cache; rows that have ended leave the batch."""

    def __init__(self, folder: Path, temperature: float, seed: int) -> None:
        """Load model and tokenizer. ``temperature`` 0 means greedy."""
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.temperature = temperature
        self.generator = torch.Generator().manual_seed(seed)

    def prompt(self, content: str, thinking: bool) -> str:
        """The rendered chat turn the model continues."""
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            enable_thinking=thinking,
            tokenize=False,
        )

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits / self.temperature, -1)
        return torch.multinomial(probabilities, 1, generator=self.generator)[:, 0]

    @torch.inference_mode()
    def generate(self, prompts: list[str], max_new: int) -> list[list[int]]:
        """New token ids per prompt, end-of-turn token included. Prompts must be equally long."""
        ids = torch.tensor(
            [self.tokenizer.encode(text, add_special_tokens=False) for text in prompts]
        )
        cache = DynamicCache(config=self.model.config)
        rows = torch.arange(len(prompts))
        running = torch.ones(len(prompts), dtype=torch.bool)
        done: list[list[int]] = [[] for _ in prompts]
        end = self.tokenizer.eos_token_id
        for _ in range(max_new):
            output = self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
            drawn = self._draw(output.logits[:, -1])
            for row, token in zip(rows.tolist(), drawn.tolist(), strict=True):
                done[row].append(token)
            running &= drawn != end
            if not bool(running.any()):
                break
            # Compacting copies the cache, so it waits until a fifth of the rows has ended.
            if int(running.sum()) < 0.8 * len(rows):
                keep = running.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                rows, drawn, running = rows[keep], drawn[keep], running[keep]
            ids = drawn[:, None]
        return [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in done]


def sample_problems(
    sampler: Sampler, problems: list[arithmetic.Problem], samples: int, thinking: bool
) -> list[list[Sample]]:
    """``samples`` turns per problem, in problem order."""
    max_new = 400 if thinking else 160
    result: list[list[Sample]] = [[] for _ in problems]
    jobs: dict[int, list[int]] = {}
    for index, problem in enumerate(problems):
        jobs.setdefault(problem.difficulty, []).extend([index] * samples)
    chunks = [
        indices[start : start + BATCH]
        for _, indices in sorted(jobs.items())
        for start in range(0, len(indices), BATCH)
    ]
    for indices in tqdm(chunks, unit="batch", leave=False):
        prompts = [sampler.prompt(problems[index].prompt, thinking) for index in indices]
        for index, tokens in zip(indices, sampler.generate(prompts, max_new), strict=True):
            text = sampler.tokenizer.decode(tokens, skip_special_tokens=True)
            result[index].append(Sample(text, arithmetic.boxed_answer(text), len(tokens)))
    return result


def by_level(problems: list[arithmetic.Problem], values: list[float]) -> dict[str, float]:
    """Mean of one value per problem, by level."""
    levels = sorted({problem.difficulty for problem in problems})
    return {
        str(level): round(
            mean(v for p, v in zip(problems, values, strict=True) if p.difficulty == level), 4
        )
        for level in levels
    }


def majority_curve(
    problems: list[arithmetic.Problem], drawn: list[list[Sample]], seed: int
) -> dict[str, float]:
    """Accuracy of the majority of the first k samples, mean over seeded random orders."""
    rng = random.Random(seed)
    right = [0] * len(drawn[0])
    for problem, samples in zip(problems, drawn, strict=True):
        answers = [sample.answer for sample in samples]
        for _ in range(RANDOM_ORDERS):
            rng.shuffle(answers)
            for k in range(len(answers)):
                right[k] += arithmetic.majority(answers[: k + 1]) == problem.gold
    total = RANDOM_ORDERS * len(problems)
    return {str(k + 1): round(count / total, 4) for k, count in enumerate(right)}


def plain_figures(
    problems: list[arithmetic.Problem], drawn: list[list[Sample]], seed: int
) -> dict[str, object]:
    """The figures of plain mode."""
    correct = [
        [float(sample.answer == problem.gold) for sample in samples]
        for problem, samples in zip(problems, drawn, strict=True)
    ]
    single = [mean(row) for row in correct]
    votes = [
        float(arithmetic.majority([sample.answer for sample in samples]) == problem.gold)
        for problem, samples in zip(problems, drawn, strict=True)
    ]
    wrong = [
        len({sample.answer for sample in samples if sample.answer not in ("", problem.gold)})
        for problem, samples in zip(problems, drawn, strict=True)
    ]
    everything = [sample for samples in drawn for sample in samples]
    return {
        "problems": len(problems),
        "samples_per_problem": len(drawn[0]),
        "single_accuracy": round(mean(single), 4),
        "single_accuracy_by_difficulty": by_level(problems, single),
        "majority_accuracy": round(mean(votes), 4),
        "majority_accuracy_by_difficulty": by_level(problems, votes),
        "never_solved": round(mean(float(not any(row)) for row in correct), 4),
        "always_solved": round(mean(float(all(row)) for row in correct), 4),
        "unreadable_answers": round(mean(float(not sample.answer) for sample in everything), 4),
        "distinct_wrong_answers_mean": round(mean(wrong), 3),
        "problems_with_two_or_more_wrong_answers": round(mean(float(n >= 2) for n in wrong), 4),
        "majority_by_k": majority_curve(problems, drawn, seed),
        "majority_by_k_note": f"mean over {RANDOM_ORDERS} seeded random orders, first k samples",
        "tokens_mean": round(mean(sample.tokens for sample in everything), 2),
        "tokens_by_difficulty": by_level(
            problems, [mean(sample.tokens for sample in samples) for samples in drawn]
        ),
    }


def forced_figures(
    sampler: Sampler, problems: list[arithmetic.Problem], drawn: list[Sample], probe: str
) -> dict[str, object]:
    """Cut each thought every few tokens, force an answer, and compare it with the uncut one."""
    seen: dict[str, list[float]] = {"before": [], "after": []}
    cuts: dict[int, list[tuple[str, str, str]]] = {}
    for problem, sample in zip(problems, drawn, strict=True):
        thought, _, _ = sample.text.partition(arithmetic.THINK_CLOSE)
        steps = [found.end() for found in re.finditer(";", thought)]
        solved = steps[problem.difficulty - 2] if len(steps) >= problem.difficulty - 1 else None
        for position in range(PROBE_INTERVAL, len(thought), PROBE_INTERVAL):
            rendered = sampler.prompt(problem.prompt, True) + thought[:position] + probe
            length = len(sampler.tokenizer.encode(rendered, add_special_tokens=False))
            phase = "before" if solved is None or position < solved else "after"
            cuts.setdefault(length, []).append((rendered, phase, sample.answer))
    sampling, sampler.temperature = sampler.temperature, 0.0
    for group in cuts.values():
        forced = sampler.generate([rendered for rendered, _, _ in group], 6)
        for (_, phase, final), tokens in zip(group, forced, strict=True):
            answer = arithmetic.boxed_answer(
                "\\boxed{" + sampler.tokenizer.decode(tokens, skip_special_tokens=True)
            )
            seen[phase].append(float(answer == final != ""))
    sampler.temperature = sampling
    return {
        "probe": probe,
        "cuts": len(seen["before"]) + len(seen["after"]),
        "equals_final_before_first_derivation": round(mean(seen["before"] or [0.0]), 4),
        "equals_final_after_first_derivation": round(mean(seen["after"] or [0.0]), 4),
    }


def thinking_figures(sampler: Sampler, problems: list[arithmetic.Problem]) -> dict[str, object]:
    """The figures of think mode, one sample per problem."""
    drawn = [samples[0] for samples in sample_problems(sampler, problems, 1, True)]
    correct = [float(s.answer == p.gold) for p, s in zip(problems, drawn, strict=True)]
    # Both counts end with the end-of-turn token; the opening tag belongs to the prompt.
    needed = [len(arithmetic.plain_solution(problem.prompt)) + 1 for problem in problems]
    closed = [float(arithmetic.THINK_CLOSE in sample.text) for sample in drawn]
    return {
        "problems": len(problems),
        "temperature": sampler.temperature,
        "accuracy": round(mean(correct), 4),
        "accuracy_by_difficulty": by_level(problems, correct),
        "tokens_mean": round(mean(sample.tokens for sample in drawn), 2),
        "tokens_needed_mean": round(mean(needed), 2),
        "tokens_ratio": round(sum(sample.tokens for sample in drawn) / sum(needed), 3),
        "closed_thoughts": round(mean(closed), 4),
        "forced_answer_interval_tokens": PROBE_INTERVAL,
        "forced_answers_greedy": [
            forced_figures(sampler, problems[:60], drawn[:60], probe)
            for probe, _ in arithmetic.FORCED_ENDINGS
        ],
    }


def measure(args: argparse.Namespace, temperature: float) -> dict[str, object]:
    """All figures at one temperature."""
    started = time.monotonic()
    sampler = Sampler(args.model, temperature, args.seed)
    problems = arithmetic.held_out_problems(args.problems, args.seed)
    drawn = sample_problems(sampler, problems, args.samples, False)
    plain = plain_figures(problems, drawn, args.seed)
    think_problems = arithmetic.held_out_problems(args.think_problems, args.seed)
    sampler.temperature = args.think_temperature
    thinking = thinking_figures(sampler, think_problems) if think_problems else None
    weights = (args.model / "model.safetensors").read_bytes()
    return {
        "model": "tiny_reasoner",
        "model_sha256": hashlib.sha256(weights).hexdigest(),
        "parameters": sampler.model.num_parameters(),
        "task": "sums of two-digit numbers, held out: 2 to 6 in equal shares, 7 in one of 16",
        "temperature": temperature,
        "seed": args.seed,
        "plain": plain,
        "thinking": thinking,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": f"{platform.machine()} CPU, {args.threads} thread",
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    """Sweep temperatures, or measure at one and write properties.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=default_model_path())
    parser.add_argument("--temperature", type=float, default=1.0, help="above 0")
    parser.add_argument("--sweep", default=None, help="temperatures, separated by commas")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--think-problems", type=int, default=200)
    # A thought is four times as long: at the plain temperature few would end with the right answer.
    parser.add_argument("--think-temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.sweep:
        for temperature in (float(part) for part in args.sweep.split(",")):
            print(json.dumps(measure(args, temperature)), flush=True)
        return
    properties = measure(args, args.temperature)
    properties["command"] = (
        f"python tools/measure_tiny_reasoner.py --temperature {args.temperature}"
        f" --problems {args.problems} --samples {args.samples}"
        f" --think-problems {args.think_problems} --think-temperature {args.think_temperature}"
        f" --seed {args.seed}"
    )
    generation_file = args.model / "generation_config.json"
    generation = json.loads(generation_file.read_text()) | {"temperature": args.temperature}
    generation_file.write_text(json.dumps(generation, indent=2) + "\n")
    (args.model / "properties.json").write_text(json.dumps(properties, indent=2) + "\n")
    print(json.dumps(properties))


if __name__ == "__main__":
    main()
