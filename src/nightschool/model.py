"""One decoder for every supported architecture, configured by the GGUF's own metadata.

The differences between Llama, Qwen2, Qwen3, Gemma 3 and Phi-3 are few: which tensors are fused or have
biases, norms on queries and keys or after a block, the order of rotary pairs, a sliding window, the
activation. They are read off the file (which tensors it has) and off FAMILIES (what the file does not say).
What llama.cpp computes on the same file is the definition of right; tests/test_model.py compares.

Rotary pairs: llama-architecture files keep them as neighbours, the others in halves. Rows of Q and K are
reordered on loading so that the computation knows only neighbours, complex numbers to it; adapters keep the
file's order (ops.Part.rows).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nightschool import ops
from nightschool.attention import Documents, attention
from nightschool.decoders import Config, read_config
from nightschool.errors import FileFormatError, UnsupportedModel
from nightschool.gguf import GGUFFile, TensorType
from nightschool.gguf import Tensor as TensorInfo
from nightschool.lessons import Batch
from nightschool.ops import FrozenMatrix, Part, Precision
from nightschool.quants import dequantize

Pair = tuple[Tensor, Tensor, float]  # A (rank, in), B (out, rank), scale
Pairs = Mapping[str, Sequence[Pair]]  # by the name of the tensor in the file

YARN_FAST, YARN_SLOW = 32.0, 1.0  # llama.cpp's defaults, which files cannot change


class PackedRows:
    """Rows of some tensors of a file, stacked, still packed; `orders` put rows into computing order."""

    def __init__(self, file: GGUFFile, names: Sequence[str], orders: Sequence[Tensor | None]) -> None:
        self.pieces: list[tuple[Tensor, TensorInfo, Tensor | None]] = []
        self.parts: list[Part] = []
        start = 0
        for name, order in zip(names, orders, strict=True):
            info = file.tensors[name]
            with warnings.catch_warnings():  # torch warns that the map cannot be written; nobody does
                warnings.simplefilter("ignore", UserWarning)
                raw = torch.from_numpy(file.data(name)).view(info.shape[0], -1)
            self.pieces.append((raw, info, order))
            self.parts.append(Part(name, start, start + info.shape[0], order))
            start += info.shape[0]
        self.shape = (start, file.tensors[names[0]].shape[1])

    def __call__(self, start: int, stop: int) -> Tensor:
        """Rows start..stop as float32 (stop - start, in)."""
        found = [
            _unpack(raw, info, order, max(start - part.start, 0), min(stop, part.stop) - part.start)
            for (raw, info, order), part in zip(self.pieces, self.parts, strict=True)
            if part.start < stop and start < part.stop
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def pick(self, rows: Tensor) -> Tensor:
        """Single rows of the first tensor, by number: (n, in) float32."""
        raw, info, _ = self.pieces[0]
        return dequantize(raw[rows], info.type, (len(rows), self.shape[1]))


def _unpack(raw: Tensor, info: TensorInfo, order: Tensor | None, start: int, stop: int) -> Tensor:
    rows = raw[start:stop] if order is None else raw[order[start:stop]]
    unpacked = dequantize(rows, info.type, (stop - start, info.shape[1]))
    return (
        unpacked.clone() if info.type == TensorType.F32 else unpacked
    )  # F32 may be a view of the read-only map


@dataclass(frozen=True)
class Linear:
    """A frozen matrix, perhaps several of the file's tensors fused into one product, with its bias."""

    matrix: FrozenMatrix
    parts: tuple[Part, ...]
    bias: Tensor | None

    def __call__(self, x: Tensor, pairs: Pairs, *, mm: torch.dtype, dropout: float = 0.0) -> Tensor:
        mine = [(part, a, b, scale) for part in self.parts for a, b, scale in pairs.get(part.name, ())]
        return ops.linear(x, self.matrix, self.bias, mine, mm=mm, dropout=dropout)


@dataclass(frozen=True)
class Layer:
    """One block: attention and feed-forward, with their norms; absent ones are None."""

    attention_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Linear
    post_attention_norm: Tensor | None
    ffn_norm: Tensor
    gate_up: Linear
    down: Linear
    post_ffn_norm: Tensor | None
    window: int
    rope: int  # which of the model's rotary tables

    @property
    def linears(self) -> tuple[Linear, Linear, Linear, Linear]:
        return self.qkv, self.output, self.gate_up, self.down


