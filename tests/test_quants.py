"""quants: bit for bit what the `gguf` package unpacks and packs; Q4_K, which it cannot pack, by its error."""

import time

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny import quantize_q4_k, quantize_q6_k, write_tiny

from nightschool.errors import UnsupportedModel
from nightschool.gguf import BLOCK, TensorType, open_gguf, size_of
from nightschool.quants import PACK, UNPACK, dequantize, fitting_type, quantize, quantizing

# Where in a block its f16 numbers are; random bytes there would be mostly NaN and infinity.
HALVES = {
    TensorType.Q4_0: (0,),
    TensorType.Q4_1: (0, 2),
    TensorType.Q5_0: (0,),
    TensorType.Q5_1: (0, 2),
    TensorType.Q8_0: (0,),
    TensorType.Q2_K: (80, 82),
    TensorType.Q3_K: (108,),
    TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2),
    TensorType.Q6_K: (208,),
    TensorType.IQ4_NL: (0,),
    TensorType.IQ4_XS: (0,),
}
BY_PACKAGE = [TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.Q4_0]


def theirs(type: TensorType) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[type.name]


def random_blocks(type: TensorType, rows: int, columns: int, *, seed: int = 0) -> np.ndarray:
    """Any bytes, except that f16 scales are finite (subnormal, zero and large ones among them)."""
    rng = np.random.default_rng(seed)
    elements, size = BLOCK[type]
    if elements == 1:
        numbers = rng.normal(size=(rows, columns)).astype(np.float32)
        return gguf.quants.quantize(numbers, theirs(type)).view(np.uint8).ravel()
    blocks = rng.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
    for at in HALVES[type]:
        scales = rng.normal(size=(len(blocks), 1)) * 10.0 ** rng.integers(-8, 4, (len(blocks), 1))
        blocks[:, at : at + 2] = scales.astype(np.float16).view(np.uint8)
    return blocks.ravel()


def unpacked_by_package(raw: np.ndarray, type: TensorType, shape: tuple[int, ...]) -> np.ndarray:
    return gguf.quants.dequantize(raw.reshape(shape[0], -1), theirs(type)).reshape(shape)


def test_fifteen_formats_can_be_unpacked():
    names = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS"
    assert {type.name for type in UNPACK} == set(names.split())


@pytest.mark.parametrize("type", UNPACK, ids=lambda type: type.name)
def test_any_bytes_unpack_to_the_very_numbers_of_the_package(type):
    shape = (37, 4096)  # more than one tile, and the last one short
    raw = random_blocks(type, *shape)
    assert np.array_equal(dequantize(raw, type, shape).numpy(), unpacked_by_package(raw, type, shape))


@pytest.mark.parametrize("type", BY_PACKAGE, ids=lambda type: type.name)
def test_packed_numbers_unpack_to_the_very_numbers_of_the_package(type):
    x = np.random.default_rng(1).normal(size=(8, 256)).astype(np.float32)
    raw = gguf.quants.quantize(x, theirs(type)).view(np.uint8).ravel()
    assert np.array_equal(dequantize(raw, type, x.shape).numpy(), unpacked_by_package(raw, type, x.shape))


@pytest.mark.parametrize("type", ["Q8_0", "Q4_K", "Q6_K", "F16"])
def test_tensors_of_a_mapped_file_unpack_without_a_warning(tmp_path, type):
    path = write_tiny(tmp_path / "tiny.gguf", "llama", type, layers=1)
    file = open_gguf(path)
    for tensor in gguf.GGUFReader(path).tensors:
        mine = file.tensors[tensor.name]
        ours = dequantize(file.data(tensor.name), mine.type, mine.shape)
        reference = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(mine.shape)
        assert np.array_equal(ours.numpy(), reference)


