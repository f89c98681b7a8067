"""Block formats ↔ tensors: unpack a GGUF's quantised rows to float32, pack float32 into the formats we write.

Unpacking gives bit for bit what the `gguf` package gives, and works in tiles of a few blocks that stay in the
cache: beside the result itself nothing large is allocated. A slice of rows is as good as a whole tensor, so
a caller who has no room for a matrix takes a part of `raw` and of `shape`.

Byte layouts are those of the structs in llama.cpp's ggml-common.h. In the comments n is the number of blocks,
`→` gives the order of elements. This file knows nothing of files and models.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from nightschool.errors import UnsupportedModel
from nightschool.gguf import BLOCK, TensorType, size_of

Raw = npt.NDArray[np.uint8] | torch.Tensor
TILE_ELEMENTS = 1 << 17  # half a megabyte of float32: a tile and its temporaries stay in the level-2 cache


def dequantize(
    raw: Raw, type: TensorType, shape: tuple[int, ...], *, name: str = "", out: torch.Tensor | None = None
) -> torch.Tensor:
    """Unpack raw bytes (size_of(type, shape),) to float32 of `shape`, on raw's device, into `out` if given.

    Raises UnsupportedModel, naming `name`, for the types that cannot be unpacked here.
    """
    check_readable(type, name)
    if raw.nbytes != size_of(type, shape):
        raise ValueError(f"{type.name} of shape {shape} takes {size_of(type, shape)} bytes, not {raw.nbytes}")
    elements, size_bytes = BLOCK[type]
    blocks = raw.reshape(-1, size_bytes)  # (n, size_bytes)
    if out is None:
        device = raw.device if isinstance(raw, torch.Tensor) else None
        out = torch.empty(shape, dtype=torch.float32, device=device)
    flat = out.view(-1, elements)  # (n, elements)
    step = TILE_ELEMENTS // elements * torch.get_num_threads()
    for start in range(0, len(flat), step):
        UNPACK[type](_as_tensor(blocks[start : start + step]), flat[start : start + step])
    return out


def check_readable(type: TensorType, name: str) -> None:
    """Raise UnsupportedModel where a tensor's type cannot be unpacked."""
    if type not in UNPACK:
        raise UnsupportedModel(
            f"Tensor {name!r} is stored as {type.name}, which cannot be unpacked here; "
            "use another quantisation of this model, for example Q4_K_M or Q8_0."
        )


def _as_tensor(blocks: Raw) -> torch.Tensor:
    # A copy, because torch warns about arrays that cannot be written, such as those of a mapped file.
    return blocks if isinstance(blocks, torch.Tensor) else torch.from_numpy(np.array(blocks))


# Unpacking: (n, bytes) uint8 into out (n, elements) float32 -------------------------------------
# Bits are taken eight bytes at a time through int64 views. Products and differences are separate operations:
# a fused one would round differently from the reference.


