"""The network of ember: a LLaMA decoder for documents packed end to end.

Attention is causal and stays inside a document, positions restart with it, as in the trainer of the package.
Rotary pairs are (i, i + half) here; export.py puts them into the order of llama.cpp's llama architecture.

On a CPU with a C++ compiler the blocks are those of kernels.cpp, more than twice as fast as plain torch;
elsewhere the same in plain torch, which is also what they are tested against.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from wiring import wire

from nightschool.attention import Documents, attention


@dataclass(frozen=True)
class Shape:
    """The sizes of the network. Heads are 32 wide."""

    vocab: int = 6144
    dim: int = 256
    layers: int = 8
    heads: int = 8
    hidden: int = 704
    context: int = 1024
    theta: float = 10_000.0
    eps: float = 1e-5


@cache
def kernels() -> Any:
    """kernels.cpp, built for this CPU on the first call; raises where no compiler is to be had."""
    from torch.utils.cpp_extension import load  # takes a second, and is needed on CPUs only

    source = Path(__file__).resolve().with_name("kernels.cpp")
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-std=c++17"]
    return load("ember_kernels", [str(source)], extra_cflags=flags, extra_ldflags=["-lgomp"])


class Block(nn.Module):
    """Attention and feed-forward, each after its norm and added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.eps = shape.heads, shape.eps
        self.attn_norm = nn.Parameter(torch.ones(shape.dim))
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim, bias=False)
        self.out = nn.Linear(shape.dim, shape.dim, bias=False)
        self.ffn_norm = nn.Parameter(torch.ones(shape.dim))
        self.gate_up = nn.Linear(shape.dim, 2 * shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, documents: Documents) -> Tensor:
        """In plain torch: x (N, D); cos, sin (N, 1, head / 2), of each token's place in its document."""
        N, D = x.shape
        qkv = self.qkv(F.rms_norm(x, (D,), self.attn_norm, self.eps))  # (N, 3D)
        q, k, v = qkv.view(N, 3, self.heads, D // self.heads).unbind(1)  # each (N, H, D/H)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = attention(q, k, v, documents, scale=(D // self.heads) ** -0.5)
        x = x + self.out(mixed.reshape(N, D))
        gate, up = self.gate_up(F.rms_norm(x, (D,), self.ffn_norm, self.eps)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def parameters_in_order(self) -> tuple[Tensor, ...]:
        """As kernels.cpp takes them."""
        matrices = (self.qkv.weight, self.out.weight, self.gate_up.weight, self.down.weight)
        return self.attn_norm, self.ffn_norm, *matrices


class InInt8(torch.autograd.Function):
    """A block by kernels.cpp."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, where: tuple[Tensor, ...], block: Block, seed: int, *weights: Tensor
    ) -> Tensor:
        norms, matrices = weights[:2], weights[2:]
        packed = [part for matrix in matrices for part in kernels().quantise(matrix)]
        y, *kept = kernels().block_forward(x, *norms, packed, *where, block.heads, block.eps)
        ctx.given = (x, *norms, packed, kept, *where, seed)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx, *gradients = kernels().block_backward(dy.contiguous(), *ctx.given)
        ctx.given = None  # half a gigabyte, which autograd would keep
        return dx, None, None, None, *gradients


class TokenLoss(torch.autograd.Function):
    """Weighted next-token loss by kernels.cpp: hidden (N, D), embedding (V, D), targets and weights (N,)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        logits = hidden @ embedding.T  # (N, V)
        total = kernels().cross_entropy_(logits, targets, weights)  # logits are their gradient now
        ctx.gradients = logits @ embedding, logits.T @ hidden
        return hidden.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        hidden, embedding = ctx.gradients
        ctx.gradients = None
        return hidden * dy, embedding * dy, None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + half) of x (N, H, head) by the angles of their positions."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Ember(nn.Module):
    """Token ids in, hidden states out; embedding and output share their weights.

    Args:
        ends: ids of tokens that end a sentence, see wiring.py.
        fast: blocks by kernels.cpp, in int8; on a CPU only.
    """

    def __init__(self, shape: Shape, *, ends: Sequence[int] = (), fast: bool = False) -> None:
        super().__init__()
        self.shape, self.fast, self.calls = shape, fast, 0
        self.embed = nn.Embedding(shape.vocab, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.dim))
        half = shape.dim // shape.heads // 2
        angles = torch.outer(torch.arange(shape.context).float(), shape.theta ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.apply_initial_weights(ends)

    @torch.no_grad()
    def apply_initial_weights(self, ends: Sequence[int]) -> None:
        """Normal weights; what adds to the stream starts at zero. Then copying and finding are wired in."""
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        wire(self.embed, list(self.blocks), heads=self.shape.heads, theta=self.shape.theta, ends=ends)

    def forward(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Tokens (N,) of documents of these lengths; the hidden states after the last norm, (N, D)."""
        x = self.embed(tokens)
        if self.fast:
            starts = torch.tensor([0, *lengths]).cumsum(0)
            self.calls += 1
            for number, block in enumerate(self.blocks):
                seed = self.calls * 4096 + 8 * number
                x = InInt8.apply(x, (starts, self.cos, self.sin), block, seed, *block.parameters_in_order())
        else:
            places = torch.cat([torch.arange(length) for length in lengths])
            cos, sin = self.cos[places, None], self.sin[places, None]  # (N, 1, head / 2)
            documents = Documents.of(lengths, tokens.device)
            for block in self.blocks:
                x = block(x, cos, sin, documents)
        return F.rms_norm(x, (x.shape[-1],), self.norm, self.shape.eps)

    def loss(self, tokens: Tensor, weights: Tensor, lengths: Sequence[int]) -> Tensor:
        """Weighted mean of the next-token loss in nats.

        Args:
            weights: (N,): how much each token counts; 0 for the first of a document.
        """
        chosen = torch.nonzero(weights)[:, 0]
        hidden = self(tokens, lengths)[chosen - 1]  # (n, D)
        targets, share = tokens[chosen], weights[chosen] / weights.sum().clamp_min(1.0)
        if self.fast:
            return TokenLoss.apply(hidden, self.embed.weight, targets, share)
        losses = F.cross_entropy(F.linear(hidden, self.embed.weight).float(), targets, reduction="none")
        return (losses * share).sum()
