"""Tiny random models that are valid GGUF files, written by the `gguf` package: a writer that is not ours.

    write_tiny(path, "llama", "Q4_K")                       one of ARCHS, one of TYPES
    write_tiny(path, "qwen2", tied=True, seed=3, layers=1)   any field of Shape may be overridden
    write_tiny_adapter(path, base, seed=1)                   a random LoRA for it

The weights are random but scaled so that the predictions differ from position to position; the vocabulary
is small but whole (specials, all 256 bytes, a few pieces), so any text can be tokenised; the template is
simple. test_engine.py lets llama.cpp load and run every combination.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ARCHS = ("llama", "llama3", "qwen2", "qwen3", "gemma3", "phi3", "phi3-longrope")
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K")

PIECES = ["the", "and", "er", "in", "on", "re", "st", "ing", "li", "ou", "es", "an", "ll", "we", "to", "of"]
# llama.cpp insists that a Phi-3 vocabulary knows <|endoftext|>.
SPECIALS = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Llama 3.1's factors for 8x the trained context, spread over any number of rotary pairs.
LLAMA3_FACTORS = (1.0, 1.0, 1.0, 1.7, 3.4, 8.0, 8.0, 8.0)


@dataclass(frozen=True)
class Shape:
    """What a tiny model looks like; head_dim 0 means embedding / heads."""

    embedding: int = 64
    ffn: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 0
    context: int = 512
    tied: bool = False
    rope_base: float = 10_000.0
    eps: float = 1e-5
    window: int = 0  # sliding window, gemma3 only
    original_context: int = 0  # longrope only: longer contexts take the long factors
    template: str = TEMPLATE
    types: dict[str, str] = field(default_factory=dict)  # tensor name -> type, where it is not the common one


DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"template": "{{ bos_token }}" + TEMPLATE},  # as many real ones do
    "llama3": {"rope_base": 500_000.0},
    "qwen2": {"rope_base": 1_000_000.0, "eps": 1e-6},
    "qwen3": {"rope_base": 1_000_000.0, "eps": 1e-6, "head_dim": 32},
    "gemma3": {
        "rope_base": 1_000_000.0, "eps": 1e-6, "head_dim": 32, "layers": 7, "window": 16, "tied": True,
    },
    "phi3": {},
    "phi3-longrope": {"original_context": 128},
}  # fmt: skip


def write_tiny(path: Path, arch: str, type: str = "F32", *, seed: int = 0, **overrides: Any) -> Path:
    """Write one tiny model and return its path. Same arguments, same bytes."""
    wide = {"embedding": 256, "ffn": 512} if type in ("Q4_K", "Q6_K") else {}
    if wide and "head_dim" in DEFAULTS[arch]:
        wide["head_dim"] = 128
    unknown = set(overrides) - {f.name for f in fields(Shape)}
    assert not unknown, f"no such field of Shape: {unknown}"
    shape = replace(Shape(), **(DEFAULTS[arch] | wide | overrides))
    shape = replace(shape, head_dim=shape.head_dim or shape.embedding // shape.heads)
    writer = gguf.GGUFWriter(path, arch.removesuffix("3") if arch == "llama3" else arch.split("-")[0])
    vocab = _add_bpe(writer, arch) if _has_bpe(arch) else _add_spm(writer)
    _add_hyperparameters(writer, arch, shape, vocab=vocab)
    for name, array in _weights(arch, shape, vocab, np.random.default_rng(seed)):
        flat = array.ndim == 1 or name == "rope_freqs.weight"
        _add_tensor(writer, name, array, "F32" if flat else shape.types.get(name, type))
    _finish(writer)
    return path


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_hyperparameters(writer: gguf.GGUFWriter, arch: str, shape: Shape, *, vocab: int) -> None:
    writer.add_name(f"tiny {arch}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(vocab)
    writer.add_chat_template(shape.template)
    if shape.head_dim * shape.heads != shape.embedding:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    if arch != "gemma3":
        writer.add_rope_dimension_count(shape.head_dim)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.original_context:
        writer.add_rope_scaling_orig_ctx_len(shape.original_context)
        writer.add_rope_scaling_attn_factors(1.19)


def _add_spm(writer: gguf.GGUFWriter) -> int:
    """SentencePiece: unk, bos, eos, bytes, scored pieces with and without the leading space, specials."""
    kinds = gguf.TokenType
    tokens = [("<unk>", 0.0, kinds.UNKNOWN), ("<s>", 0.0, kinds.CONTROL), ("</s>", 0.0, kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", 0.0, kinds.BYTE) for byte in range(256)]
    words = ["▁" + piece for piece in PIECES] + PIECES
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyz.,?!\n"))
    tokens += [(piece, -float(rank), kinds.NORMAL) for rank, piece in enumerate(_closed(words) + letters)]
    tokens += [(special, 0.0, kinds.CONTROL) for special in SPECIALS]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([int(kind) for _, _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(len(tokens) - 1)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    return len(tokens)


def _closed(words: list[str]) -> list[str]:
    """The words and every prefix of them: SentencePiece reaches a piece only by merging two known ones."""
    prefixes = [word[:end] for word in words for end in range(2, len(word))]
    return list(dict.fromkeys(words + prefixes))


def _add_bpe(writer: gguf.GGUFWriter, arch: str) -> int:
    """Byte-level BPE: 256 byte characters, merges that spell the pieces, specials."""
    alphabet = list(_byte_characters())
    merges = []
    for word in [*PIECES, *("Ġ" + piece for piece in PIECES)]:
        merges += [(word[:end], word[end]) for end in range(1, len(word))]
    merges = list(dict.fromkeys(merges))
    tokens = alphabet + list(dict.fromkeys(left + right for left, right in merges))
    specials = ["<|bos|>", "<|eos|>", *SPECIALS]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe" if arch == "llama3" else "qwen2")
    writer.add_token_list(tokens + specials)
    writer.add_token_types(
        [int(gguf.TokenType.NORMAL)] * len(tokens) + [int(gguf.TokenType.CONTROL)] * len(specials)
    )
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + 1)
    writer.add_eot_token_id(len(tokens) + len(specials) - 1)
    writer.add_add_bos_token(arch == "llama3")
    return len(tokens) + len(specials)


def _byte_characters() -> Iterator[str]:
    """GPT-2's printable stand-in for each byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shifted = 256
    for byte in range(256):
        yield chr(byte if byte in printable else shifted)
        shifted += byte not in printable


