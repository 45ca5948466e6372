"""Train the embedded reward model: is every step of a sum worked out so far right?

    python tools/train_tiny_reward.py --out DIR

It starts from the embedded reasoner and judges what that reasoner samples, exact solutions, and
such with one fault: the label of a token says whether everything up to it is how the exact solution
goes on, so every step is checked. Never on a held-out problem. The last line is JSON: the area
under the ROC curve over the steps of samples of held-out problems. One CPU core, float32; the same
seed and library versions give the same model.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmark"))

from train_tiny_reasoner import EOS_ID, PAD_ID, export

from certainty_signals import auroc
from sglang_dynasor.models import arithmetic, resolve_model
from sglang_dynasor.models.character_tokenizer import build_tokenizer, encode, generation_prompt

IGNORED = -1.0
NEW_TOKENS = 64
TEMPERATURES = (1.0, 1.6, 2.2)
STEP_ENDS = ";}"


@dataclass(frozen=True)
class Judged:
    """Token ids of prompt and solution; per token its label, `IGNORED` in the prompt."""

    ids: list[int]
    labels: list[float]
    step_ends: list[int]  # positions


def judge(prompt: str, solution: str) -> Judged:
    """Label each token of a sampled solution, up to the end of its box."""
    box = solution.find("}") + 1
    ids = encode(solution[:box] if box else solution)
    right = encode(arithmetic.plain_solution(prompt))
    before = encode(generation_prompt(prompt, False))
    labels = [float(ids[: end + 1] == right[: end + 1]) for end in range(len(ids))]
    step_ends = {encode(character)[0] for character in STEP_ENDS}
    ends = [len(before) + at for at, token in enumerate(ids) if token in step_ends]
    return Judged(before + ids, [IGNORED] * len(before) + labels, ends)


@torch.no_grad()
def sample(model: LlamaForCausalLM, prompts: list[str], temperature: float) -> list[str]:
    """One solution of each prompt, as the reasoner writes it."""
    tokenizer = build_tokenizer()
    rows = [encode(generation_prompt(prompt, False)) for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[PAD_ID] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
    )
    return tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)


def training_prompts(rng: random.Random, count: int) -> list[str]:
    """Problems of every level, none held out."""
    prompts: list[str] = []
    while len(prompts) < count:
        prompt = arithmetic.random_prompt(rng, rng.choice(arithmetic.LEVELS))
        if not arithmetic.is_held_out(prompt):
            prompts.append(prompt)
    return prompts


def wrong(number: int, rng: random.Random) -> int:
    """Another number of as many digits, one digit off."""
    digits = list(str(number))
    place = rng.randrange(len(digits))
    lowest = 1 if place == 0 and len(digits) > 1 else 0
    others = [digit for digit in "0123456789"[lowest:] if digit != digits[place]]
    digits[place] = rng.choice(others)
    return int("".join(digits))


def faulty_solution(prompt: str, rng: random.Random) -> str:
    """A solution with one fault, which it goes on from: an operand, a sum, a step or the box."""
    first, *operands = arithmetic.parse_operands(prompt)
    at, kind = rng.randint(0, len(operands)), rng.choice(("operand", "sum", "left", "skipped"))
    total, steps = first, []
    for number, operand in enumerate(operands):
        fault = kind if number == at else ""
        if fault == "skipped" and len(operands) > 1:
            continue
        left = wrong(total, rng) if fault == "left" else total
        used = wrong(operand, rng) if fault == "operand" else operand
        total = left + used
        if fault == "sum" or (fault == "skipped" and len(operands) == 1):
            total = wrong(total, rng)
        steps.append(f"{left}+{used}={total};")
    shown = wrong(total, rng) if at == len(operands) else total
    return "".join(steps) + arithmetic.boxed(shown)


def made_up(prompts: list[str], rng: random.Random) -> list[Judged]:
    """Three solutions of four have a fault."""
    solutions = (
        faulty_solution(prompt, rng) if rng.random() < 0.75 else arithmetic.plain_solution(prompt)
        for prompt in prompts
    )
    return list(map(judge, prompts, solutions))


def judged_samples(model: LlamaForCausalLM, prompts: list[str], batch: int) -> list[Judged]:
    """Samples of all prompts, a batch at a time, temperatures in turn."""
    judged: list[Judged] = []
    for number, start in enumerate(tqdm(range(0, len(prompts), batch), desc="samples")):
        part = prompts[start : start + batch]
        solutions = sample(model, part, TEMPERATURES[number % len(TEMPERATURES)])
        judged += map(judge, part, solutions)
    return judged


def padded(rows: list[Judged]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, mask and labels, padded on the right."""
    width = max(len(row.ids) for row in rows)
    gaps = [width - len(row.ids) for row in rows]
    pairs = list(zip(rows, gaps, strict=True))
    ids = torch.tensor([row.ids + [PAD_ID] * gap for row, gap in pairs])
    mask = torch.tensor([[1] * len(row.ids) + [0] * gap for row, gap in pairs])
    labels = torch.tensor([row.labels + [IGNORED] * gap for row, gap in pairs])
    return ids, mask, labels


