"""Train the embedded tiny model on arithmetic chains, on one CPU core.

    python tools/train_tiny_reasoner.py --out DIR --checkpoint FILE [--resume]

The model is a small Llama in float32 and is written in the Hugging Face format. The same seed,
number of steps and library versions give the same samples in the same order; a resumed run
continues the sequence.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from sglang_dynasor.models import arithmetic
from sglang_dynasor.models.character_tokenizer import (
    CONTEXT_LENGTH,
    VOCABULARY,
    build_tokenizer,
    encode,
    generation_prompt,
)

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
IGNORED = -100
Sample = tuple[list[int], list[int]]


def model_config() -> LlamaConfig:
    """0.6 million parameters; grouped-query attention, head size 64 to suit GPU kernels."""
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        initializer_range=0.04,
    )


def encode_sample(text: arithmetic.TrainingText) -> Sample:
    """Token ids and next-token labels; only counted pieces and the end of turn carry a loss."""
    prefix = encode(generation_prompt(text.prompt, text.thinking))
    ids, counted = list(prefix), [False] * len(prefix)
    for piece, counts in text.pieces:
        piece_ids = encode(piece)
        ids += piece_ids
        counted += [counts] * len(piece_ids)
    ids.append(EOS_ID)
    counted.append(True)
    labels = [token if use else IGNORED for token, use in zip(ids, counted, strict=True)]
    return ids[:-1], labels[1:]


def length_groups(samples: list[Sample], groups: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pad samples in groups of similar length, so that one step wastes little work on padding."""
    ordered = sorted(samples, key=lambda sample: len(sample[0]))
    size = math.ceil(len(ordered) / groups)
    batches = []
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        width = len(part[-1][0])
        ids = torch.full((len(part), width), PAD_ID)
        labels = torch.full((len(part), width), IGNORED)
        for row, (sample_ids, sample_labels) in enumerate(part):
            ids[row, : len(sample_ids)] = torch.tensor(sample_ids)
            labels[row, : len(sample_labels)] = torch.tensor(sample_labels)
        batches.append((ids, labels))
    return batches


def draw_step(rng: random.Random, step: int, args: argparse.Namespace) -> list[Sample]:
    """The samples of one step. Early steps hold short, plain problems only (curriculum)."""
    progress = step / args.steps
    think_share = 0.0 if progress < args.plain_until else args.think_share
    highest = 4 if progress < args.plain_until else arithmetic.TRAINED_LEVELS[-1]
    return [
        encode_sample(arithmetic.training_text(rng, think_share, args.cut_share, highest))
        for _ in range(args.batch)
    ]


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine down to 2% of the peak."""
    if step < args.warmup:
        return args.peak_rate * (step + 1) / args.warmup
    progress = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.peak_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def train_step(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    samples: list[Sample],
    groups: int,
) -> float:
    """One optimizer step; returns the mean loss per counted token, in nats."""
    batches = length_groups(samples, groups)
    counted = sum(int((labels != IGNORED).sum()) for _, labels in batches)
    total = 0.0
    optimizer.zero_grad(set_to_none=True)
    for ids, labels in batches:
        # Padding is on the right and the attention is causal, so no mask is needed.
        logits = model(input_ids=ids, use_cache=False).logits
        loss = functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        (loss / counted).backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total / counted


def generation_defaults(temperature: float) -> dict[str, object]:
    """What generation_config.json says."""
    return {
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "do_sample": True,
        "temperature": temperature,
        # Both readers treat this as "whole vocabulary"; leaving it out means 50 to some.
        "top_k": 1 << 30,
        "top_p": 1.0,
    }


def export(model: PreTrainedModel, out: Path, temperature: float | None = None) -> None:
    """Write model, tokenizer and, of one that generates, its defaults; each file in one move."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        model.save_pretrained(folder)
        tokenizer = build_tokenizer()
        tokenizer.save_pretrained(folder)
        # Newer readers take the template from its own file, older ones from the configuration.
        config_file = Path(folder) / "tokenizer_config.json"
        config = json.loads(config_file.read_text())
        config["chat_template"] = tokenizer.chat_template
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config_file.write_text(json.dumps(config, indent=2) + "\n")
        if temperature is not None:
            generation = json.dumps(generation_defaults(temperature), indent=2)
            (Path(folder) / "generation_config.json").write_text(generation + "\n")
        for file in Path(folder).iterdir():
            file.chmod(0o644)
            os.replace(file, out / file.name)


def save_checkpoint(path: Path, state: dict[str, object]) -> None:
    """Write a checkpoint so that an interruption never leaves a broken one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def train(args: argparse.Namespace) -> None:
    """Run or resume the training; exports at every checkpoint and at the end."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    model = LlamaForCausalLM(model_config()).float().train()
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.peak_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    start = 0
    if args.resume and args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=False)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        rng.setstate(saved["rng"])
        start = saved["step"]
    size = sum(weight.numel() for weight in model.parameters())
    tqdm.write(f"{size:,} parameters, steps {start}..{args.steps}", file=sys.stderr)
    smooth: float | None = None
    last = min(args.steps, args.stop_after or args.steps)
    bar = tqdm(range(start, last), initial=start, total=last, mininterval=2.0, unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        loss = train_step(model, optimizer, draw_step(rng, step, args), args.groups)
        smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if (step + 1) % 100 == 0:
            tqdm.write(f"step {step + 1} loss {smooth:.5f}", file=sys.stderr)
        if (step + 1) % args.save_every == 0 or step + 1 == last:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(args.checkpoint, state | {"rng": rng.getstate(), "step": step + 1})
            export(model, args.out, args.temperature)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported model")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint file")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    parser.add_argument("--steps", type=int, default=3200, help="steps of the whole schedule")
    parser.add_argument("--stop-after", type=int, default=None, help="end early at this step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=48, help="samples a step")
    parser.add_argument("--groups", type=int, default=4, help="length groups a step")
    parser.add_argument("--think-share", type=float, default=0.35, help="0..1")
    parser.add_argument(
        "--cut-share", type=float, default=0.15, help="part of the thoughts cut short, 0..1"
    )
    parser.add_argument("--plain-until", type=float, default=0.2, help="part of the steps, 0..1")
    parser.add_argument("--peak-rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="default sampling temperature"
    )
    parser.add_argument("--threads", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
