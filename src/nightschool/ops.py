"""The numeric kernels of the trainer, behind one small interface, in plain torch.

A frozen matrix W (out, in) is held once, in the form that this machine multiplies fastest, and serves both
directions: forward y = x Wᵀ and backward dx = dy W. For int8 the scale of each row of W factors out of the
forward, and folds into dy in the backward:

    y  = (q(x) Wqᵀ) · s_x · s_row            q quantises each token (row) to int8 with a scale of its own
    dx = (q(dy · s_row) Wq) · s_dy

dW is never formed. A LoRA pair rides on the same call, bracketed so that the rank is the inner size.
The residual stream and all elementwise work are float32 (float64 in gradient checks): on CPUs torch does
float32 elementwise about twice as fast as bfloat16. Products run in `mm` (bfloat16, float32, float64) or
int8.

Shapes: T tokens of a packed stream, D model width, H query heads, K key/value heads, d head width, R rank, V
vocabulary.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from nightschool.memory import LOSS_TILE

TOKEN_TILE = 512  # tokens whose int32 products are held at once
TINY = 1e-6  # a probability that is as good as none


Precision = Literal["int8", "bf16", "fp32", "packed", "fp64"]
Unpack = Callable[
    [int, int], Tensor
]  # (start, stop) → those rows of W (stop - start, in), float32, the caller's own


def product_type(precision: Precision, device: str = "cpu") -> torch.dtype:
    """What the LoRA, attention and output products run in beside a precision.

    Bfloat16 where the processor multiplies it in hardware, else float32.
    """
    if precision == "fp64":
        return torch.float64
    if precision == "bf16" or (precision == "int8" and (device != "cpu" or _has_bf16())):
        return torch.bfloat16
    return torch.float32


def _has_bf16() -> bool:
    features = torch.cpu.get_capabilities()
    return any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class FrozenMatrix(Protocol):
    """A weight that is never trained: (out, in), usable in both directions."""

    shape: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        """x (T, in) → x Wᵀ (T, out), in x's dtype."""
        ...

    def backward(self, dy: Tensor) -> Tensor:
        """dy (T, out) → dy W (T, in), in dy's dtype."""
        ...


class DenseMatrix:
    """W in bfloat16, float32 or float64; products in that type."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.shape = (weight.shape[0], weight.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight.t()).to(x.dtype)

    def backward(self, dy: Tensor) -> Tensor:
        return (dy.to(self.weight.dtype) @ self.weight).to(dy.dtype)


class Int8Matrix:
    """W as int8 with one float32 scale for each row: 1 byte a weight.

    `outliers` are input channels whose activations dwarf the rest (LLM.int8, arXiv:2208.07339): one such
    channel would cost every other the precision of its token, so they are left out of the int8 product and
    added in bfloat16.
    """

    def __init__(self, unpack: Unpack, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.q = torch.empty(shape, dtype=torch.int8)
        self.scale = torch.empty(shape[0])
        for start, stop, rows in _row_tiles(unpack, shape):
            scale = rows.abs().amax(1).clamp_(min=1e-12).div_(127)
            self.scale[start:stop] = scale
            self.q[start:stop] = rows.div_(scale[:, None]).round_()
        self.outliers: Tensor | None = None  # (n,) channel numbers
        self.outlier_columns: Tensor | None = None  # (n, out) bfloat16
        self.peaks: Tensor | None = (
            None  # (in,) largest activation of each channel; kept only while calibrating
        )

    def set_outliers(self, channels: Tensor) -> None:
        """Take these input channels out of the int8 product."""
        self.outliers = channels
        self.outlier_columns = (self.q[:, channels].float() * self.scale[:, None]).t().to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        if self.peaks is not None:
            self.peaks = torch.maximum(self.peaks, x.detach().abs().amax(0))
        if self.outliers is None:
            return _int8_product(x, self.q.t(), self.scale)
        assert self.outlier_columns is not None
        loud = x[:, self.outliers].to(torch.bfloat16)
        y = _int8_product(x.index_fill(1, self.outliers, 0.0), self.q.t(), self.scale)
        return y.add_((loud @ self.outlier_columns).float())

    def backward(self, dy: Tensor) -> Tensor:
        return _int8_product(dy, self.q, before=self.scale)


class Buffers(threading.local):
    """Memory for what lives no longer than one product: fresh blocks of this size cost page faults."""

    def __init__(self) -> None:
        self.kept: dict[torch.dtype, Tensor] = {}

    def take(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor, valid until the next `take` of its type in this thread."""
        size = shape[0] * shape[1]
        if dtype not in self.kept or self.kept[dtype].numel() < size:
            self.kept[dtype] = torch.empty(size, dtype=dtype)
        return self.kept[dtype][:size].view(shape)


