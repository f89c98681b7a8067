"""Put adapters into their base: one GGUF that needs no adapter any more.

Each matrix an adapter changes becomes W + sum of scale · alpha/rank · B A, computed in float32 a few rows at
a time, and is packed again; everything else is copied bit for bit. Packing loses a little of the adapter
where the base has few bits: `type` asks for more.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from nightschool.adapters import LoraWeights, check_shapes, combine
from nightschool.errors import FileFormatError
from nightschool.events import Event, Notice, Progress
from nightschool.gguf import GGUFFile, Tensor, TensorToWrite, TensorType, writing
from nightschool.quants import PACK, dequantize, fitting_type, quantize

ROWS_AT_ONCE = 512


def merge(
    base: GGUFFile,
    adapters: Sequence[tuple[LoraWeights, float]],
    out: Path,
    *,
    type: TensorType | None = None,
) -> Iterator[Event]:
    """Write base + adapters as a GGUF, and yield progress in bytes.

    Args:
        adapters: each with its scale.
        type: how changed matrices are stored; by default as they were, or as Q8_0 (F16 where rows are no
            whole blocks) if that cannot be written.
    Raises:
        AdapterMismatch: an adapter has other shapes than the base.
        FileFormatError: `out` is the base itself, or a type that cannot be written.
    """
    if out.exists() and out.samefile(base.path):
        raise FileFormatError("The merged model cannot take the place of its own base: choose another file.")
    if type is not None and type not in PACK:
        kinds = ", ".join(kind.name for kind in PACK)
        raise FileFormatError(f"{type.name} cannot be written here; choose one of {kinds}.")
    lora = combine(adapters)
    check_shapes(lora.weights, base, name="to merge")
    tensors = [merged(base, tensor, lora, type) for tensor in base.tensors.values()]
    yield from notices(base, tensors, lora)
    for progress in writing(out, base.metadata, tensors, types=base.metadata_types):
        yield Progress("merging", progress.done, progress.total, "bytes")


def merged(base: GGUFFile, tensor: Tensor, lora: LoraWeights, type: TensorType | None) -> TensorToWrite:
    """What to write for a tensor of the base: its own bytes, or those of its changed matrix."""
    if tensor.name not in lora.weights:
        return tensor.name, tensor.type, tensor.shape, lambda: base.data(tensor.name)
    wanted = type or (tensor.type if tensor.type in PACK else TensorType.Q8_0)
    new_type = fitting_type(wanted, tensor.shape[-1])
    return tensor.name, new_type, tensor.shape, lambda: changed_rows(base, tensor, lora, new_type)


def changed_rows(
    base: GGUFFile, tensor: Tensor, lora: LoraWeights, type: TensorType
) -> Iterator[npt.NDArray[np.uint8]]:
    """W + alpha/rank · B A, some rows at a time, as bytes of `type`."""
    a, b = (torch.from_numpy(np.ascontiguousarray(array)) for array in lora.weights[tensor.name])
    rows, columns = tensor.shape
    raw = base.data(tensor.name).reshape(rows, -1)
    scale = lora.alpha / a.shape[0]
    for start in range(0, rows, ROWS_AT_ONCE):
        some = raw[start : start + ROWS_AT_ONCE]
        weights = dequantize(some.reshape(-1), tensor.type, (len(some), columns), name=tensor.name)
        weights += scale * (b[start : start + ROWS_AT_ONCE] @ a)  # (rows, columns)
        yield quantize(weights, type)


def notices(base: GGUFFile, tensors: list[TensorToWrite], lora: LoraWeights) -> Iterator[Notice]:
    """Say which matrices change their type."""
    changes: dict[tuple[str, str], int] = {}
    for name, type, _, _ in tensors:
        old = base.tensors[name].type
        if old is not type:
            changes[old.name, type.name] = changes.get((old.name, type.name), 0) + 1
    for (old_name, new_name), count in changes.items():
        yield Notice(
            f"{count} of the {len(lora.weights)} changed matrices become {new_name} ({old_name} before)."
        )