@pytest.mark.parametrize("type", UNPACK, ids=lambda type: type.name)
def test_a_slice_of_rows_unpacks_alone_and_into_a_given_place(type):
    shape = (6, 512)
    raw = random_blocks(type, *shape)
    whole = dequantize(raw, type, shape)
    row_bytes = size_of(type, (512,))
    place = torch.full((2, 512), torch.nan)
    part = dequantize(torch.from_numpy(raw[3 * row_bytes : 5 * row_bytes]), type, (2, 512), out=place)
    assert part is place
    assert torch.equal(part, whole[3:5])


def test_types_that_cannot_be_unpacked_are_named_with_their_tensor():
    for type in set(TensorType) - set(UNPACK):
        with pytest.raises(UnsupportedModel, match=rf"'blk.0.ffn_up.weight' is stored as {type.name},"):
            dequantize(np.zeros(0, np.uint8), type, (0, 256), name="blk.0.ffn_up.weight")


def test_a_wrong_number_of_bytes_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="takes 68 bytes, not 67"):
        dequantize(np.zeros(67, np.uint8), TensorType.Q8_0, (2, 32))


def test_unpacking_keeps_to_tiles(monkeypatch):
    """Beside the result nothing of the size of a matrix is allocated."""
    raw = random_blocks(TensorType.Q4_K, 1024, 4096)
    out = torch.empty(1024, 4096)
    largest = []
    unpack = UNPACK[TensorType.Q4_K]
    monkeypatch.setitem(
        UNPACK, TensorType.Q4_K, lambda blocks, out: (largest.append(out.nbytes), unpack(blocks, out))
    )
    dequantize(raw, TensorType.Q4_K, (1024, 4096), out=out)
    assert sum(largest) == out.nbytes
    assert max(largest) <= (1 << 19) * torch.get_num_threads()


@pytest.mark.parametrize("type", UNPACK, ids=lambda type: type.name)
def test_unpacking_is_fast_enough_to_do_at_every_start(type):
    shape = (2048, 2048)
    raw, out = random_blocks(type, *shape), torch.empty(shape)
    times = []
    for _ in range(4):
        start = time.process_time()
        dequantize(raw, type, shape, out=out)
        times.append(time.process_time() - start)
    assert out.nbytes / min(times) > 300e6  # 1 to 12 GB/s on an idle core


# Packing ------------------------------------------------------------------------------------------


def numbers() -> dict[str, np.ndarray]:
    """Normal, heavy-tailed, tiny, zero, constant, and rows of ties between +a and -a."""
    rng = np.random.default_rng(2)
    normal = rng.normal(size=(64, 512)).astype(np.float32)
    return {
        "normal": normal,
        "outliers": (normal * 10.0 ** rng.integers(-3, 3, normal.shape)).astype(np.float32),
        "tiny": normal * np.float32(1e-7),
        "zero": np.zeros_like(normal),
        "constant": np.full_like(normal, -0.3),
        "ties": np.sign(normal),
        "halves": np.round(normal * 8) / 2,
    }


@pytest.mark.parametrize("kind", numbers())
@pytest.mark.parametrize("type", BY_PACKAGE, ids=lambda type: type.name)
def test_packing_gives_the_very_bytes_of_the_package(type, kind):
    x = numbers()[kind]
    reference = gguf.quants.quantize(x, theirs(type)).view(np.uint8).ravel()
    assert np.array_equal(quantize(torch.from_numpy(x), type), reference)


# Where 1 / scale overflows the package warns; what either packs then unpacks to zero.
ordinary = st.floats(-1e4, 1e4, width=32).map(lambda number: number if abs(number) > 1e-30 else 0.0)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (3, 64), elements=ordinary))
def test_packing_any_numbers_gives_the_very_bytes_of_the_package(x):
    for type in BY_PACKAGE:
        reference = gguf.quants.quantize(x, theirs(type)).view(np.uint8).ravel()
        assert np.array_equal(quantize(torch.from_numpy(x), type), reference), type