def _f32(blocks: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(blocks.view(torch.float32))


def _f16(blocks: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(blocks.view(torch.float16))


def _bf16(blocks: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(blocks.view(torch.bfloat16))


def _q8_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Scale f16, 32 × int8."""
    out.copy_(blocks[:, 2:].view(torch.int8))
    out.mul_(_half(blocks, 0))


def _q4_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Scale f16, 16 bytes: low nibbles → 0–15, high nibbles → 16–31; 8 stands for zero."""
    out.copy_(_bits(blocks[:, 2:], 2, width=4))
    out.sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Scale f16, minimum f16, nibbles as in Q4_0."""
    out.copy_(_bits(blocks[:, 4:], 2, width=4))
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Scale f16, 32 fifth bits (bit i → i), nibbles as in Q4_0; 16 stands for zero."""
    out.copy_(_bits(blocks[:, 6:], 2, width=4) | _fifth_bits(blocks[:, 2:6]))
    out.sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Scale f16, minimum f16, 32 fifth bits, nibbles."""
    out.copy_(_bits(blocks[:, 8:], 2, width=4) | _fifth_bits(blocks[:, 4:8]))
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q2_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """16 bytes of scales (low nibbles) and minima (high), 64 of 2-bit numbers, f16 scales of both.

    Each 32 bytes → 32 lowest fields, then 32 of the next, and so on.
    """
    scales = blocks[:, :16]
    d, dmin = _half(blocks, 80), _half(blocks, 82)
    out.copy_(_bits(blocks[:, 16:80], 4, width=2, run=32))
    groups = out.view(-1, 16, 16)
    groups.mul_((d * (scales & 15)).unsqueeze(2)).sub_((dmin * (scales >> 4)).unsqueeze(2))


def _q3_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """32 bytes of third bits, 64 of 2-bit numbers, 12 of 6-bit scales, their f16 scale; 4 stands for zero.

    Scales: 4 low bits of i in the low (i < 8) or high nibble of byte i % 8, 2 high bits in byte 8 + i % 4.
    """
    high = _bits(blocks[:, :32], 8, width=1, shift_left=2)  # (n, 256)
    low = _bits(blocks[:, 32:96], 4, width=2, run=32)
    scales = _bits(blocks[:, 96:104], 2, width=4) | _bits(blocks[:, 104:108], 4, width=2, shift_left=4)
    out.copy_(low | high)
    scale = _half(blocks, 108) * (scales.float() - 32)  # (n, 16)
    out.sub_(4).view(-1, 16, 16).mul_(scale.unsqueeze(2))


def _q4_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """f16 scale of the scales, f16 of the minima, 12 bytes of both (`_scale_k`), 128 of nibbles.

    Each 32 bytes → 32 low nibbles, 32 high ones.
    """
    out.copy_(_bits(blocks[:, 16:], 2, width=4, run=32))
    _scale_k(blocks, out)


def _q5_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """As Q4_K, with 32 bytes of fifth bits before the nibbles: bit j of byte i → 32 j + i."""
    low = _bits(blocks[:, 48:], 2, width=4, run=32)
    out.copy_(low | _bits(blocks[:, 16:48], 8, width=1, shift_left=4))
    _scale_k(blocks, out)


def _scale_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Scale i < 4: 6 low bits of byte i. Scale i ≥ 4: low nibble of byte 4 + i, 2 high bits of byte i - 4.

    The minima likewise: 6 low bits of byte 4 + i; high nibble of byte 4 + i, 2 high bits of byte i.
    """
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))  # (n, 4) each
    scales = torch.cat((first & 63, third & 15 | first >> 2 & 48), 1)  # (n, 8)
    minima = torch.cat((second & 63, third >> 4 | second >> 2 & 48), 1)
    groups = out.view(-1, 8, 32)
    groups.mul_((_half(blocks, 0) * scales).unsqueeze(2)).sub_((_half(blocks, 2) * minima).unsqueeze(2))


def _q6_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """128 bytes of low nibbles, 64 of 2 high bits, 16 int8 scales, their f16 scale; 32 stands for zero."""
    low = _bits(blocks[:, :128], 2, width=4, run=64)
    high = _bits(blocks[:, 128:192], 4, width=2, shift_left=4, run=32)
    out.copy_(low | high)
    scale = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)  # (n, 16)
    out.sub_(32).view(-1, 16, 16).mul_(scale.unsqueeze(2))


