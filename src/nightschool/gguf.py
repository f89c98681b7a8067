"""Read and write GGUF, the container that llama.cpp, Ollama and LM Studio keep models in.

A file is mapped, not loaded, and everything its header claims is checked against its real size before
anything else, C++ above all, sees it: counts, lengths, types, alignment, dimensions, offsets, overlaps,
duplicates. What is wrong is said in one sentence. Nothing is allocated on the word of the file alone: every
count and length is first held against the bytes that are left.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian:

    "GGUF"  u32 version  u64 tensors  u64 pairs
    pairs   × (string key, u32 type, value)           string = u64 length, UTF-8
    tensors × (string name, u32 n, n × u64 dimension, u32 type, u64 offset)
    padding to `general.alignment`, then the tensors' data, each at its offset from here

Dimensions stand fastest first in the file; everywhere in this program they are in torch's order: (rows,
columns). This file knows nothing of what the numbers in a tensor mean: see quants.
"""

import hashlib
import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from nightschool.errors import FileFormatError, NightschoolError, NotFound, UnsupportedModel
from nightschool.events import Progress
from nightschool.paths import atomic_write

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_KEY_LENGTH = 1024  # none in use comes near it; keeps what is said about a damaged file short
MAX_NAME_BYTES = 63  # GGML_MAX_NAME less its closing zero
MAX_ARRAY_ITEMS = 1 << 22  # all arrays together: three times what the largest vocabularies of today need
CHUNK_BYTES = 1 << 24


class ValueType(IntEnum):
    """The types of metadata values, by the number that stands in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


@dataclass(frozen=True)
class ArrayOf:
    """The type of an array: that of its items."""

    item: ValueType


MetadataType = ValueType | ArrayOf

NUMBERS = {
    ValueType.UINT8: "<u1",
    ValueType.INT8: "<i1",
    ValueType.UINT16: "<u2",
    ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4",
    ValueType.INT32: "<i4",
    ValueType.FLOAT32: "<f4",
    ValueType.BOOL: "<u1",
    ValueType.UINT64: "<u8",
    ValueType.INT64: "<i8",
    ValueType.FLOAT64: "<f8",
}


class TensorType(IntEnum):
    """How a tensor's numbers are stored (`enum ggml_type` in llama.cpp's ggml.h)."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41


# Elements and bytes of one block; the sizes follow from the structs in llama.cpp's ggml-common.h.
BLOCK: dict[TensorType, tuple[int, int]] = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.BF16: (1, 2),
    TensorType.F64: (1, 8),
    TensorType.I8: (1, 1),
    TensorType.I16: (1, 2),
    TensorType.I32: (1, 4),
    TensorType.I64: (1, 8),
    TensorType.Q4_0: (32, 18),
    TensorType.Q4_1: (32, 20),
    TensorType.Q5_0: (32, 22),
    TensorType.Q5_1: (32, 24),
    TensorType.Q8_0: (32, 34),
    TensorType.Q8_1: (32, 40),
    TensorType.Q2_K: (256, 84),
    TensorType.Q3_K: (256, 110),
    TensorType.Q4_K: (256, 144),
    TensorType.Q5_K: (256, 176),
    TensorType.Q6_K: (256, 210),
    TensorType.Q8_K: (256, 292),
    TensorType.IQ1_S: (256, 50),
    TensorType.IQ1_M: (256, 56),
    TensorType.IQ2_XXS: (256, 66),
    TensorType.IQ2_XS: (256, 74),
    TensorType.IQ2_S: (256, 82),
    TensorType.IQ3_XXS: (256, 98),
    TensorType.IQ3_S: (256, 110),
    TensorType.IQ4_NL: (32, 18),
    TensorType.IQ4_XS: (256, 136),
    TensorType.TQ1_0: (256, 54),
    TensorType.TQ2_0: (256, 66),
    TensorType.MXFP4: (32, 17),
    TensorType.NVFP4: (64, 36),
    TensorType.Q1_0: (128, 18),
}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `offset` counts from the start of the file, `shape` is (…, rows, columns)."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class GGUFFile:
    """A checked GGUF; the map stays open as long as this object or an array from `data` lives.

    Text is decoded with `surrogateescape`, so that vocabularies with raw bytes survive a round trip.
    """

    path: Path
    version: int
    alignment: int
    metadata: dict[str, Any]
    metadata_types: dict[str, MetadataType]
    tensors: dict[str, Tensor]
    _map: mmap.mmap = field(repr=False, compare=False)

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """The raw bytes of a tensor as a read-only view of the map: (size_bytes,)."""
        tensor = self.tensors[name]
        return np.frombuffer(self._map, np.uint8, tensor.size_bytes, tensor.offset)