BUFFERS = Buffers()


def _int8_product(
    x: Tensor, w: Tensor, scale: Tensor | None = None, *, before: Tensor | None = None
) -> Tensor:
    """x (T, in) times `before` (in,), times w (in, out) int8, times `scale` (out,): (T, out) float32."""
    rows, out = x.shape[0], w.shape[1]
    y = torch.empty(rows, out)
    for start in range(0, rows, TOKEN_TILE):
        part = x[start : start + TOKEN_TILE]
        scaled = BUFFERS.take((len(part), x.shape[1]), torch.float32)
        if before is not None:
            part = torch.mul(part, before, out=scaled)
        token_scale = torch.maximum(part.amax(1, keepdim=True), part.amin(1, keepdim=True).neg_())  # (t, 1)
        token_scale.clamp_(min=1e-12).div_(127)
        torch.mul(part, token_scale.reciprocal(), out=scaled).round_()
        q = BUFFERS.take((len(part), x.shape[1]), torch.int8).copy_(scaled)
        products = torch._int_mm(q, w, out=BUFFERS.take((len(part), out), torch.int32))
        target = y[start : start + TOKEN_TILE].copy_(products).mul_(token_scale)
        if scale is not None:
            target.mul_(scale)
    return y


class PackedMatrix:
    """W as it lies in the file, unpacked a tile of rows at a time: slow, exact, no memory of its own."""

    def __init__(self, unpack: Unpack, shape: tuple[int, int]) -> None:
        self.unpack = unpack
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        tiles = _row_tiles(self.unpack, self.shape)
        return torch.cat([x @ rows.to(x).t() for _, _, rows in tiles], dim=1)

    def backward(self, dy: Tensor) -> Tensor:
        dx = dy.new_zeros(dy.shape[0], self.shape[1])
        for start, stop, rows in _row_tiles(self.unpack, self.shape):
            dx.addmm_(dy[:, start:stop], rows.to(dy))
        return dx


def _row_tiles(unpack: Unpack, shape: tuple[int, int]) -> Iterator[tuple[int, int, Tensor]]:
    """The rows of a matrix, about a million weights at a time."""
    step = max(1, (1 << 20) // shape[1])
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        yield start, stop, unpack(start, stop)


def compute_copy(unpack: Unpack, shape: tuple[int, int], precision: Precision, device: str) -> FrozenMatrix:
    """The one copy of a frozen matrix that training multiplies with."""
    if precision == "int8":
        return Int8Matrix(unpack, shape)
    if precision == "packed":
        return PackedMatrix(unpack, shape)
    dense = torch.empty(shape, dtype=product_type(precision, device))
    for start, stop, rows in _row_tiles(unpack, shape):
        dense[start:stop] = rows
    return DenseMatrix(dense.to(device))


def run(function: Any, *arguments: Any) -> Any:
    """Apply an autograd function; torch leaves `apply` untyped."""
    return function.apply(*arguments)


# ── linear layers ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Part:
    """One tensor of the file inside a fused matrix: its rows start..stop, picked from the file by `rows`."""

    name: str
    start: int
    stop: int
    rows: Tensor | None = None


def linear(
    x: Tensor,
    weight: FrozenMatrix,
    bias: Tensor | None,
    pairs: Sequence[tuple[Part, Tensor, Tensor, float]] = (),
    *,
    mm: torch.dtype = torch.float32,
    dropout: float = 0.0,
) -> Tensor:
    """y = x Wᵀ + bias + Σ scale · (x Aᵀ) Bᵀ for the LoRA pairs (part, A (r, in), B (part rows, r), scale).

    x (T, in) → (T, out). Gradients flow to x and to the As and Bs. With dropout, A sees a thinned x.
    """
    thinned = F.dropout(x, dropout) if dropout and pairs else x
    flat = [tensor for _, a, b, _ in pairs for tensor in (a, b)]
    parts = [(part, scale) for part, _, _, scale in pairs]
    y: Tensor = run(_Linear, x, thinned, weight, bias, parts, mm, *flat)
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, thinned: Tensor, weight: Any, bias: Any, parts: Any, mm: torch.dtype, *ab: Tensor
    ) -> Tensor:
        y: Tensor = weight.forward(x)
        if bias is not None:
            y.add_(bias)
        ctx.weight, ctx.parts, ctx.mm, ctx.same = weight, parts, mm, thinned is x
        if parts:
            ctx.ranks = [pair.shape[0] for pair in ab[0::2]]
            a = torch.cat(list(ab[0::2])).to(mm)  # (R, in): one product for all pairs
            bs = [
                _ordered(b, part).mul(scale).to(mm) for (part, scale), b in zip(parts, ab[1::2], strict=True)
            ]
            xa = thinned.to(mm)
            u = xa @ a.t()  # (T, R)
            for (part, _), ui, b in zip(parts, torch.split(u, ctx.ranks, 1), bs, strict=True):
                y[:, part.start : part.stop].add_(ui @ b.t())
            ctx.save_for_backward(xa, u, a, *bs)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        need_x, need_thinned = ctx.needs_input_grad[:2]
        dx = ctx.weight.backward(dy) if need_x else None
        if not ctx.parts:
            return dx, None, None, None, None, None
        xa, u, a, *bs = ctx.saved_tensors
        dyb = dy.to(ctx.mm)
        v = torch.empty_like(u)  # (T, R)
        dbs = []
        columns = zip(torch.split(u, ctx.ranks, 1), torch.split(v, ctx.ranks, 1), strict=True)
        for (part, scale), b, (ui, vi) in zip(ctx.parts, bs, columns, strict=True):
            mine = dyb[:, part.start : part.stop]
            vi.copy_(mine @ b)  # b is scaled already
            db = (mine.t() @ ui).to(dy.dtype).mul_(scale)
            dbs.append(db if part.rows is None else torch.empty_like(db).index_copy_(0, part.rows, db))
        das = (v.t() @ xa).to(dy.dtype).split(ctx.ranks)
        dthin = None
        if dx is not None and ctx.same:
            dx.add_(v @ a)
        elif need_thinned and not ctx.same:
            dthin = (v @ a).to(dy.dtype)
        pairs = (grad for pair in zip(das, dbs, strict=True) for grad in pair)
        return dx, dthin, None, None, None, None, *pairs


