"""gguf: we read what the `gguf` package reads, and damage to a file does no more than have it refused."""

import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import write_tiny

from nightschool.errors import FileFormatError, NightschoolError, NotFound, UnsupportedModel
from nightschool.gguf import (
    BLOCK,
    MAX_ARRAY_ITEMS,
    ArrayOf,
    TensorType,
    ValueType,
    open_gguf,
    size_of,
    tensor_hash,
    type_of,
    write_gguf,
    writing,
)

VOCABULARIES = ["gpt-2", "llama-spm", "phi-3", "starcoder"]

METADATA = {
    "general.architecture": "llama",
    "a.bool": True,
    "a.small": 7,
    "a.negative": -3,
    "a.large": 1 << 40,
    "a.float": 0.5,
    "a.text": "ünï",
    "a.names": ["<s>", "", "▁the"],
    "a.counts": [1, -2, 3],
    "a.scores": [0.5, -1.25],
    "a.flags": [True, False],
}


def tensors_to_write():
    """One of each kind of data: an array, bytes, a function that returns pieces."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3, 64)).astype(np.float32)
    packed = gguf.quantize(matrix, gguf.GGMLQuantizationType.Q8_0)
    return [
        ("norm.weight", TensorType.F32, (5,), np.arange(5, dtype=np.float32)),
        ("full.weight", TensorType.F32, (3, 64), matrix.tobytes()),
        ("packed.weight", TensorType.Q8_0, (3, 64), lambda: (row for row in packed)),
    ]


def write_sample(path: Path) -> Path:
    write_gguf(path, METADATA, tensors_to_write())
    return path


# Against the gguf package ---------------------------------------------------------------------------


def assert_reads_as_the_package_reads(path: Path) -> None:
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == {key: field.contents() for key, field in fields.items()}
    for key, field in fields.items():
        type = ours.metadata_types[key]
        kinds = (ValueType.ARRAY, type.item) if isinstance(type, ArrayOf) else (type,)
        assert kinds == tuple(field.types), key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert (mine.type, mine.shape) == (tensor.tensor_type, tuple(tensor.shape.tolist()[::-1]))
        assert (mine.offset, mine.size_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert np.array_equal(ours.data(tensor.name), tensor.data.view(np.uint8).ravel())


@pytest.mark.parametrize("name", VOCABULARIES[:2])  # the package takes seconds for each
def test_real_vocabularies_read_as_the_package_reads_them(shared, name):
    assert_reads_as_the_package_reads(shared / "tokenizers" / f"ggml-vocab-{name}.gguf")


@pytest.mark.parametrize(("arch", "type"), [("llama", "F32"), ("qwen2", "Q8_0"), ("gemma3", "Q4_K")])
def test_models_of_the_package_read_as_the_package_reads_them(tmp_path, arch, type):
    assert_reads_as_the_package_reads(write_tiny(tmp_path / "tiny.gguf", arch, type))


def test_our_files_read_as_the_package_reads_them(tmp_path):
    path = write_sample(tmp_path / "ours.gguf")
    assert_reads_as_the_package_reads(path)
    assert open_gguf(path).metadata == METADATA


def test_the_block_table_is_the_packages():
    theirs = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {type.name: size for type, size in BLOCK.items()} == theirs
    assert {type.name: int(type) for type in TensorType} == {
        kind.name: int(kind) for kind in gguf.GGMLQuantizationType
    }


def test_version_2_reads_like_version_3(tmp_path):
    path = write_sample(tmp_path / "v3.gguf")
    older = tmp_path / "v2.gguf"
    older.write_bytes(path.read_bytes()[:4] + struct.pack("<I", 2) + path.read_bytes()[8:])
    assert open_gguf(older).version == 2
    assert open_gguf(older).metadata == METADATA
    assert_reads_as_the_package_reads(older)


# Writing ------------------------------------------------------------------------------------------


def test_a_copy_keeps_values_and_their_types(tmp_path):
    source = open_gguf(write_tiny(tmp_path / "tiny.gguf", "llama", "Q8_0"))
    tensors = [(t.name, t.type, t.shape, source.data(t.name)) for t in source.tensors.values()]
    write_gguf(tmp_path / "copy.gguf", source.metadata, tensors, types=source.metadata_types)
    copy = open_gguf(tmp_path / "copy.gguf")
    assert copy.metadata == source.metadata
    assert copy.metadata_types == source.metadata_types
    assert tensor_hash(copy) == tensor_hash(source)
    assert (tmp_path / "copy.gguf").read_bytes() == (tmp_path / "tiny.gguf").read_bytes()


@pytest.mark.parametrize(
    ("value", "type"),
    [
        (True, ValueType.BOOL),
        (1, ValueType.UINT32),
        (-1, ValueType.INT32),
        (1 << 32, ValueType.INT64),
        ((1 << 64) - 1, ValueType.UINT64),
        (1.0, ValueType.FLOAT32),
        ("x", ValueType.STRING),
        ([1, 2], ArrayOf(ValueType.INT32)),
        ([1, 1 << 40], ArrayOf(ValueType.INT64)),
        ([1, 2.5], ArrayOf(ValueType.FLOAT32)),
        ([False], ArrayOf(ValueType.BOOL)),
        (["a"], ArrayOf(ValueType.STRING)),
        (np.float32(2), ValueType.FLOAT32),
        (np.arange(3), ArrayOf(ValueType.INT32)),
    ],
)
def test_python_values_get_the_type_that_llama_cpp_expects(value, type):
    assert type_of(value) == type


@pytest.mark.parametrize("value", [[1, "a"], [True, 1], [[1]], None, 1 << 64, {"a": 1}])
def test_values_that_gguf_cannot_hold_are_a_mistake_of_the_caller(value):
    with pytest.raises(ValueError, match="GGUF metadata"):
        type_of(value)


def test_raw_bytes_in_a_vocabulary_survive_a_round_trip(tmp_path):
    token = b"\xff\xfe".decode("utf-8", "surrogateescape")
    write_gguf(tmp_path / "a.gguf", {"tokenizer.ggml.tokens": [token, "ok"]}, [])
    assert open_gguf(tmp_path / "a.gguf").metadata == {"tokenizer.ggml.tokens": [token, "ok"]}
    assert b"\xff\xfe" in (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_tensors_lie_at_multiples_of_the_alignment(tmp_path, alignment):
    path = tmp_path / "a.gguf"
    write_gguf(path, {"general.alignment": alignment}, tensors_to_write())
    assert_reads_as_the_package_reads(path)
    assert all(tensor.offset % alignment == 0 for tensor in open_gguf(path).tensors.values())


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path):
    path = write_sample(tmp_path / "a.gguf")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="'x' should have 20 bytes, but 16 came"):
        write_gguf(path, {}, [("x", TensorType.F32, (5,), np.zeros(4, np.float32))])
    stopped = writing(path, {}, tensors_to_write())
    next(stopped)
    stopped.close()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gguf"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NightschoolError, match="cannot be written: "):
        write_sample(tmp_path / "file" / "a.gguf")


def test_tensors_are_made_one_at_a_time_and_not_kept(tmp_path):
    size = 1 << 22
    tensors = [(f"t{i}", TensorType.I8, (size,), lambda i=i: np.full(size, i, np.int8)) for i in range(16)]
    tracemalloc.start()
    progress = list(writing(tmp_path / "a.gguf", {}, tensors))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * size
    assert (progress[-1].done, progress[-1].total) == (16 * size, 16 * size)
    assert open_gguf(tmp_path / "a.gguf").data("t9")[-1] == 9


@pytest.mark.parametrize("names", [("a", "a"), ("",), ("n" * 64,)])
def test_impossible_tensor_names_are_a_mistake_of_the_caller(tmp_path, names):
    with pytest.raises(ValueError, match="tensor name"):
        write_gguf(tmp_path / "a.gguf", {}, [(name, TensorType.I8, (1,), b"0") for name in names])


def test_the_identity_of_a_base_is_its_tensors_alone(tmp_path):
    def identity(metadata, tensors):
        write_gguf(tmp_path / "a.gguf", metadata, tensors)
        return tensor_hash(open_gguf(tmp_path / "a.gguf"))

    tensors = tensors_to_write()
    first = identity(METADATA, tensors)
    assert identity({"general.name": "other"}, tensors[::-1]) == first
    others = [
        tensors[:2],
        [("renamed", *tensors[0][1:]), *tensors[1:]],
        [(*tensors[0][:3], np.arange(5, dtype=np.float32)[::-1]), *tensors[1:]],
        [tensors[0], ("full.weight", TensorType.F32, (64, 3), tensors[1][3]), tensors[2]],
    ]
    assert len({first, *(identity(METADATA, other) for other in others)}) == 5


# Damaged files --------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, type: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", type) + value


def info(name: str, *dims: int, type: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type, offset)


def raw_gguf(pairs=(), infos=(), *, head=b"GGUF", version=3, counts=None, data=bytes(4096)) -> bytes:
    """A file of hand-made parts; `counts` overrides the true numbers of tensors and pairs."""
    counts = counts or (len(infos), len(pairs))
    header = head + struct.pack("<IQQ", version, *counts) + b"".join([*pairs, *infos])
    return header + bytes(-len(header) % 32) + data


HUGE = (1 << 64) - 1
U32, STRING, ARRAY = 4, 8, 9
DAMAGES = {
    "it has only 3 bytes": b"GGU",
    "it starts with b'PK": b"PK\x03\x04" + bytes(60),
    "big-endian": raw_gguf(version=3 << 24),
    "GGUF version 1,": raw_gguf(version=1),
    "GGUF version 4,": raw_gguf(version=4),
    "promises 18,446,744,073,709,551,615 tensors": raw_gguf(counts=(HUGE, 0)),
    "promises 9,999,999 metadata entries": raw_gguf(counts=(0, 9_999_999)),
    "the key of metadata entry 0 goes past the end": raw_gguf([struct.pack("<Q", HUGE)]),
    "'a' has the unknown type 13": raw_gguf([pair("a", 13, b"")]),
    "the value of 'a' goes past the end": raw_gguf([pair("a", STRING, struct.pack("<Q", 1 << 40))]),
    "key 'a' stands in it twice": raw_gguf([pair("a", U32, bytes(4))] * 2),
    "is 'a\\n', which is not readable": raw_gguf([pair("a\n", U32, bytes(4))]),
    "entry 0 is 1,025 characters long": raw_gguf([pair("k" * 1025, U32, bytes(4))]),
    "array of arrays": raw_gguf([pair("a", ARRAY, struct.pack("<IQ", ARRAY, 1))]),
    "claim 18,446,744,073,709,551,615 items": raw_gguf([pair("a", ARRAY, struct.pack("<IQ", U32, HUGE))]),
    "the value of 'b' goes past": raw_gguf([pair("b", ARRAY, struct.pack("<IQ", U32, 1 << 20))]),
    "promises 1,048,576 strings": raw_gguf([pair("a", ARRAY, struct.pack("<IQ", STRING, 1 << 20))]),
    "item 1 of the array 'a'": raw_gguf(
        [pair("a", ARRAY, struct.pack("<IQ", STRING, 2) + text("x") + b"\xff" * 8)]
    ),
    "not a 32-bit unsigned": raw_gguf([pair("general.alignment", 5, struct.pack("<i", 32))]),
    "its alignment is 0": raw_gguf([pair("general.alignment", U32, bytes(4))]),
    "its alignment is 48": raw_gguf([pair("general.alignment", U32, struct.pack("<I", 48))]),
    "its alignment is 2147483648": raw_gguf([pair("general.alignment", U32, struct.pack("<I", 1 << 31))]),
    "does not have 1 to 63 bytes": raw_gguf(infos=[info("x" * 64, 8)]),
    "'t' has 0 dimensions": raw_gguf(infos=[info("t")]),
    "'t' has 5 dimensions": raw_gguf(infos=[info("t", 1, 1, 1, 1, 1)]),
    "'t' has 4294967295 dimensions": raw_gguf(infos=[text("t") + b"\xff" * 4]),
    "impossible shape (8, 0)": raw_gguf(infos=[info("t", 0, 8)]),
    "impossible shape (4294967296, 4294967296)": raw_gguf(infos=[info("t", 1 << 32, 1 << 32)]),
    "not whole blocks of Q8_0": raw_gguf(infos=[info("t", 33, 4, type=8)]),
    "starts at 5, which is not a multiple": raw_gguf(infos=[info("t", 8, offset=5)]),
    "was probably not downloaded completely": raw_gguf(infos=[info("t", 1025)]),
    "from 18,446,744,073,709,551": raw_gguf(infos=[info("t", 8, offset=HUGE & ~31)]),
    "tensor 't' stands in it twice": raw_gguf(infos=[info("t", 8), info("t", 8, offset=32)]),
    "'s' and 't' overlap": raw_gguf(infos=[info("t", 8, offset=32), info("s", 16)]),
}


@pytest.mark.parametrize("expected", DAMAGES, ids=list(DAMAGES))
def test_a_damaged_file_gets_one_sentence_that_names_the_damage(tmp_path, expected):
    path = tmp_path / "bad.gguf"
    path.write_bytes(DAMAGES[expected])
    with pytest.raises(FileFormatError) as refusal:
        open_gguf(path)
    assert expected in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert str(refusal.value).count("\n") == 0


@pytest.mark.parametrize("number", [4, 5, 31, 38, 42, 1 << 31])
def test_an_unknown_tensor_type_is_named_with_its_tensor(tmp_path, number):
    (tmp_path / "new.gguf").write_bytes(raw_gguf(infos=[info("blk.0.attn_q.weight", 32, type=number)]))
    with pytest.raises(UnsupportedModel, match=rf"'blk.0.attn_q.weight' .* unknown type {number};"):
        open_gguf(tmp_path / "new.gguf")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(NotFound, match="no file"):
        open_gguf(tmp_path / "missing.gguf")
    with pytest.raises(FileFormatError, match="cannot be read"):
        open_gguf(tmp_path)


def test_the_cap_on_array_items_counts_all_arrays_together(tmp_path):
    half = pair("half", ARRAY, struct.pack("<IQ", 0, MAX_ARRAY_ITEMS // 2) + bytes(MAX_ARRAY_ITEMS // 2))
    more = half.replace(b"half", b"more")
    (tmp_path / "a.gguf").write_bytes(raw_gguf([half, more]))
    assert len(open_gguf(tmp_path / "a.gguf").metadata["more"]) == MAX_ARRAY_ITEMS // 2
    (tmp_path / "b.gguf").write_bytes(
        raw_gguf([half, more, pair("c", ARRAY, struct.pack("<IQ", 0, 1) + b"1")])
    )
    with pytest.raises(FileFormatError, match="far too many"):
        open_gguf(tmp_path / "b.gguf")


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert", "delete", "huge", "swap"]),
        st.floats(0, 1),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


def mutate(original: bytes, edits: list[tuple[str, float, int]], *, reach: int) -> bytes:
    """Apply the edits within the first `reach` bytes."""
    damaged = bytearray(original)
    for kind, where, value in edits:
        at = int(where * (min(reach, len(damaged)) - 1))
        match kind:
            case "flip":
                damaged[at] ^= 1 << value % 8
            case "set":
                damaged[at] = value
            case "cut":
                del damaged[max(at, 1) :]
            case "insert":
                damaged[at:at] = bytes([value]) * (value % 9 + 1)
            case "delete":
                del damaged[at : at + value % 9 + 1]
            case "huge":
                damaged[at : at + 8] = struct.pack("<Q", HUGE >> value % 64)
            case "swap":
                damaged[at : at + 16] = damaged[at + 16 : at + 24] + damaged[at : at + 8]
        damaged = damaged or bytearray(b"G")
    return bytes(damaged)


def open_or_refuse(path: Path, size: int) -> None:
    """Opens with every tensor inside the file, or says so; never more memory than a multiple of the file."""
    tracemalloc.start()
    try:
        file = open_gguf(path)
        for name, tensor in file.tensors.items():
            assert file.data(name).nbytes == tensor.size_bytes == size_of(tensor.type, tensor.shape)
            assert file.data(name)[-1:].tolist() is not None  # touches the last page
    except (FileFormatError, UnsupportedModel) as refusal:
        assert len(str(refusal)) < 8000
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 12 * size + (1 << 19)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated")


@pytest.fixture(scope="module")
def small(folder):
    """A small real model by the gguf package, and how many bytes its header has."""
    path = write_tiny(folder / "tiny.gguf", "llama", "Q8_0", layers=1)
    return path.read_bytes(), min(tensor.offset for tensor in open_gguf(path).tensors.values())


fuzzing = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(fuzzing, max_examples=400)
@given(edits=edits, near_start=st.booleans())
def test_no_damage_to_a_small_model_does_more_than_be_refused(small, folder, edits, near_start):
    original, header = small
    damaged = mutate(original, edits, reach=600 if near_start else header)
    (folder / "damaged.gguf").write_bytes(damaged)
    open_or_refuse(folder / "damaged.gguf", len(damaged))


@settings(fuzzing, max_examples=300)
@given(edits=edits, at_end=st.booleans())
def test_no_damage_to_the_tensor_list_does_more_than_be_refused(small, folder, edits, at_end):
    """The list of tensors is the end of the header: mutate there, so that the edits hit what they should."""
    original, header = small
    start = original.rindex(b"token_embd.weight", 0, header) - 8
    tail = mutate(original[start:], edits, reach=header - start if at_end else 128)
    (folder / "damaged.gguf").write_bytes(original[:start] + tail)
    open_or_refuse(folder / "damaged.gguf", start + len(tail))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_no_damage_to_a_real_vocabulary_does_more_than_be_refused(shared, folder, name):
    original = (shared / "tokenizers" / f"ggml-vocab-{name}.gguf").read_bytes()

    @settings(fuzzing, max_examples=25)
    @given(edits=edits, near_start=st.booleans())
    def check(edits, near_start):
        damaged = mutate(original, edits, reach=1500 if near_start else len(original))
        (folder / "damaged.gguf").write_bytes(damaged)
        open_or_refuse(folder / "damaged.gguf", len(damaged))

    check()


def test_every_truncation_of_a_header_is_refused(small, folder):
    original, header = small
    for end in range(0, header, 97):
        (folder / "cut.gguf").write_bytes(original[:end])
        with pytest.raises(FileFormatError):
            open_gguf(folder / "cut.gguf")


def test_a_large_vocabulary_opens_fast(tmp_path):
    words = [f"token{i}" for i in range(150_000)]
    metadata = {"tokenizer.ggml.tokens": words, "tokenizer.ggml.merges": words, "scores": [0.5] * len(words)}
    write_gguf(tmp_path / "a.gguf", metadata, [])
    start = time.process_time()
    assert open_gguf(tmp_path / "a.gguf").metadata["tokenizer.ggml.tokens"][-1] == "token149999"
    assert time.process_time() - start < 1.0  # about 0.1 s
