"""Models of well-known shapes with random weights, to measure on: for `fit` and the benchmarks.

A random model trains as fast as a real one and needs no download. It is written from one random chunk a
matrix, over and over, so even a large one takes little time and no memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nightschool.gguf import TensorToWrite, TensorType, write_gguf
from nightschool.quants import quantize

CHUNK_ROWS = 256


@dataclass(frozen=True)
class Shape:
    """A Llama decoder; `like` names a model of that shape."""

    like: str
    width: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one block: name → (out, in)."""
        kv = self.width // self.heads * self.kv_heads
        return {
            "attn_q": (self.width, self.width),
            "attn_k": (kv, self.width),
            "attn_v": (kv, self.width),
            "attn_output": (self.width, self.width),
            "ffn_gate": (self.ffn, self.width),
            "ffn_up": (self.ffn, self.width),
            "ffn_down": (self.width, self.ffn),
        }


SHAPES = {
    "135M": Shape("SmolLM2 135M", 576, 1536, 30, 9, 3, 49152, True),
    "360M": Shape("SmolLM2 360M", 960, 2560, 32, 15, 5, 49152, True),
    "1B": Shape("TinyLlama 1.1B", 2048, 5632, 22, 32, 4, 32000, False),
    "7B": Shape("Llama 2 7B", 4096, 11008, 32, 32, 32, 32000, False),
    "13B": Shape("Llama 2 13B", 5120, 13824, 40, 40, 40, 32000, False),
}


def write_random(path: Path, shape: Shape, type: TensorType, *, layers: int | None = None) -> Path:
    """Write a GGUF of a shape, with only its first `layers` if given, in a type that quants can pack.

    Rows that are no multiple of 256 become Q8_0 where Q4_K was asked for, as llama.cpp does.
    """
    count = shape.layers if layers is None else layers
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": count,
        "llama.embedding_length": shape.width,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.context_length": 2048,
    }
    write_gguf(path, metadata, _tensors(shape, count, type))
    return path


def _tensors(shape: Shape, layers: int, type: TensorType) -> Iterator[TensorToWrite]:
    generator = torch.Generator().manual_seed(0)

    def matrix(name: str, rows: int, columns: int) -> TensorToWrite:
        use = TensorType.Q8_0 if type == TensorType.Q4_K and columns % 256 else type
        height = min(rows, CHUNK_ROWS)
        chunk = quantize(torch.randn(height, columns, generator=generator) * 0.02, use).reshape(height, -1)
        return name, use, (rows, columns), np.resize(chunk, (rows, chunk.shape[1]))

    def norm(name: str) -> TensorToWrite:
        return name, TensorType.F32, (shape.width,), np.ones(shape.width, np.float32).view(np.uint8)

    yield matrix("token_embd.weight", shape.vocabulary, shape.width)
    for i in range(layers):
        yield norm(f"blk.{i}.attn_norm.weight")
        yield norm(f"blk.{i}.ffn_norm.weight")
        for name, (rows, columns) in shape.layer_matrices.items():
            yield matrix(f"blk.{i}.{name}.weight", rows, columns)
    yield norm("output_norm.weight")
    if not shape.tied:
        yield matrix("output.weight", shape.vocabulary, shape.width)
