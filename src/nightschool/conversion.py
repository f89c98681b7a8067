"""What every converter hands over, and how it becomes a GGUF: one tensor in memory at a time.

A reader of a foreign format (llama2c, huggingface) makes a SourceModel: metadata under GGUF's keys, and
tensors under GGUF's names that load when they are asked for. This file chooses each one's type and writes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nightschool.events import Event, Notice, Progress
from nightschool.gguf import ArrayOf, MetadataType, TensorToWrite, TensorType, ValueType, writing
from nightschool.quants import fitting_type, quantizing

# What `general.file_type` calls the most common type (`enum llama_ftype` in llama.h).
FILE_TYPES = {
    TensorType.F32: 0,
    TensorType.F16: 1,
    TensorType.Q4_0: 2,
    TensorType.Q8_0: 7,
    TensorType.Q4_K: 14,
    TensorType.BF16: 32,
}
# Half the bytes of F16, no loss that shows, and the type that trains fastest.
DEFAULT_TYPE = TensorType.Q8_0


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of another format under its GGUF name; `q8_0` makes its Q8_0 bytes where it is int8 anyway."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]
    q8_0: Callable[[], npt.NDArray[np.uint8]] | None = None


@dataclass(frozen=True)
class SourceModel:
    """A model of another format, ready to be written; `notices` are sentences for the person."""

    metadata: dict[str, Any]
    tensors: list[SourceTensor]
    notices: tuple[str, ...] = ()


def write_model(source: SourceModel, destination: Path, *, type: TensorType) -> Iterator[Event]:
    """Write a GGUF whose matrices have `type` where that fits; yields the choices and progress in bytes."""
    tensors = [_to_write(tensor, type) for tensor in source.tensors]
    yield from (Notice(text) for text in source.notices)
    yield from _notice_types(tensors, type)
    metadata = source.metadata | {"general.file_type": FILE_TYPES[type], "general.quantization_version": 2}
    done = 0
    for progress in writing(destination, metadata, tensors, types=VALUE_TYPES):
        done = progress.total or 0
        yield Progress("converting", progress.done, progress.total)
    yield Notice(f"{destination} holds {len(tensors)} tensors in {done / 1e6:,.1f} MB.")


# Arrays whose type llama.cpp insists on, whatever Python values they happen to hold.
VALUE_TYPES: dict[str, MetadataType] = {
    "tokenizer.ggml.tokens": ArrayOf(ValueType.STRING),
    "tokenizer.ggml.merges": ArrayOf(ValueType.STRING),
    "tokenizer.ggml.scores": ArrayOf(ValueType.FLOAT32),
    "tokenizer.ggml.token_type": ArrayOf(ValueType.INT32),
    "tokenizer.ggml.precompiled_charsmap": ArrayOf(ValueType.UINT8),
}


def _to_write(tensor: SourceTensor, wanted: TensorType) -> TensorToWrite:
    type = tensor_type(tensor.name, tensor.shape, wanted)
    if type is TensorType.Q8_0 and tensor.q8_0:
        return tensor.name, type, tensor.shape, tensor.q8_0
    return tensor.name, type, tensor.shape, lambda: (p.numpy() for p in quantizing(tensor.load(), type))


def tensor_type(name: str, shape: tuple[int, ...], wanted: TensorType) -> TensorType:
    """The type of one tensor: norms, biases and factors F32; embeddings, which matter most, 8 bits up."""
    if len(shape) == 1:
        return TensorType.F32
    four_bits = wanted in (TensorType.Q4_0, TensorType.Q4_K)
    if four_bits and name in ("token_embd.weight", "output.weight"):
        wanted = TensorType.Q8_0
    return fitting_type(wanted, shape[-1])


def _notice_types(tensors: list[TensorToWrite], wanted: TensorType) -> Iterator[Notice]:
    yield Notice(f"Matrices become {wanted.name}; norms and biases stay F32.")
    others: dict[str, list[str]] = {}
    for name, type, shape, _ in tensors:
        if len(shape) > 1 and type is not wanted:
            others.setdefault(type.name, []).append(name)
    for type_name, names in others.items():
        rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield Notice(f"{names[0]}{rest} become {type_name}, which suits them better.")