# What the 16 codes of IQ4_NL and IQ4_XS stand for (kvalues_iq4nl in ggml-common.h).
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _iq4_nl(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Scale f16, nibbles as in Q4_0, looked up in IQ4_VALUES."""
    _look_up(_bits(blocks[:, 2:], 2, width=4), out)
    out.mul_(_half(blocks, 0))


def _iq4_xs(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """f16 scale of 8 scales, 2 bytes of their 2 high bits, 4 bytes of their 4 low bits, 128 of nibbles."""
    _look_up(_bits(blocks[:, 8:], 2, width=4, run=16), out)
    high = (blocks[:, 2:4].unsqueeze(2) >> _steps(2, 4, blocks.device) & 3).flatten(1)  # (n, 8)
    low = (blocks[:, 4:8].unsqueeze(2) >> _steps(4, 2, blocks.device) & 15).flatten(1)
    scale = _half(blocks, 0) * ((low | high << 4).float() - 32)
    out.view(-1, 8, 32).mul_(scale.unsqueeze(2))


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The f16 number at byte `at` of each block, as float32: (n, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _bits(
    packed: torch.Tensor, parts: int, *, width: int, run: int | None = None, shift_left: int = 0
) -> torch.Tensor:
    """Split bytes (n, m) into their `parts` lowest fields of `width` bits, moved up: (n, parts · m).

    Within each run of bytes all first fields come before all second ones. A run is 4 or a multiple of 8.
    """
    run = run or packed.shape[1]
    wide, ones = (torch.int64, 0x0101010101010101) if run % 8 == 0 else (torch.int32, 0x01010101)
    words = packed.reshape(len(packed), -1, run).contiguous().view(wide)  # (n, runs, words of a run)
    fields = torch.empty(*words.shape[:2], parts, words.shape[2], dtype=wide, device=packed.device)
    for part in range(parts):
        # The shift drags in bits of the next byte, or of the sign; the mask drops them again.
        torch.bitwise_and(words >> part * width, ((1 << width) - 1) * ones, out=fields[:, :, part])
    if shift_left:
        fields <<= shift_left
    return fields.flatten(1).view(torch.uint8)


def _fifth_bits(packed: torch.Tensor) -> torch.Tensor:
    """32 bits → 32 bytes that are 0 or 16: (n, 4) → (n, 32)."""
    return ((packed.unsqueeze(2) >> _steps(1, 8, packed.device) & 1) << 4).flatten(1)


def _steps(width: int, count: int, device: torch.device) -> torch.Tensor:
    return torch.arange(0, width * count, width, dtype=torch.uint8, device=device)


def _look_up(codes: torch.Tensor, out: torch.Tensor) -> None:
    values = torch.tensor(IQ4_VALUES, dtype=torch.float32, device=out.device)
    torch.index_select(values, 0, codes.flatten().int(), out=out.view(-1))


UNPACK: dict[TensorType, Callable[[torch.Tensor, torch.Tensor], None]] = {
    TensorType.F32: _f32,
    TensorType.F16: _f16,
    TensorType.BF16: _bf16,
    TensorType.Q8_0: _q8_0,
    TensorType.Q4_0: _q4_0,
    TensorType.Q4_1: _q4_1,
    TensorType.Q5_0: _q5_0,
    TensorType.Q5_1: _q5_1,
    TensorType.Q2_K: _q2_k,
    TensorType.Q3_K: _q3_k,
    TensorType.Q4_K: _q4_k,
    TensorType.Q5_K: _q5_k,
    TensorType.Q6_K: _q6_k,
    TensorType.IQ4_NL: _iq4_nl,
    TensorType.IQ4_XS: _iq4_xs,
}


# Packing: x (n, elements) float32 into (n, bytes) uint8 -----------------------------------------


def quantize(x: torch.Tensor, type: TensorType) -> npt.NDArray[np.uint8]:
    """Pack a tensor (…, columns) into raw bytes (size_of(type, x.shape),); `fitting_type` tells what fits."""
    return np.concatenate([piece.numpy() for piece in quantizing(x, type)])


def quantizing(x: torch.Tensor, type: TensorType) -> Iterator[torch.Tensor]:
    """As `quantize`, in pieces of a few blocks: (bytes,) uint8 each, so that no second copy is held."""
    if type not in PACK:
        raise ValueError(f"{type.name} cannot be written; choose one of {', '.join(t.name for t in PACK)}")
    size_of(type, tuple(x.shape))  # refuses rows that are not whole blocks
    elements, _ = BLOCK[type]
    blocks = x.detach().reshape(-1, elements)
    step = TILE_ELEMENTS // elements * torch.get_num_threads()
    for start in range(0, len(blocks), step):
        yield PACK[type](blocks[start : start + step].float().contiguous()).flatten().cpu()


def fitting_type(type: TensorType, columns: int) -> TensorType:
    """The type to use for a matrix whose rows have `columns`: Q8_0, or F16, where whole blocks do not fit."""
    for candidate in (type, TensorType.Q8_0):
        if columns % BLOCK[candidate][0] == 0:
            return candidate
    return TensorType.F16


def _pack_f32(x: torch.Tensor) -> torch.Tensor:
    return _bytes(x)


def _pack_f16(x: torch.Tensor) -> torch.Tensor:
    return _bytes(x.half())


def _pack_bf16(x: torch.Tensor) -> torch.Tensor:
    return _bytes(x.bfloat16())


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """The bytes of each row: (n, m) → (n, m · size) uint8."""
    return x.contiguous().view(torch.uint8)


def _pack_q8_0(x: torch.Tensor) -> torch.Tensor:
    d = x.abs().amax(1, keepdim=True) / 127  # (n, 1)
    scaled = x * _inverse(d)
    # torch.round goes to even; llama.cpp's roundf goes away from zero.
    size = scaled.abs()
    whole = size.floor()
    codes = (whole + (2 * (size - whole)).floor()) * scaled.sign()
    return torch.cat((_bytes(d.half()), _bytes(codes.to(torch.int8))), 1)


def _pack_q4_0(x: torch.Tensor) -> torch.Tensor:
    largest = x.gather(1, x.abs().argmax(1, keepdim=True))  # with its sign: it gets the code 0, that is -8
    d = largest / -8
    codes = (x * _inverse(d) + 8.5).to(torch.uint8).clamp_(max=15)  # (n, 32)
    return torch.cat((_bytes(d.half()), codes[:, :16] | codes[:, 16:] << 4), 1)


def _inverse(d: torch.Tensor) -> torch.Tensor:
    return torch.where(d == 0, 0.0, 1 / d)


def _pack_q4_k(x: torch.Tensor) -> torch.Tensor:
    """Each 32 numbers are scale · code − minimum, with scales and minima as 6-bit codes times an f16 factor.

    Scale and minimum of a group are searched for and rounded; the codes are then chosen anew for the rounded
    ones, so that they make up for part of the rounding.
    """
    groups = x.view(-1, 8, 32)
    scale, minimum = _search_scale(groups)  # (n, 8) each, not negative
    d = (scale.amax(1, keepdim=True) / 63).half()  # (n, 1)
    dmin = (minimum.amax(1, keepdim=True) / 63).half()
    scale_codes = _six_bits(scale, d.float())
    minimum_codes = _six_bits(minimum, dmin.float())
    step = d.float() * scale_codes
    offset = dmin.float() * minimum_codes
    codes = (groups + offset.unsqueeze(2)) * _inverse(step).unsqueeze(2)
    codes = codes.round_().clamp_(0, 15).to(torch.uint8)  # (n, 8, 32)
    pairs = codes.view(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1)  # (n, 128)
    return torch.cat((_bytes(d), _bytes(dmin), _pack_six_bits(scale_codes, minimum_codes), nibbles), 1)


def _search_scale(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and minimum that rebuild each group (…, 32) best, large numbers weighing more: (…,) each.

    The range of a group, stretched and shrunk a little, gives candidate codes; for given codes the best scale
    and minimum are a weighted line fit. The idea is that of make_qkx2_quants in llama.cpp's ggml-quants.c.
    """
    weight = groups.square().mean(-1, keepdim=True).sqrt() + groups.abs()
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    span = groups.amax(-1, keepdim=True) - low
    start = best = (span.squeeze(-1) / 15, -low.squeeze(-1))
    least = torch.full_like(best[0], torch.inf)
    for levels in SEARCHED_LEVELS:
        codes = ((groups - low) * (levels * _inverse(span))).round_().clamp_(0, 15)
        scale, minimum = _fit_line(groups, codes, weight, flat=start)
        error = (codes * scale.unsqueeze(-1) - minimum.unsqueeze(-1) - groups).square_().mul_(weight).sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        best = (torch.where(better, scale, best[0]), torch.where(better, minimum, best[1]))
    return best


SEARCHED_LEVELS = (15.0, 14.0, 14.4, 14.7, 15.3, 15.6, 16.0, 16.5)


def _fit_line(
    groups: torch.Tensor,
    codes: torch.Tensor,
    weight: torch.Tensor,
    *,
    flat: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted least squares of groups ≈ scale · codes − minimum, both ≥ 0; `flat` where codes are equal."""
    w = weight.sum(-1)
    weighted = weight * codes
    wc, wcc = weighted.sum(-1), (weighted * codes).sum(-1)
    wx, wcx = (weight * groups).sum(-1), (weighted * groups).sum(-1)
    determinant = w * wcc - wc * wc
    usable = codes.amax(-1) > codes.amin(-1)
    safe = torch.where(usable, determinant, 1)
    scale = (w * wcx - wc * wx) / safe
    minimum = (wc * wcx - wcc * wx) / safe
    # A minimum below zero cannot be stored: fit a line through the origin instead.
    through_zero = wcx / torch.where(usable, wcc, 1)
    scale = torch.where(minimum < 0, through_zero, scale).clamp(min=0)
    return torch.where(usable, scale, flat[0]), torch.where(usable, minimum.clamp(min=0), flat[1])


def _six_bits(values: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    return (values * _inverse(unit)).round_().clamp_(0, 63).to(torch.uint8)


def _pack_six_bits(scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
    """The 12 bytes that `_scale_k` reads: (n, 8) and (n, 8) → (n, 12)."""
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    third = scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4
    return torch.cat((first, second, third), 1)


PACK: dict[TensorType, Callable[[torch.Tensor], torch.Tensor]] = {
    TensorType.F32: _pack_f32,
    TensorType.F16: _pack_f16,
    TensorType.BF16: _pack_bf16,
    TensorType.Q8_0: _pack_q8_0,
    TensorType.Q4_0: _pack_q4_0,
    TensorType.Q4_K: _pack_q4_k,
}