Weights = Iterator[tuple[str, np.ndarray[Any, Any]]]


def _weights(arch: str, shape: Shape, vocab: int, rng: np.random.Generator) -> Weights:
    """Names and fp32 arrays, (rows, columns), in the order of the file."""
    width = shape.embedding
    embedding = _matrix(rng, vocab, width, gain=1.0 if arch == "gemma3" else 2.5)
    output = embedding if shape.tied else _matrix(rng, vocab, width, gain=2.5)
    output[_quiet(arch, vocab)] *= 0.1
    yield "token_embd.weight", embedding
    yield "output_norm.weight", _norm(rng, width)
    if not shape.tied:
        yield "output.weight", output
    if arch == "llama3":
        pairs = np.linspace(0, len(LLAMA3_FACTORS) - 1, shape.head_dim // 2).round().astype(int)
        yield "rope_freqs.weight", np.array(LLAMA3_FACTORS, np.float32)[pairs]
    if arch == "phi3-longrope":
        yield "rope_factors_long.weight", np.linspace(1, 6, shape.head_dim // 2, dtype=np.float32)
        yield "rope_factors_short.weight", np.linspace(1, 1.5, shape.head_dim // 2, dtype=np.float32)
    for layer in range(shape.layers):
        for name, array in [*_attention(arch, shape, rng), *_feed_forward(arch, shape, rng)]:
            yield f"blk.{layer}.{name}", array


def _attention(arch: str, shape: Shape, rng: np.random.Generator) -> Weights:
    width, q_rows, kv_rows = shape.embedding, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    rows = {"q": q_rows, "k": kv_rows, "v": kv_rows}
    yield "attn_norm.weight", _norm(rng, width)
    if arch.startswith("phi3"):
        rows = {"qkv": q_rows + 2 * kv_rows}
    for part, count in rows.items():
        yield f"attn_{part}.weight", _matrix(rng, count, width)
    if arch == "qwen2":
        for part, count in rows.items():
            yield f"attn_{part}.bias", (0.3 * rng.standard_normal(count)).astype(np.float32)
    if arch in ("qwen3", "gemma3"):
        yield "attn_q_norm.weight", _norm(rng, shape.head_dim)
        yield "attn_k_norm.weight", _norm(rng, shape.head_dim)
    yield "attn_output.weight", _matrix(rng, width, q_rows)
    if arch == "gemma3":
        yield "post_attention_norm.weight", _norm(rng, width)


def _feed_forward(arch: str, shape: Shape, rng: np.random.Generator) -> Weights:
    width, ffn = shape.embedding, shape.ffn
    yield "ffn_norm.weight", _norm(rng, width)
    if not arch.startswith("phi3"):
        yield "ffn_gate.weight", _matrix(rng, ffn, width)
    yield "ffn_up.weight", _matrix(rng, 2 * ffn if arch.startswith("phi3") else ffn, width)
    yield "ffn_down.weight", _matrix(rng, width, ffn)
    if arch == "gemma3":
        yield "post_ffw_norm.weight", _norm(rng, width)


def _matrix(rng: np.random.Generator, rows: int, columns: int, *, gain: float = 1.0) -> np.ndarray[Any, Any]:
    return (rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)


def _norm(rng: np.random.Generator, size: int) -> np.ndarray[Any, Any]:
    return (1.0 + 0.2 * rng.standard_normal(size)).astype(np.float32)


def _quiet(arch: str, vocab: int) -> list[int]:
    """Tokens that should seldom be answered: the ends of a turn, and bytes that are no text by themselves."""
    specials, first_byte = vocab - len(SPECIALS), 0 if _has_bpe(arch) else 3
    ends = [specials - 1 if _has_bpe(arch) else 2, specials, vocab - 1]
    return [*ends, *range(first_byte + 128, first_byte + 256)]


def _has_bpe(arch: str) -> bool:
    return arch in ("llama3", "qwen2", "qwen3")


def _add_tensor(writer: gguf.GGUFWriter, name: str, array: np.ndarray[Any, Any], type: str) -> None:
    if type == "F32":
        writer.add_tensor(name, array)
        return
    if type == "F16":
        writer.add_tensor(name, array.astype(np.float16))
        return
    kind = gguf.GGMLQuantizationType[type]
    by_hand = {"Q4_K": quantize_q4_k, "Q6_K": quantize_q6_k}
    raw = by_hand[type](array) if type in by_hand else gguf.quants.quantize(array, kind)
    writer.add_tensor(name, raw.view(np.uint8), raw_dtype=kind)


def write_tiny_adapter(
    path: Path, base: Path, *, seed: int = 0, rank: int = 4, alpha: float = 8.0, gain: float = 1.0
) -> Path:
    """Write a random LoRA for every matrix of the blocks of `base`, loud enough to change its answers."""
    reader, rng = gguf.GGUFReader(base), np.random.default_rng(seed)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for tensor in reader.tensors:
        if not tensor.name.startswith("blk.") or len(tensor.shape) < 2:
            continue
        columns, rows = (int(size) for size in tensor.shape)  # GGUF names the columns first
        writer.add_tensor(tensor.name + ".lora_a", _matrix(rng, rank, columns))
        writer.add_tensor(tensor.name + ".lora_b", _matrix(rng, rows, rank, gain=gain))
    _finish(writer)
    return path


def quantize_q4_k(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Plain round-to-nearest Q4_K, (rows, columns / 256 * 144) bytes; the `gguf` package can only read it.

    A block of 256: fp16 d, fp16 dmin, eight 6-bit scales and eight 6-bit minima in 12 bytes, 128 bytes
    of nibbles; weight = d * scale * nibble - dmin * minimum, a scale and a minimum for each 32 weights.
    """
    x = array.reshape(-1, 8, 32)
    low = np.maximum(-x.min(2), 0)  # (blocks, 8)
    step = (x.max(2) + low) / 15
    d = (step.max(1, keepdims=True) / 63).astype(np.float16)
    dmin = (low.max(1, keepdims=True) / 63).astype(np.float16)
    scale = np.clip(np.round(step / d), 1, 63).astype(np.uint8)
    minimum = np.clip(np.round(low / dmin), 0, 63).astype(np.uint8)
    unit = (d.astype(np.float32) * scale)[..., None]
    nibble = np.clip(np.round((x + (dmin.astype(np.float32) * minimum)[..., None]) / unit), 0, 15)
    nibble = nibble.astype(np.uint8).reshape(-1, 4, 2, 32)  # pairs of 32: low nibbles, then high
    packed = np.concatenate(
        [
            scale[:, :4] | (scale[:, 4:] >> 4 << 6),
            minimum[:, :4] | (minimum[:, 4:] >> 4 << 6),
            (scale[:, 4:] & 15) | (minimum[:, 4:] & 15) << 4,
        ],
        axis=1,
    )
    quants = (nibble[:, :, 0] | nibble[:, :, 1] << 4).reshape(-1, 128)
    blocks = np.concatenate([d.view(np.uint8), dmin.view(np.uint8), packed, quants], axis=1)
    return blocks.reshape(array.shape[0], -1)


def quantize_q6_k(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Plain round-to-nearest Q6_K, (rows, columns / 256 * 210) bytes.

    A block of 256 weights: 128 bytes of low nibbles, 64 bytes of high bit pairs, sixteen int8 scales, fp16 d;
    weight = d * scale * (quant - 32), a scale for each 16 weights.
    """
    x = array.reshape(-1, 16, 16)
    step = np.abs(x).max(2) / 31  # (blocks, 16)
    d = (step.max(1, keepdims=True) / 127).astype(np.float16)
    scale = np.clip(np.round(step / d), 1, 127).astype(np.int8)
    unit = (d.astype(np.float32) * scale)[..., None]
    quant = (np.clip(np.round(x / unit), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    nibbles = [quant[:, :, i] & 15 | (quant[:, :, i + 2] & 15) << 4 for i in (0, 1)]
    low = np.concatenate(nibbles, axis=2).reshape(-1, 128)
    high = sum((quant[:, :, i] >> 4) << (2 * i) for i in range(4)).astype(np.uint8).reshape(-1, 64)
    blocks = np.concatenate([low, high, scale.view(np.uint8), d.view(np.uint8)], axis=1)
    return blocks.reshape(array.shape[0], -1)
