"""The tokenizer of the embedded tiny model: one token per printable ASCII character or newline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arithmetic import THINK_CLOSE, THINK_OPEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTEXT_LENGTH = 512
PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
USER, ASSISTANT = "<|user|>", "<|assistant|>"
SPECIAL_TOKENS: tuple[str, ...] = (PAD, BOS, EOS, UNKNOWN, USER, ASSISTANT)
CHARACTERS: tuple[str, ...] = ("\n", *(chr(code) for code in range(32, 127)))
# 6 special tokens, 96 characters and 2 think tags: 104, a multiple of 8.
VOCABULARY: tuple[str, ...] = (*SPECIAL_TOKENS, *CHARACTERS, THINK_OPEN, THINK_CLOSE)

# The model never saw a system text in training, so the template leaves it out.
CHAT_TEMPLATE = (
    "{{- '<bos>' -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '<|user|>' + message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' + message['content'] + '<eos>' -}}"
    "{%- elif message['role'] != 'system' -%}"
    "{{- raise_exception('unsupported role: ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}"
    "{%- if enable_thinking is defined and enable_thinking -%}{{- '<think>' -}}{%- endif -%}"
    "{%- endif -%}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer with its chat template.

    Printable ASCII and newlines round-trip exactly; any other character becomes ``<unk>``. The
    think tags are ordinary added tokens, so decoding keeps them when special tokens are skipped.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: index for index, token in enumerate(VOCABULARY)}
    # Byte-pair encoding without merges is exactly one token per character.
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token=UNKNOWN, fuse_unk=False))
    # The model keeps every word it has seen, up to 10,000 of them: a whole prompt must not be one.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in (THINK_OPEN, THINK_CLOSE)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def generation_prompt(prompt: str, thinking: bool) -> str:
    """What the chat template renders for one user turn and a generation prompt."""
    return f"{BOS}{USER}{prompt}{ASSISTANT}{THINK_OPEN if thinking else ''}"


def encode(text: str) -> list[int]:
    """Token ids of a text, without any library: a stand-in for the tokenizer in the tools."""
    tags = (*SPECIAL_TOKENS, THINK_OPEN, THINK_CLOSE)
    ids: list[int] = []
    position = 0
    while position < len(text):
        tag = next((tag for tag in tags if text.startswith(tag, position)), None)
        piece = tag or text[position]
        ids.append(_IDS.get(piece, _IDS[UNKNOWN]))
        position += len(piece)
    return ids


_IDS: dict[str, int] = {token: index for index, token in enumerate(VOCABULARY)}