def size_of(type: TensorType, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. Raises ValueError where a row is no whole number of blocks."""
    elements, size_bytes = BLOCK[type]
    if shape[-1] % elements:
        raise ValueError(f"rows of {shape[-1]} are not whole blocks of {elements} ({type.name})")
    return prod(shape) // elements * size_bytes


# Reading ----------------------------------------------------------------------------------------


def open_gguf(path: Path) -> GGUFFile:
    """Map a GGUF and check all of its header.

    Raises NotFound, FileFormatError for a file that is damaged or not GGUF, and UnsupportedModel for a tensor
    type that this program has never heard of; each with one sentence naming what is wrong.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise FileFormatError(f"{str(path)!r} is not a GGUF file: it has only {size} bytes.")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise NotFound(f"There is no file {str(path)!r}.") from None
    except OSError as error:
        raise FileFormatError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    return _Header(path, mapped).read()


class _Header:
    """A cursor over the mapped header; each read is held against the end of the file first."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self.map = mapped
        self.size = len(mapped)
        self.at = 0
        self.array_items = 0

    def read(self) -> GGUFFile:
        version = self.version()
        n_tensors, n_pairs = self.number("<Q", "tensor count"), self.number("<Q", "metadata count")
        # The least that a pair (empty key, one byte) and a tensor (one dimension) can take.
        for count, least, what in ((n_pairs, 13, "metadata entries"), (n_tensors, 32, "tensors")):
            if count * least > self.size - self.at:
                self.fail(f"its header promises {count:,} {what}, more than fit into the file")
        metadata, types = self.pairs(n_pairs)
        alignment = self.alignment(metadata, types)
        infos = [self.tensor_info() for _ in range(n_tensors)]
        start = -(-self.at // alignment) * alignment
        tensors = self.place(infos, start=start, alignment=alignment)
        return GGUFFile(self.path, version, alignment, metadata, types, tensors, self.map)

    def version(self) -> int:
        magic = self.bytes(4, "magic")
        if magic != MAGIC:
            self.fail(f"it starts with {magic!r} instead of {MAGIC!r}, so it is not a GGUF file")
        version = self.number("<I", "version")
        if version & 0xFFFF == 0 and version:
            self.fail("it is big-endian; only little-endian GGUF files can be used here")
        if version not in VERSIONS:
            self.fail(f"it has GGUF version {version}, but only versions 2 and 3 can be read")
        return version

    def pairs(self, count: int) -> tuple[dict[str, Any], dict[str, MetadataType]]:
        metadata: dict[str, Any] = {}
        types: dict[str, MetadataType] = {}
        for index in range(count):
            key = self.name(f"the key of metadata entry {index}")
            if key in metadata:
                self.fail(f"the metadata key {key!r} stands in it twice")
            types[key], metadata[key] = self.value(key)
        return metadata, types

    def value(self, key: str) -> tuple[MetadataType, Any]:
        type = self.value_type(key)
        if type is ValueType.STRING:
            return type, self.string(f"the value of {key!r}")
        if type is not ValueType.ARRAY:
            return type, self.numbers(type, 1, key)[0]
        item = self.value_type(key)
        count = self.number("<Q", f"the length of {key!r}")
        if item is ValueType.ARRAY:
            self.fail(f"the metadata value {key!r} is an array of arrays, which no model uses")
        self.array_items += count
        if self.array_items > MAX_ARRAY_ITEMS:
            self.fail(f"its metadata arrays up to {key!r} claim {self.array_items:,} items, far too many")
        items = self.strings(count, key) if item is ValueType.STRING else self.numbers(item, count, key)
        return ArrayOf(item), items

    def value_type(self, key: str) -> ValueType:
        number = self.number("<I", f"the type of {key!r}")
        if number > max(ValueType):
            self.fail(f"the metadata value {key!r} has the unknown type {number}")
        return ValueType(number)

    def numbers(self, type: ValueType, count: int, key: str) -> list[Any]:
        dtype = np.dtype(NUMBERS[type])
        start = self.skip(count * dtype.itemsize, f"the value of {key!r}")
        array = np.frombuffer(self.map, dtype, count, start)
        values: list[Any] = (array != 0 if type is ValueType.BOOL else array).tolist()
        return values

    def strings(self, count: int, key: str) -> list[str]:
        """A tight loop: vocabularies hold hundreds of thousands of strings."""
        if count * 8 > self.size - self.at:
            self.fail(f"the array {key!r} promises {count:,} strings, more than fit into the file")
        mapped, at, end, unpack = self.map, self.at, self.size, struct.Struct("<Q").unpack_from
        items: list[str] = []
        for index in range(count):
            if at + 8 > end or (length := unpack(mapped, at)[0]) > end - at - 8:
                self.fail(f"item {index} of the array {key!r} goes past the end of the file")
            at += 8 + length
            items.append(mapped[at - length : at].decode("utf-8", "surrogateescape"))
        self.at = at
        return items

    def alignment(self, metadata: dict[str, Any], types: dict[str, MetadataType]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if types.get("general.alignment", ValueType.UINT32) is not ValueType.UINT32:
            self.fail("its 'general.alignment' is not a 32-bit unsigned number")
        if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            self.fail(f"its alignment is {alignment}, not a power of two from 8 to {MAX_ALIGNMENT:,}")
        return int(alignment)

    def tensor_info(self) -> tuple[str, TensorType, tuple[int, ...], int]:
        """Name, type, shape in torch order and the offset as the file has it, relative to its data."""
        name = self.name("the name of a tensor")
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            self.fail(f"the tensor name {name!r} does not have 1 to {MAX_NAME_BYTES} bytes")
        n_dims = self.number("<I", f"the dimensions of tensor {name!r}")
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            self.fail(f"tensor {name!r} has {n_dims} dimensions instead of 1 to {MAX_DIMENSIONS}")
        shape = tuple(self.number("<Q", f"the dimensions of tensor {name!r}") for _ in range(n_dims))[::-1]
        type_number = self.number("<I", f"the type of tensor {name!r}")
        if type_number not in TensorType.__members__.values():
            raise UnsupportedModel(
                f"Tensor {name!r} in {str(self.path)!r} has the unknown type {type_number}; "
                "use another quantisation of this model, for example Q4_K_M or Q8_0."
            )
        return name, TensorType(type_number), shape, self.number("<Q", f"the offset of tensor {name!r}")

    def place(
        self, infos: list[tuple[str, TensorType, tuple[int, ...], int]], *, start: int, alignment: int
    ) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, type, shape, offset in infos:
            if name in tensors:
                self.fail(f"the tensor {name!r} stands in it twice")
            if 0 in shape or prod(shape) >= 1 << 63:
                self.fail(f"tensor {name!r} has the impossible shape {shape}")
            if shape[-1] % BLOCK[type][0]:
                self.fail(f"tensor {name!r} has rows of {shape[-1]}, not whole blocks of {type.name}")
            size = size_of(type, shape)
            if offset % alignment:
                self.fail(f"tensor {name!r} starts at {offset}, which is not a multiple of {alignment}")
            if start + offset + size > self.size:
                self.fail(
                    f"tensor {name!r} needs {size:,} bytes from {start + offset:,} on, "
                    f"but the file ends at {self.size:,}; it was probably not downloaded completely"
                )
            tensors[name] = Tensor(name, type, shape, start + offset, size)
        self.check_overlaps(tensors)
        return tensors

    def check_overlaps(self, tensors: dict[str, Tensor]) -> None:
        by_offset = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        for first, second in zip(by_offset, by_offset[1:], strict=False):
            if first.offset + first.size_bytes > second.offset:
                self.fail(f"the tensors {first.name!r} and {second.name!r} overlap")

    def name(self, what: str) -> str:
        text = self.string(what)
        if len(text) > MAX_KEY_LENGTH:
            self.fail(f"{what} is {len(text):,} characters long")
        if not text.isprintable():  # surrogates, thus bytes that are no UTF-8, are not printable either
            self.fail(f"{what} is {text!r}, which is not readable text")
        return text

    def string(self, what: str) -> str:
        length = self.number("<Q", f"the length of {what}")
        return self.bytes(length, what).decode("utf-8", "surrogateescape")

    def bytes(self, count: int, what: str) -> bytes:
        start = self.skip(count, what)
        return self.map[start : start + count]

    def number(self, form: str, what: str) -> int:
        start = self.skip(struct.calcsize(form), what)
        number: int = struct.unpack_from(form, self.map, start)[0]
        return number

    def skip(self, count: int, what: str) -> int:
        """Move on by `count` bytes and return where they start."""
        if count > self.size - self.at:
            self.fail(f"{what} goes past the end of the file")
        start, self.at = self.at, self.at + count
        return start

    def fail(self, fact: str) -> NoReturn:
        raise FileFormatError(f"{str(self.path)!r} cannot be used: {fact}.")


def tensor_hash(file: GGUFFile) -> str:
    """The identity of a base: SHA-256 over name, type, shape and bytes of every tensor, in order of names.

    Metadata is left out: another chat template or a renamed file is still the same base.
    """
    whole = hashlib.sha256()
    for name in sorted(file.tensors):
        tensor = file.tensors[name]
        whole.update(f"{name}\0{tensor.type.name}\0{tensor.shape}\0".encode())
        data = file.data(name)
        for start in range(0, len(data), CHUNK_BYTES):
            whole.update(data[start : start + CHUNK_BYTES].data)
    return whole.hexdigest()


# Writing ----------------------------------------------------------------------------------------

Raw = bytes | bytearray | memoryview | npt.NDArray[Any]
Data = Raw | Callable[[], Raw | Iterator[Raw]]
TensorToWrite = tuple[str, TensorType, tuple[int, ...], Data]


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[TensorToWrite],
    *,
    types: Mapping[str, MetadataType] | None = None,
) -> None:
    """Write a GGUF, version 3, whole or not at all; see `writing`, which also tells how far it is."""
    for _ in writing(path, metadata, tensors, types=types):
        pass


def writing(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[TensorToWrite],
    *,
    types: Mapping[str, MetadataType] | None = None,
) -> Iterator[Progress]:
    """Write a GGUF and yield progress in bytes.

    A tensor is (name, type, shape in torch order, data). Data is bytes, an array, or a function that returns
    these or an iterator of pieces: called when its turn comes, so that a model never sits in memory.
    A value's type follows from the Python value (`type_of`) unless `types` names another.
    Raises ValueError for tensors that contradict themselves, NightschoolError where the disk refuses.
    """
    tensors = list(tensors)
    alignment = int(metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    sizes = [size_of(type, shape) for _, type, shape, _ in tensors]
    header = _header(metadata, types or {}, _tensor_infos(tensors, sizes, alignment))
    try:
        with atomic_write(path) as draft, draft.open("wb") as file:
            file.write(header + bytes(-len(header) % alignment))
            yield from _write_tensors(file, tensors, sizes, alignment)
    except OSError as error:
        raise NightschoolError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error


def _write_tensors(
    file: IO[bytes], tensors: list[TensorToWrite], sizes: list[int], alignment: int
) -> Iterator[Progress]:
    done, total = 0, sum(sizes)
    for (name, _, _, data), size in zip(tensors, sizes, strict=True):
        written = 0
        for piece in _pieces(data):
            file.write(piece)
            written += len(piece)
            yield Progress("writing", done + written, total)
        if written != size:
            raise ValueError(f"tensor {name!r} should have {size} bytes, but {written} came")
        file.write(bytes(-size % alignment))
        done += size


def _header(metadata: Mapping[str, Any], types: Mapping[str, MetadataType], infos: list[bytes]) -> bytes:
    head = MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(infos), len(metadata))
    pairs = (_string(key) + _pair_value(value, types.get(key)) for key, value in metadata.items())
    return b"".join([head, *pairs, *infos])


def _pair_value(value: Any, forced: MetadataType | None) -> bytes:
    type = forced if forced is not None else type_of(value)
    if not isinstance(type, ArrayOf):
        return struct.pack("<I", type) + _packed([value], type)
    return struct.pack("<IIQ", ValueType.ARRAY, type.item, len(value)) + _packed(value, type.item)


def _packed(values: Any, type: ValueType) -> bytes:
    if type is ValueType.STRING:
        return b"".join(_string(value) for value in values)
    return np.asarray(values, NUMBERS[type]).tobytes()


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def type_of(value: Any) -> MetadataType:
    """The metadata type that fits a Python value: bool, float32, string, uint32 (int32 if negative).

    Arrays of numbers are int32 or float32, and an empty one int32; integers grow to 64 bits where they must.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return ArrayOf(_item_type(value))
    if isinstance(value, bool | np.bool_):
        return ValueType.BOOL
    if isinstance(value, int | np.integer):
        return _integer_type([int(value)], small=ValueType.UINT32 if value >= 0 else ValueType.INT32)
    if isinstance(value, float | np.floating):
        return ValueType.FLOAT32
    if isinstance(value, str):
        return ValueType.STRING
    raise ValueError(f"{value!r} cannot stand in GGUF metadata")


def _item_type(values: list[Any] | tuple[Any, ...]) -> ValueType:
    kinds = {type_of(value) for value in values}
    for only in (ValueType.BOOL, ValueType.STRING):
        if kinds == {only}:
            return only
    if kinds & {ValueType.BOOL, ValueType.STRING} or any(isinstance(kind, ArrayOf) for kind in kinds):
        raise ValueError("an array in GGUF metadata must hold values of one kind")
    if ValueType.FLOAT32 in kinds:
        return ValueType.FLOAT32
    return _integer_type([int(value) for value in values], small=ValueType.INT32)


def _integer_type(values: list[int], small: ValueType) -> ValueType:
    for type in (small, ValueType.INT64, ValueType.UINT64):
        limits = np.iinfo(NUMBERS[type])
        if all(limits.min <= value <= limits.max for value in values):
            return type
    raise ValueError("an integer in GGUF metadata must fit into 64 bits")


def _tensor_infos(tensors: list[TensorToWrite], sizes: list[int], alignment: int) -> list[bytes]:
    infos: dict[str, bytes] = {}
    offset = 0
    for (name, type, shape, _), size in zip(tensors, sizes, strict=True):
        if name in infos or not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise ValueError(f"{name!r} is too long for a tensor name, empty, or there twice")
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        infos[name] = _string(name) + dimensions + struct.pack("<IQ", type, offset)
        offset += size + -size % alignment
    return list(infos.values())


def _pieces(data: Data) -> Iterator[memoryview]:
    made = data() if callable(data) else data
    for piece in made if isinstance(made, Iterator) else iter([made]):
        yield memoryview(np.ascontiguousarray(piece).data if isinstance(piece, np.ndarray) else piece).cast(
            "B"
        )