def error(x: np.ndarray, raw: np.ndarray, type: TensorType) -> float:
    """Root mean square error relative to that of the numbers; unpacked by the package, not by us."""
    back = gguf.quants.dequantize(raw.reshape(x.shape[0], -1), theirs(type))
    return float(np.sqrt(np.mean((back - x) ** 2) / np.mean(x**2)))


def test_our_q4_k_is_better_than_q4_0_and_than_plain_rounding():
    rng = np.random.default_rng(3)
    samples = [rng.normal(size=(64, 1024)), rng.laplace(size=(64, 1024)), rng.normal(0.5, 1, size=(64, 1024))]
    for x in (sample.astype(np.float32) for sample in samples):
        ours = error(x, quantize(torch.from_numpy(x), TensorType.Q4_K), TensorType.Q4_K)
        plain = error(x, quantize_q4_k(x), TensorType.Q4_K)
        q4_0 = error(x, gguf.quants.quantize(x, theirs(TensorType.Q4_0)), TensorType.Q4_0)
        assert ours < 0.88 * q4_0
        assert ours < 0.97 * plain


@pytest.mark.parametrize("kind", numbers())
def test_q4_k_takes_numbers_of_any_kind(kind):
    x = numbers()[kind]
    raw = quantize(torch.from_numpy(x), TensorType.Q4_K)
    assert raw.nbytes == size_of(TensorType.Q4_K, x.shape)
    back = gguf.quants.dequantize(raw.reshape(len(x), -1), theirs(TensorType.Q4_K))
    assert np.isfinite(back).all()
    spread = np.abs(x).reshape(len(x), -1, 256).max(-1)  # the two f16 factors serve 256 numbers
    assert (np.abs(back - x).reshape(len(x), -1, 256).max(-1) <= 0.13 * spread + 1e-6).all()


def test_constant_and_zero_rows_survive_q4_k_almost_exactly():
    for value in (0.0, 2.5, -2.5):
        x = np.full((2, 256), value, np.float32)
        raw = quantize(torch.from_numpy(x), TensorType.Q4_K)
        assert np.allclose(gguf.quants.dequantize(raw.reshape(2, -1), theirs(TensorType.Q4_K)), x, rtol=1e-2)


@pytest.mark.parametrize("type", PACK, ids=lambda type: type.name)
def test_packing_in_pieces_gives_the_same_bytes_and_takes_half_precision(type):
    x = torch.randn(96, 2048, generator=torch.Generator().manual_seed(0)).bfloat16()
    pieces = list(quantizing(x, type))
    assert len(pieces) > 1 or torch.get_num_threads() > 1
    assert np.array_equal(np.concatenate([piece.numpy() for piece in pieces]), quantize(x.float(), type))


def test_formats_that_are_not_written_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="Q6_K cannot be written; choose one of F32, F16"):
        quantize(torch.zeros(1, 256), TensorType.Q6_K)
    with pytest.raises(ValueError, match="not whole blocks"):
        quantize(torch.zeros(1, 128), TensorType.Q4_K)


@pytest.mark.parametrize(
    ("wanted", "columns", "fitting"),
    [
        ("Q4_K", 512, "Q4_K"),
        ("Q4_K", 576, "Q8_0"),
        ("Q4_0", 172, "F16"),
        ("F32", 7, "F32"),
        ("Q8_0", 64, "Q8_0"),
    ],
)
def test_a_format_whose_blocks_do_not_fit_the_rows_is_replaced(wanted, columns, fitting):
    assert fitting_type(TensorType[wanted], columns) is TensorType[fitting]


def test_q6_k_by_hand_unpacks_close_to_what_went_in():
    """The package cannot pack Q6_K; this guards the order of elements against a mistake common to both."""
    x = np.random.default_rng(4).normal(size=(4, 512)).astype(np.float32)
    back = dequantize(quantize_q6_k(x).ravel(), TensorType.Q6_K, x.shape).numpy()
    assert np.abs(back - x).max() < 0.1
