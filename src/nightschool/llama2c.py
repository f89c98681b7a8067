"""Read llama2.c checkpoints: a header, then the weights, in one of three layouts; a vocabulary beside them.

Source: https://github.com/karpathy/llama2.c; export.py and tokenizer.py (layouts), run.c (arithmetic).

    version 0   7 × i32, float32 weights; a negative vocabulary means an output matrix of its own
    version 1   "ak42" as u32, i32 version, 7 × i32, u8 shared; zeros to 256; float32 weights
    version 2   as 1, with i32 group size after `shared`; norms float32, each matrix int8 then float32 scales

The 7 numbers are dim, hidden dim, layers, heads, key-value heads, vocabulary, context. Rotary pairs lie side
by side, as in GGUF's llama architecture, so that the rows of Q and K stay where they are.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nightschool.conversion import SourceModel, SourceTensor
from nightschool.errors import FileFormatError, NotFound, UnsupportedModel

MAGIC = 0x616B3432
HEADER_BYTES = 256  # versions 1 and 2
LIMIT, MAX_LAYERS = 1 << 24, 1 << 12  # no number of a header is larger

# Constants of run.c that no header names.
ROPE_BASE = 10_000.0
NORM_EPS = 1e-5
UNKNOWN, BOS, EOS = 0, 1, 2


@dataclass(frozen=True)
class Header:
    """Numbers of a checkpoint; `start` is where its weights begin, `group` 0 for float32."""

    version: int
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    shared: bool
    group: int
    start: int

    @property
    def kv_dim(self) -> int:
        return self.dim // self.heads * self.kv_heads


def is_llama2c(path: Path) -> bool:
    """Whether a file looks like a checkpoint of llama2.c, by its first numbers."""
    try:
        read_header(path)
    except FileFormatError:
        return False
    return True


def read_header(path: Path) -> Header:
    """Read and check the numbers at the start. Raises FileFormatError or UnsupportedModel."""
    with path.open("rb") as file:
        raw = file.read(HEADER_BYTES)
    if len(raw) < 28:
        raise FileFormatError(f"{str(path)!r} is too short to be a llama2.c checkpoint.")
    magic, version = struct.unpack_from("<Ii", raw)
    if magic != MAGIC:
        numbers = struct.unpack_from("<7i", raw)
        header = _header(0, numbers, shared=numbers[5] > 0, group=0, start=28)
    elif version in (1, 2) and len(raw) == HEADER_BYTES:
        numbers = struct.unpack_from("<7i", raw, 8)
        shared, group = struct.unpack_from("<Bi", raw, 36)
        group = group if version == 2 else 0
        header = _header(version, numbers, shared=bool(shared), group=group, start=HEADER_BYTES)
    else:
        raise UnsupportedModel(f"{str(path)!r} is a llama2.c checkpoint of version {version}, not 0 to 2.")
    if not _is_possible(header):
        raise FileFormatError(f"{str(path)!r} is not a llama2.c checkpoint: its header makes no sense.")
    return header


def _header(version: int, numbers: Sequence[int], *, shared: bool, group: int, start: int) -> Header:
    dim, hidden, layers, heads, kv_heads, vocabulary, context = numbers
    return Header(
        version, dim, hidden, layers, heads, kv_heads, abs(vocabulary), context, shared, group, start
    )


def _is_possible(h: Header) -> bool:
    numbers = (h.dim, h.hidden, h.layers, h.heads, h.kv_heads, h.vocabulary, h.context)
    if not all(0 < number < LIMIT for number in numbers) or (h.version == 2 and not 0 < h.group < LIMIT):
        return False
    return h.layers <= MAX_LAYERS and h.dim % (2 * h.heads) == 0 and h.heads % h.kv_heads == 0


def read_llama2c(path: Path, tokenizer: Path | None = None) -> SourceModel:
    """Read a checkpoint and its vocabulary, by default the one beside it (`find_tokenizer`).

    Raises FileFormatError, UnsupportedModel, or NotFound for a vocabulary that is not there.
    """
    header = read_header(path)
    size = path.stat().st_size
    parts = list(_layout(header))
    expected = parts[-1].end
    if size != expected:
        raise FileFormatError(
            f"{str(path)!r} has {size:,} bytes where its header promises {expected:,}; "
            "it is damaged or not a llama2.c checkpoint."
        )
    raw = np.memmap(path, np.uint8, "r")
    tensors = [_tensor(raw, part, header.group) for part in parts if part.name]
    vocabulary = read_vocabulary(tokenizer or find_tokenizer(path, header.vocabulary), header.vocabulary)
    return SourceModel(_metadata(header, path.stem) | vocabulary, tensors)


def find_tokenizer(path: Path, vocabulary: int) -> Path:
    """The vocabulary file beside a checkpoint, by llama2.c's habits of naming."""
    names = [f"tok{vocabulary}.bin", "tokenizer.bin", f"{path.stem}-tokenizer.bin"]
    for name in names:
        if path.with_name(name).is_file():
            return path.with_name(name)
    raise NotFound(f"There is no vocabulary beside {str(path)!r}; name its file with --tokenizer.")


@dataclass(frozen=True)
class _Part:
    """A run of bytes in the file; a name of "" marks what is not needed."""

    name: str
    shape: tuple[int, ...]
    start: int
    quantised: bool
    end: int