class Model:
    """A frozen decoder on one file, ready for training adapters.

    Args:
        file: an opened GGUF.
        precision: how the matrices are held: "int8", "bf16", "fp32", "packed" (unpacked at each use) or
        "fp64". device: "cpu", "cuda" or "mps". ctx: the longest document; decides between the short and long
        rotary factors of Phi-3 as llama.cpp's ctx does.
    """

    def __init__(
        self,
        file: GGUFFile,
        precision: Precision = "fp32",
        *,
        device: str = "cpu",
        ctx: int = 0,
        layers: int | None = None,
    ) -> None:
        self.config = read_config(file)
        self.file, self.precision, self.device = file, precision, device
        self.ctx = ctx or self.config.context
        self.mm = ops.product_type(precision, device)
        self.act = torch.float64 if precision == "fp64" else torch.float32
        self.unused = set(file.tensors)
        self.tables = _rope_tables(self.config, self._optional, self.ctx)
        self.embedding = PackedRows(file, ["token_embd.weight"], [None])
        self.final_norm = self._vector("output_norm.weight")
        self.layers = [self._layer(i) for i in range(self.config.layers if layers is None else layers)]
        head = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
        self.head = self._head(head)
        self.unused -= {"token_embd.weight"}
        if self.unused and layers is None:
            raise UnsupportedModel(
                f"{file.path.name} has tensors that a {self.config.architecture} model does not use here: "
                f"{', '.join(sorted(self.unused)[:3])}. It is of a variant that is not supported."
            )

    # loading

    def _optional(self, name: str) -> Tensor | None:
        if name not in self.file.tensors:
            return None
        info = self.file.tensors[name]
        self.unused.discard(name)
        flat = (1, info.shape[-1])
        return (
            dequantize(self.file.data(name), info.type, flat).flatten().to(self.act).clone().to(self.device)
        )

    def _vector(self, name: str) -> Tensor:
        vector = self._optional(name)
        if vector is None:
            raise FileFormatError(f"{self.file.path.name} lacks the tensor {name}: it is not a whole model.")
        return vector

    def _head(self, name: str) -> FrozenMatrix:
        """The output matrix, which int8 does not suit.

        The gradient of a softmax has one large entry and thousands of tiny ones: int8 would round them away.
        """
        self.unused.discard(name)
        precision: Precision = self.precision
        if precision == "int8":
            precision = "bf16" if self.mm == torch.bfloat16 else "fp32"
        packed = PackedRows(self.file, [name], [None])
        return ops.compute_copy(packed, packed.shape, precision, self.device)

    def _linear(self, names: Sequence[str], orders: Sequence[Tensor | None]) -> Linear:
        for name in names:
            if name not in self.file.tensors:
                raise FileFormatError(
                    f"{self.file.path.name} lacks the tensor {name}: it is not a whole model."
                )
        self.unused -= set(names)
        packed = PackedRows(self.file, names, orders)
        biases = [self._optional(name.removesuffix("weight") + "bias") for name in names]
        bias = None
        if any(b is not None for b in biases):
            bias = torch.cat(
                [
                    torch.zeros(part.stop - part.start, dtype=self.act, device=self.device)
                    if b is None
                    else (b if part.rows is None else b[part.rows])
                    for b, part in zip(biases, packed.parts, strict=True)
                ]
            )
        matrix = ops.compute_copy(packed, packed.shape, self.precision, self.device)
        parts = (
            part if part.rows is None else replace(part, rows=part.rows.to(self.device))
            for part in packed.parts
        )
        return Linear(matrix, tuple(parts), bias)

    def _layer(self, i: int) -> Layer:
        config, prefix = self.config, f"blk.{i}."
        if f"{prefix}attn_qkv.weight" in self.file.tensors:
            qkv = self._linear([f"{prefix}attn_qkv.weight"], [_fused_rows(config)])
        else:
            orders = [_rows(config.heads, config), _rows(config.kv_heads, config), None]
            qkv = self._linear([f"{prefix}attn_{x}.weight" for x in "qkv"], orders)
        if f"{prefix}ffn_gate.weight" in self.file.tensors:
            gate_up = self._linear([f"{prefix}ffn_gate.weight", f"{prefix}ffn_up.weight"], [None, None])
        else:
            gate_up = self._linear([f"{prefix}ffn_up.weight"], [None])
        pattern = config.family.window_pattern
        local = bool(pattern and config.window and (i + 1) % pattern)
        return Layer(
            attention_norm=self._vector(f"{prefix}attn_norm.weight"),
            qkv=qkv,
            q_norm=self._head_norm(f"{prefix}attn_q_norm.weight"),
            k_norm=self._head_norm(f"{prefix}attn_k_norm.weight"),
            output=self._linear([f"{prefix}attn_output.weight"], [None]),
            post_attention_norm=self._optional(f"{prefix}post_attention_norm.weight"),
            ffn_norm=self._vector(f"{prefix}ffn_norm.weight"),
            gate_up=gate_up,
            down=self._linear([f"{prefix}ffn_down.weight"], [None]),
            post_ffn_norm=self._optional(f"{prefix}post_ffw_norm.weight"),
            window=config.window if local else 0,
            rope=1 if pattern and (i + 1) % pattern else 0,
        )

    def _head_norm(self, name: str) -> Tensor | None:
        """A norm over the width of a head, in the order that its rows are computed in."""
        norm, order = self._optional(name), _rows(1, self.config)
        return norm if norm is None or order is None else norm[order]

    # computing

    def trainable(self) -> dict[str, tuple[int, int]]:
        """The tensors a LoRA can sit on, by name: (out, in)."""
        return {
            part.name: (part.stop - part.start, linear.matrix.shape[1])
            for layer in self.layers
            for linear in layer.linears
            for part in linear.parts
        }

    def first(self, layers: int) -> "Model":
        """The same model, cut off after its first layers."""
        short = copy(self)
        short.layers = self.layers[:layers]
        return short

    def read(
        self, batch: Batch, pairs: Pairs | None = None, *, dropout: float = 0.0, recompute: bool = False
    ) -> Tensor:
        """`hidden` for a packed batch of lessons."""
        lengths = np.bincount(batch.document).tolist()
        return self.hidden(
            torch.from_numpy(batch.tokens).long().to(self.device),
            torch.from_numpy(batch.positions).long().to(self.device),
            Documents.of(lengths, self.device),
            pairs,
            dropout=dropout,
            recompute=recompute,
        )

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        documents: Documents,
        pairs: Pairs | None = None,
        *,
        dropout: float = 0.0,
        recompute: bool = False,
    ) -> Tensor:
        """The normed last hidden state of a packed stream.

        Args:
            tokens: (T,) token ids.
            positions: (T,) the place of each token in its document.
            documents: how the stream falls into documents.
            pairs: LoRA pairs by tensor name.
            dropout: chance that an input of a LoRA A is dropped.
            recompute: keep only each layer's input for the backward, and compute the rest again.
        Returns: (T, width).
        """
        x = self.embedding.pick(tokens.cpu()).to(self.act).to(self.device)  # (T, D)
        if self.config.family.scaled_embedding:
            x *= self.config.width**0.5
        turns = [_turns(table, positions, self.act) for table in self.tables]
        for layer in self.layers:
            arguments = (layer, x, turns[layer.rope], documents, pairs or {}, dropout)
            if recompute:
                x = checkpoint(self._block, *arguments, use_reentrant=False)
            else:
                x = self._block(*arguments)
        return ops.rms_norm(x, self.final_norm, self.config.eps)

    def _block(
        self,
        layer: Layer,
        x: Tensor,
        turns: Tensor,
        documents: Documents,
        pairs: Pairs,
        dropout: float,
    ) -> Tensor:
        config, count = self.config, x.shape[0]
        normed = ops.rms_norm(x, layer.attention_norm, config.eps)
        qkv = layer.qkv(normed, pairs, mm=self.mm, dropout=dropout)
        qkv = qkv.view(count, config.heads + 2 * config.kv_heads, config.head_dim)
        sizes = [config.heads, config.kv_heads, config.kv_heads]
        q, k, v = torch.split(qkv, sizes, dim=1)  # (T, heads, d) each
        if layer.q_norm is not None and layer.k_norm is not None:
            q = ops.rms_norm(q, layer.q_norm, config.eps)
            k = ops.rms_norm(k, layer.k_norm, config.eps)
        q, k = ops.rotate(q, turns), ops.rotate(k, turns)
        mixed = attention(q, k, v, documents, scale=config.attention_scale, window=layer.window, mm=self.mm)
        y = layer.output(mixed.view(count, -1), pairs, mm=self.mm, dropout=dropout)
        if layer.post_attention_norm is not None:
            y = ops.rms_norm(y, layer.post_attention_norm, config.eps)
        x = x + y
        normed = ops.rms_norm(x, layer.ffn_norm, config.eps)
        gate_up = layer.gate_up(normed, pairs, mm=self.mm, dropout=dropout)
        y = layer.down(ops.gated(gate_up, config.family.activation), pairs, mm=self.mm, dropout=dropout)
        if layer.post_ffn_norm is not None:
            y = ops.rms_norm(y, layer.post_ffn_norm, config.eps)
        return x + y

    def loss(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss of hidden (M, width) against labels (M,), and how many labels came first."""
        return ops.cross_entropy_sum(hidden, self.head, labels)

    def distil(
        self, hidden: Tensor, labels: Tensor, expected: tuple[Tensor, Tensor], *, weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and, beside it, the divergence from what a teacher expected: see ops.distil_sum."""
        return ops.distil_sum(hidden, self.head, labels, expected, weight=weight)

    def divergence(self, hidden: Tensor, reference: Tensor) -> Tensor:
        """Summed KL divergence of the predictions of hidden (M, width) from those of reference."""
        return ops.divergence_sum(hidden, reference, self.head)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (M, width) → (M, vocabulary), for a few positions: training has ops.cross_entropy_sum."""
        return self.head.forward(hidden)


def _rows(heads: int, config: Config) -> Tensor | None:
    """Where pairs lie in halves: the file's row for each row with pairs as neighbours, head by head."""
    if config.family.interleaved:
        return None
    n, d = config.rotary_dim, config.head_dim
    neighbours = torch.arange(n).view(2, n // 2).t().flatten()
    within = torch.cat([neighbours, torch.arange(n, d)])
    return (torch.arange(heads)[:, None] * d + within).flatten()


def _fused_rows(config: Config) -> Tensor | None:
    """The same for one matrix that holds Q, K and V; V stays as it is."""
    turned = _rows(config.heads + config.kv_heads, config)
    if turned is None:
        return None
    return torch.cat([turned, torch.arange(len(turned), len(turned) + config.kv_heads * config.head_dim)])


def _rope_tables(config: Config, optional: Any, ctx: int) -> list[tuple[Tensor, float]]:
    """(angle of each pair a position, amplitude): of layers that see everything, then of windowed ones."""
    exponent = torch.arange(0, config.rotary_dim, 2, dtype=torch.float64) / config.rotary_dim
    factors = [
        optional(f"{name}.weight") for name in ("rope_freqs", "rope_factors_long", "rope_factors_short")
    ]
    free, long, short = factors
    chosen = free if free is not None else (long if ctx > config.original_context else short)
    angle = config.rope_scale * config.rope_base**-exponent
    amplitude = config.rope_amplitude
    if config.yarn:
        keep = _yarn_ramp(config)
        angle = config.rope_base**-exponent * (keep + (1 - keep) * config.rope_scale)
        amplitude *= 1 - 0.1 * math.log(config.rope_scale)
    if chosen is not None:
        angle = angle / chosen.double().cpu()
    local = config.family.window_rope_base**-exponent
    return [(angle, amplitude), (local, 1.0)]


def _yarn_ramp(config: Config) -> Tensor:
    """How much of each pair's own angle is kept, as in llama.cpp: 1 for fast pairs, 0 for slow (n/2,)."""

    def pair_turning(times: float) -> float:  # the pair that turns so often within the original context
        n, base = config.rotary_dim, config.rope_base
        return n * math.log(config.original_context / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(0, math.floor(pair_turning(YARN_FAST)))
    high = min(config.rotary_dim - 1, math.ceil(pair_turning(YARN_SLOW)))
    pair = torch.arange(config.rotary_dim // 2, dtype=torch.float64)
    return 1 - ((pair - low) / max(0.001, high - low)).clamp(0, 1)


def _turns(table: tuple[Tensor, float], positions: Tensor, dtype: torch.dtype) -> Tensor:
    """The rotation of each pair of each token, as complex numbers: (T, 1, rotary/2)."""
    angle, amplitude = table
    theta = positions.cpu().double()[:, None, None] * angle
    turn = torch.polar(torch.full_like(theta, amplitude), theta)
    return turn.to(torch.complex128 if dtype == torch.float64 else torch.complex64).to(positions.device)