def _ordered(b: Tensor, part: Part) -> Tensor:
    """B's rows as the matrix has them."""
    return b if part.rows is None else b[part.rows]


# ── elementwise ─────────────────────────────────────────────────────────────────────────────────────────────


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight over the last axis (arXiv:1910.07467); the weight is frozen."""
    y: Tensor = run(_RmsNorm, x, weight, eps)
    return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, r = ctx.saved_tensors
        g = dy * weight
        xhat = x * r
        m = (g * xhat).mean(-1, keepdim=True)
        return torch.addcmul(g, xhat, m, value=-1).mul_(r), None, None


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary embedding (arXiv:2104.09864): pairs of neighbours in x (T, H, d) times turn (T, 1, n/2)."""
    y: Tensor = run(_Rotate, x, turn)
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, turn: Tensor) -> Tensor:
        ctx.save_for_backward(turn)
        return _turned(x, turn)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (turn,) = ctx.saved_tensors
        return _turned(dy.contiguous(), turn.conj()), None


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    n = 2 * turn.shape[-1]
    pairs = torch.view_as_complex(x[..., :n].view(*x.shape[:-1], -1, 2))  # (T, H, n/2)
    y = torch.view_as_real(pairs * turn).flatten(-2)
    return y if n == x.shape[-1] else torch.cat([y, x[..., n:]], -1)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """act(gate) · up of gate_up (T, 2F), both side by side: SwiGLU ("silu") or GeGLU ("gelu", tanh form)."""
    y: Tensor = run(_Gated, gate_up, activation)
    return y


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.activation = activation
        gate, up = gate_up.chunk(2, dim=-1)
        return _activate(gate, activation).mul_(up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad = torch.empty_like(gate_up)
        dgate, dup = grad.chunk(2, dim=-1)
        passing = torch.empty_like(dy)
        if ctx.activation == "silu":
            torch.ops.aten.silu.out(gate, out=passing)
        else:
            torch.ops.aten.gelu.out(gate, approximate="tanh", out=passing)
        torch.mul(passing, dy, out=dup)
        torch.mul(dy, up, out=passing)
        if ctx.activation == "silu":
            torch.ops.aten.silu_backward.grad_input(passing, gate, grad_input=dgate)
        else:
            torch.ops.aten.gelu_backward.grad_input(passing, gate, approximate="tanh", grad_input=dgate)
        return grad, None


def _activate(gate: Tensor, activation: str) -> Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")


# ── loss ────────────────────────────────────────────────────────────────────────────────────────────────────


def cross_entropy_sum(hidden: Tensor, head: FrozenMatrix, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the rows of −log softmax(hidden Wᵀ)[label], and how many rows put their label first.

    hidden (M, D), labels (M,). The logits exist a tile at a time; the gradient to hidden is made on the same
    pass.
    """
    loss, correct = run(_CrossEntropy, hidden, head, labels)
    return loss, correct


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Any, labels: Tensor) -> Any:
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        loss = hidden.new_zeros(())
        correct = hidden.new_zeros(())
        for rows in _loss_tiles(hidden, head):
            logits, label = head.forward(hidden[rows]), labels[rows, None]
            top = logits.amax(-1, keepdim=True)
            picked = logits.gather(1, label)
            correct += (picked >= top).sum()
            p = logits.sub_(top).exp_()
            total = p.sum(-1, keepdim=True)
            loss += (total.log() + top - picked).sum()
            if grad is not None:  # Σ p W − W[label], the sum not yet divided by its total
                p.scatter_add_(1, label, -total)
                grad[rows] = head.backward(p).div_(total)
        ctx.grad = grad
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> Any:
        return ctx.grad.mul_(dloss), None, None


def distil_sum(
    hidden: Tensor, head: FrozenMatrix, labels: Tensor, expected: tuple[Tensor, Tensor], *, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy and, `weight` times, the divergence from a teacher of whom only the top is known.

    expected: the teacher's k likeliest tokens (M, k) and their log-probabilities; rows of minus infinity
    count for nothing. What the teacher gives to all other tokens together is compared with what the model
    gives to them together: no choice among them is taught. Everything happens on one tile of logits.
    Returns: (sum to be trained, the cross-entropy in it, how many rows put their label first).
    """
    tokens, logs = expected
    loss, plain, correct = run(_Distilled, hidden, head, labels, tokens, logs, weight)
    return loss, plain, correct


class _Distilled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Any, labels: Tensor, tokens: Tensor, logs: Tensor, weight: float
    ) -> Any:
        grad = torch.empty_like(hidden)
        plain, apart, correct = (hidden.new_zeros(()) for _ in range(3))
        for rows in _loss_tiles(hidden, head):
            logits, label, top = head.forward(hidden[rows]), labels[rows, None], tokens[rows]
            correct += (logits.gather(1, label) >= logits.amax(-1, keepdim=True)).sum()
            q = logits.log_softmax(-1)
            plain -= q.gather(1, label).sum()
            wanted = logs[rows].to(q.dtype)
            said = (wanted[:, :1] > -math.inf).to(q.dtype) * weight  # (m, 1)
            p, q_top = wanted.exp(), q.gather(1, top)  # (m, k)
            rest = (1 - p.sum(-1, keepdim=True)).clamp(min=TINY)
            q = q.exp_()
            q_rest = (1 - q_top.exp().sum(-1, keepdim=True)).clamp(min=TINY)
            terms = p * (wanted.nan_to_num(neginf=0.0) - q_top)
            apart += (said * (terms.sum(-1, keepdim=True) + rest * (rest / q_rest).log())).sum()
            # d/dz of the cross-entropy: q − [label]; of the divergence: q − p at the top, q (1 − rest/q_rest)
            # elsewhere
            at_top = q.gather(1, top) * (1 + said) - said * p
            q.mul_(1 + said * (1 - rest / q_rest)).scatter_(1, top, at_top)
            q.scatter_add_(1, label, torch.full_like(q_rest, -1.0))
            grad[rows] = head.backward(q)
        ctx.grad = grad
        ctx.mark_non_differentiable(plain, correct)
        return plain + apart, plain, correct

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, *_: Tensor) -> Any:
        return ctx.grad.mul_(dloss), None, None, None, None, None


def divergence_sum(hidden: Tensor, reference: Tensor, head: FrozenMatrix) -> Tensor:
    """Σ KL(softmax(reference Wᵀ) ‖ softmax(hidden Wᵀ)) over the rows of both (M, D); trains hidden only."""
    loss: Tensor = run(_Divergence, hidden, reference, head)
    return loss


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, reference: Tensor, head: Any) -> Tensor:
        grad = torch.empty_like(hidden)
        loss = hidden.new_zeros(())
        for rows in _loss_tiles(hidden, head):
            logs = head.forward(hidden[rows]).log_softmax(-1)
            wanted = head.forward(reference[rows]).log_softmax(-1)
            p = wanted.exp()
            loss += wanted.sub_(logs).mul_(p).sum()
            grad[rows] = head.backward(logs.exp_().sub_(p))
        ctx.grad = grad
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        return ctx.grad.mul_(dloss), None, None


def _loss_tiles(hidden: Tensor, head: FrozenMatrix) -> Any:
    step = max(1, LOSS_TILE // head.shape[0])
    return (slice(start, start + step) for start in range(0, hidden.shape[0], step))