def logits_of(
    model: LlamaForSequenceClassification, ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The judgement at every token: what the model would say of the sequence up to it."""
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return model.score(hidden)[..., 0]


def new_reward_model(reasoner: LlamaForCausalLM) -> LlamaForSequenceClassification:
    """The reasoner with a judge's head; the last token judges."""
    config = LlamaConfig(**reasoner.config.to_dict())
    config.num_labels = 1
    config.architectures = ["LlamaForSequenceClassification"]
    config.tie_word_embeddings = False
    config.pad_token_id = PAD_ID
    model = LlamaForSequenceClassification(config).float()
    model.model.load_state_dict(reasoner.model.state_dict())
    return model


def train(
    model: LlamaForSequenceClassification, judged: list[Judged], args: argparse.Namespace
) -> None:
    """Binary cross entropy over the labelled tokens, of new made-up solutions in each step."""
    rng = random.Random(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.01)
    bar = tqdm(range(args.steps), desc="steps")
    for step in bar:
        rows = rng.sample(judged, args.batch // 4)
        rows += made_up(training_prompts(rng, args.batch - len(rows)), rng)
        ids, mask, labels = padded(rows)
        counted = labels != IGNORED
        logits = logits_of(model, ids, mask)
        loss = functional.binary_cross_entropy_with_logits(logits[counted], labels[counted])
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, (step + 1) / 100, 1.02 - step / args.steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


@torch.no_grad()
def step_judgements(
    model: LlamaForSequenceClassification, judged: list[Judged]
) -> tuple[list[float], list[bool]]:
    """Judgement and label of every step."""
    scores: list[float] = []
    labels: list[bool] = []
    for start in range(0, len(judged), 256):
        rows = judged[start : start + 256]
        ids, mask, _ = padded(rows)
        logits = logits_of(model, ids, mask)
        for index, row in enumerate(rows):
            scores += logits[index, row.step_ends].tolist()
            labels += [row.labels[at] == 1 for at in row.step_ends]
    return scores, labels


def main() -> None:
    """Parse the command line, train, export, and measure on held-out problems."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported model")
    parser.add_argument("--samples", type=int, default=4_000)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=1000, help="problems to measure on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    reasoner = LlamaForCausalLM.from_pretrained(resolve_model("tiny_reasoner")).float().eval()
    prompts = training_prompts(random.Random(args.seed), args.samples)
    model = new_reward_model(reasoner).train()
    train(model, judged_samples(reasoner, prompts, 512), args)
    model.eval()
    export(model, args.out)
    problems = arithmetic.held_out_problems(args.held_out, seed=1)
    held_out = judged_samples(reasoner, [problem.prompt for problem in problems], 100)
    scores, labels = step_judgements(model, held_out)
    figures = {"steps": len(labels), "right": sum(labels) / len(labels)}
    print(
        json.dumps(figures | {"auroc": round(auroc(np.array(scores), np.array(labels)) or 0.0, 4)})
    )


if __name__ == "__main__":
    main()