def _layout(h: Header) -> Iterator[_Part]:
    at = h.start
    for name, shape in _order(h):
        quantised = h.group > 0 and len(shape) == 2
        count = prod(shape)
        size = count + -(-count // h.group) * 4 if quantised else 4 * count
        yield _Part(name, shape, at, quantised, at + size)
        at += size


Shapes = list[tuple[str, tuple[int, ...]]]


def _order(h: Header) -> Iterator[tuple[str, tuple[int, ...]]]:
    """GGUF's names and the shapes of everything in a checkpoint, in the order of the file."""
    attention: Shapes = [
        ("attn_q", (h.dim, h.dim)),
        ("attn_k", (h.kv_dim, h.dim)),
        ("attn_v", (h.kv_dim, h.dim)),
        ("attn_output", (h.dim, h.dim)),
    ]
    feed_forward: Shapes = [
        ("ffn_gate", (h.hidden, h.dim)),
        ("ffn_down", (h.dim, h.hidden)),
        ("ffn_up", (h.hidden, h.dim)),
    ]
    attention_norm: Shapes = [("attn_norm", (h.dim,))]
    feed_forward_norm: Shapes = [("ffn_norm", (h.dim,))]
    if h.version == 0:
        yield "token_embd.weight", (h.vocabulary, h.dim)
        yield from _layers(h, attention_norm + attention + feed_forward_norm + feed_forward)
        yield "output_norm.weight", (h.dim,)
        yield "", (h.context, h.dim // h.heads)  # tables of cosines and of sines
    else:
        yield from _layers(h, attention_norm + feed_forward_norm)
        yield "output_norm.weight", (h.dim,)
        yield "token_embd.weight", (h.vocabulary, h.dim)
        yield from _layers(h, attention + feed_forward)
    if not h.shared:
        yield "output.weight", (h.vocabulary, h.dim)


def _layers(h: Header, kinds: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    for kind, shape in kinds:
        for layer in range(h.layers):
            yield f"blk.{layer}.{kind}.weight", shape


def _tensor(raw: npt.NDArray[np.uint8], part: _Part, group: int) -> SourceTensor:
    data = raw[part.start : part.end]
    if not part.quantised:
        return SourceTensor(part.name, part.shape, lambda: _floats(data).view(part.shape))
    count = prod(part.shape)
    codes, scales = data[:count], data[count:]

    def load() -> torch.Tensor:
        numbers = torch.from_numpy(np.array(codes)).view(torch.int8).float()
        return (numbers.view(-1, group) * _floats(scales).unsqueeze(1)).view(part.shape)

    def q8_0() -> npt.NDArray[np.uint8]:
        """The very int8 numbers of the source: only the scale is rounded, to f16, and repeated."""
        halves = np.repeat(scales.view(np.float32).astype(np.float16), group // 32).view(np.uint8)
        return np.concatenate((halves.reshape(-1, 2), codes.reshape(-1, 32)), axis=1)

    exact = group % 32 == 0 and part.shape[1] % 32 == 0
    return SourceTensor(part.name, part.shape, load, q8_0 if exact else None)


def _floats(data: npt.NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.array(data)).view(torch.float32)


def _metadata(h: Header, name: str) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": name,
        "llama.vocab_size": h.vocabulary,
        "llama.context_length": h.context,
        "llama.embedding_length": h.dim,
        "llama.block_count": h.layers,
        "llama.feed_forward_length": h.hidden,
        "llama.attention.head_count": h.heads,
        "llama.attention.head_count_kv": h.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": NORM_EPS,
        "llama.rope.dimension_count": h.dim // h.heads,
        "llama.rope.freq_base": ROPE_BASE,
    }


def read_vocabulary(path: Path, count: int) -> dict[str, Any]:
    """Read a tokenizer.bin: i32 longest token, then (f32 score, i32 length, bytes) for each of `count`.

    It is SentencePiece's BPE with spaces written as such; 3 to 258 are the bytes.
    Raises FileFormatError, or NotFound.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise NotFound(f"The vocabulary {str(path)!r} cannot be read: {error.strerror}.") from error
    tokens, scores, at = [], [], 4
    for index in range(count):
        if at + 8 > len(raw) or (length := struct.unpack_from("<i", raw, at + 4)[0]) < 0:
            raise FileFormatError(
                f"{str(path)!r} is no vocabulary of {count:,} tokens: it ends at {index:,}."
            )
        scores.append(struct.unpack_from("<f", raw, at)[0])
        tokens.append(raw[at + 8 : at + 8 + length].decode("utf-8", "surrogateescape"))
        at += 8 + length
    if at != len(raw):
        raise FileFormatError(
            f"{str(path)!r} is no vocabulary of {count:,} tokens: it has more or ends early."
        )
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": _texts(tokens),
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [_token_type(index, token) for index, token in enumerate(tokens)],
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.unknown_token_id": UNKNOWN,
        # Texts are divided by BOS alone in llama2.c's training, and run.c stops at it too.
        "tokenizer.ggml.eot_token_id": BOS,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }


def _texts(tokens: list[str]) -> list[str]:
    special = {BOS: "<s>", EOS: "</s>"}
    return [special.get(index, token.replace(" ", "▁")) for index, token in enumerate(tokens)]


def _token_type(index: int, token: str) -> int:
    """GGUF's number: 1 normal, 2 unknown, 3 control, 6 byte."""
    if index in (BOS, EOS):
        return 3
    if index == UNKNOWN:
        return 2
    return 6 if token.startswith("<0x") and len(token) == 6 and token.endswith(">") else 1
