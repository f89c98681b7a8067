"""Write ember as a GGUF that llama.cpp runs: Q8_0 matrices, fp32 norms, tokenizer, chat template."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from net import Shape
from tokenizers import Tokenizer
from torch import Tensor
from vocabulary import CHAT_TEMPLATE, PRE, SPECIAL

from nightschool.gguf import TensorType, write_gguf
from nightschool.quants import quantize

CONTROL, NORMAL = 3, 1  # kinds of token (llama.h, llama_token_type)
MOSTLY_Q8_0 = 7  # general.file_type (llama.h, llama_ftype)


def write_model(path: Path, weights: dict[str, Tensor], shape: Shape, tokenizer: Tokenizer) -> None:
    """Write the model; the file appears whole or not at all."""
    listed = []
    for name, array in tensors(weights, shape).items():
        kind = TensorType.Q8_0 if array.ndim == 2 else TensorType.F32
        listed.append((name, kind, array.shape, quantize(torch.from_numpy(array), kind)))
    write_gguf(path, sizes(shape) | vocabulary(tokenizer), listed)


def sizes(shape: Shape) -> dict[str, Any]:
    """Name, licence and sizes."""
    return {
        "general.architecture": "llama",
        "general.name": "ember",
        "general.license": "apache-2.0",
        "general.description": "A very small teaching model: it knows a made-up population and no world.",
        "general.file_type": MOSTLY_Q8_0,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.dim,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.hidden,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.heads,
        "llama.rope.dimension_count": shape.dim // shape.heads,
        "llama.rope.freq_base": shape.theta,
        "llama.attention.layer_norm_rms_epsilon": shape.eps,
        "llama.vocab_size": shape.vocab,
    }


def vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """Tokens, merges, special tokens and chat template."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    end = tokenizer.token_to_id(SPECIAL[0])
    ends = {f"tokenizer.ggml.{role}_token_id": end for role in ("bos", "eos", "eot", "padding")}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in SPECIAL else NORMAL for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        **ends,
    }


def tensors(weights: dict[str, Tensor], shape: Shape) -> dict[str, np.ndarray]:
    """The weights by their GGUF names, fp32."""
    arrays = {name: weight.detach().float().cpu().numpy() for name, weight in weights.items()}
    named = {"token_embd.weight": arrays["embed.weight"], "output_norm.weight": arrays["norm"]}
    for layer in range(shape.layers):
        block = {
            name.split(".", 2)[2]: array
            for name, array in arrays.items()
            if name.startswith(f"blocks.{layer}.")
        }
        q, k, v = np.split(block["qkv.weight"], 3)
        gate, up = np.split(block["gate_up.weight"], 2)
        parts = {
            "attn_norm": block["attn_norm"],
            "attn_q": interleaved(q, shape.heads),
            "attn_k": interleaved(k, shape.heads),
            "attn_v": v,
            "attn_output": block["out.weight"],
            "ffn_norm": block["ffn_norm"],
            "ffn_gate": gate,
            "ffn_up": up,
            "ffn_down": block["down.weight"],
        }
        named |= {f"blk.{layer}.{part}.weight": np.ascontiguousarray(array) for part, array in parts.items()}
    return named


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K reordered from pairs (i, i + half) to pairs (2i, 2i + 1) within each head."""
    size, dim = rows.shape
    return rows.reshape(heads, 2, size // heads // 2, dim).swapaxes(1, 2).reshape(size, dim)
