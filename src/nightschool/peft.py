"""Adapters as PEFT knows them: Hugging Face's module names, row order and files.

GGUF files of the llama architecture hold the rows of Q and K in another order than Hugging Face: there the
two halves of each head's rotary pairs stand one after the other, here pair by pair (llama.cpp's converter
permutes them). An adapter's B has the rows of the matrix it sits beside, so its rows go the way back here.

Files: adapter_model.safetensors (`base_model.model.<module>.lora_A.weight` (rank, in), `lora_B.weight`
(out, rank)) and adapter_config.json (https://huggingface.co/docs/peft/developer_guides/checkpoint).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from nightschool.errors import UnsupportedModel

Array = npt.NDArray[np.float32]
Weights = Mapping[str, tuple[Array, Array]]  # GGUF tensor name → A (rank, in), B (out, rank)

SEPARATE = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FUSED = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
MODULES = {"llama": SEPARATE, "qwen2": SEPARATE, "qwen3": SEPARATE, "gemma3": SEPARATE, "phi3": FUSED}
PERMUTED = {"llama": {"attn_q": "head_count", "attn_k": "head_count_kv"}}  # matrix → which count of heads
CONFIG, MODEL = "adapter_config.json", "adapter_model.safetensors"


def write_peft(
    folder: Path, weights: Weights, *, alpha: float, rank: int, metadata: Mapping[str, Any], base: str
) -> None:
    """Write PEFT's two files into an existing folder.

    Args:
        metadata: the base GGUF's: its architecture decides names and order, its head counts the permutation.
        base: `base_model_name_or_path`, for the person's information.
    Raises:
        UnsupportedModel: an architecture or tensor without a counterpart there.
    """
    modules = {name: module_name(name, metadata) for name in weights}
    tensors: dict[str, Array] = {}
    for name, (a, b) in weights.items():
        tensors[f"base_model.model.{modules[name]}.lora_A.weight"] = np.ascontiguousarray(a, dtype=np.float32)
        rows = rows_for_huggingface(name, b, metadata)
        tensors[f"base_model.model.{modules[name]}.lora_B.weight"] = np.ascontiguousarray(
            rows, dtype=np.float32
        )
    save_file(tensors, folder / MODEL, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "target_modules": target_modules(modules, metadata),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def module_name(name: str, metadata: Mapping[str, Any]) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj`."""
    if name == "output.weight":
        return "lm_head"
    architecture = metadata.get("general.architecture")
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    module = MODULES.get(str(architecture), {}).get(found[2]) if found else None
    if found is None or module is None:
        raise UnsupportedModel(
            f"The tensor {name!r} of a {architecture!r} model has no name in PEFT known here."
        )
    return f"model.layers.{found[1]}.{module}"


def rows_for_huggingface(name: str, b: Array, metadata: Mapping[str, Any]) -> Array:
    """B (out, rank) with its rows in Hugging Face's order: (heads, pairs, 2) → (heads, 2, pairs)."""
    architecture = str(metadata.get("general.architecture"))
    _, _, matrix, *_ = (*name.split("."), "", "")
    key = PERMUTED.get(architecture, {}).get(matrix)
    if key is None:
        return b
    heads = metadata.get(f"{architecture}.attention.{key}", metadata[f"{architecture}.attention.head_count"])
    if isinstance(heads, list):  # some models have a count for each layer
        heads = heads[int(name.split(".")[1])]
    out, rank = b.shape
    return b.reshape(heads, out // heads // 2, 2, rank).swapaxes(1, 2).reshape(out, rank)


def target_modules(modules: Mapping[str, str], metadata: Mapping[str, Any]) -> list[str]:
    """The last parts of the names where every layer has them all, else each full name.

    PEFT puts a pair on every module that a short name fits, and misses the weights of those that have none.
    """
    layers = int(metadata.get(f"{metadata.get('general.architecture')}.block_count", 0))
    short = sorted({module.rsplit(".", 1)[-1] for module in modules.values()})
    everywhere = len(modules) == layers * len(short) and "lm_head" not in short
    return short if everywhere else sorted(modules.values())
