"""Write ember as a GGUF that llama.cpp runs: Q8_0 matrices, fp32 norms, tokenizer and chat template inside."""

import json
from pathlib import Path

import gguf
import numpy as np
from net import Shape
from tokenizers import Tokenizer
from torch import Tensor
from vocabulary import CHAT_TEMPLATE, PRE, SPECIAL

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def write_model(path: Path, weights: dict[str, Tensor], shape: Shape, tokenizer: Tokenizer) -> None:
    """Write the model; the file appears whole or not at all."""
    draft = path.with_suffix(".draft")
    writer = gguf.GGUFWriter(str(draft), "llama")
    add_metadata(writer, shape)
    add_tokenizer(writer, tokenizer)
    for name, array in tensors(weights, shape).items():
        if array.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(array, Q8_0), raw_dtype=Q8_0)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    draft.replace(path)


def add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """Name, licence and sizes."""
    writer.add_name("ember")
    writer.add_license("apache-2.0")
    writer.add_description(
        "A very small teaching model; knows a made-up population and nothing of the world."
    )
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.dim // shape.heads)
    writer.add_rope_freq_base(shape.theta)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """Vocabulary, merges, special tokens and chat template."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    end = tokenizer.token_to_id(SPECIAL[0])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE)
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL else normal for token in tokens])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    )
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


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
