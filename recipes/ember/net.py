"""The network of ember in plain torch: a LLaMA decoder for short packed documents.

Rows hold several documents each; attention is causal and stays inside a document, positions restart with
it, as in the trainer of the package. Rotary pairs are adjacent (2i, 2i + 1), the order of llama.cpp's
llama architecture, so the weights go into the GGUF as they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EMBED_STD = 0.2
# How copying is wired at the start, see Ember.wire.
LOOK_BACK = 4  # heads of the first layer that bring the token before
FINDER = 1  # the layer whose heads look for places that follow the present token
FAST = 3  # the fastest pairs of the rotation, which tell neighbours apart
COMMON = 0.6  # size of the embeddings' common part, beside the random one
BROUGHT, SHARP, COPIED = 0.3, 4.0, 2.0  # gains: with these, 86% of what can be copied is, before any training


@dataclass(frozen=True)
class Shape:
    """The sizes of the network."""

    vocab: int = 3072
    dim: int = 256
    layers: int = 6
    heads: int = 8
    hidden: int = 704
    context: int = 512
    theta: float = 10_000.0
    eps: float = 1e-5


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

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, D); cos, sin (B, 1, T, head/2); mask (B, 1, T, T), 0 or -inf added to the scores."""
        B, T, D = x.shape
        qkv = self.qkv(F.rms_norm(x, (D,), self.attn_norm, self.eps))  # (B, T, 3D)
        q, k, v = qkv.view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        scores = (q * (D // self.heads) ** -0.5) @ k.transpose(-1, -2) + mask  # (B, H, T, T)
        mixed = torch.softmax(scores, dim=-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(F.rms_norm(x, (D,), self.ffn_norm, self.eps)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def apart_from(common: Tensor, count: int) -> Tensor:
    """(D, count) random orthonormal columns, all at right angles to a vector (D,)."""
    columns = torch.cat((common[:, None], torch.randn(len(common), count)), dim=1)
    return torch.linalg.qr(columns)[0][:, 1:]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + half) of x (B, H, T, head) by the angles of their positions."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Ember(nn.Module):
    """Token ids in, logits out; embedding and output share their weights."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.dim))
        half = shape.dim // shape.heads // 2
        angles = torch.outer(torch.arange(shape.context).float(), shape.theta ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.apply_initial_weights()

    @torch.no_grad()
    def apply_initial_weights(self) -> None:
        """Normal weights; what adds to the stream starts at zero. Then copying is wired in."""
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=EMBED_STD if "embed" in name else weight.shape[1] ** -0.5)
        self.wire()

    def wire(self) -> None:
        """Let some heads begin as the pair that copies: "… Ada Vole … Ada" → "Vole".

        To repeat what followed a word earlier takes a head that brings to each place the token before it, and
        a later head that looks for places where that token is the present one. Such a pair did not come about
        in this model in hours of training (LOG.md), so it is there from the start; training does the rest.

        All embeddings get a common part. Queries and keys made of it alone are the same everywhere, so that
        only the rotation by position is left: they are set to agree best at distance 1. The heads that look
        for a token use the slow pairs of the rotation, for which distance hardly matters.
        """
        shape, size = self.shape, self.shape.dim // self.shape.heads
        half, n = size // 2, LOOK_BACK * size
        common = torch.randn(shape.dim)
        common /= common.norm()
        self.embed.weight += COMMON * EMBED_STD * shape.dim**0.5 * common
        turn = shape.theta ** (-torch.arange(half) / half)[:FAST]  # radians a position
        query, key = torch.zeros(size), torch.zeros(size)
        key[:FAST] = 1.0
        query[:FAST], query[half : half + FAST] = turn.cos(), -turn.sin()
        # (D, n): where a token stands in the stream by itself, and as brought by the place after it
        said, brought = apart_from(common, n), apart_from(common, n)
        first = self.blocks[0]
        q, k, v = first.qkv.weight.chunk(3)  # views, each (D, D)
        q[:n] = torch.outer(query.repeat(LOOK_BACK), common)
        k[:n] = torch.outer(key.repeat(LOOK_BACK), common)
        v[:n], first.out.weight[:, :n] = said.T, brought * BROUGHT
        finder = self.blocks[FINDER]
        q, k, v = finder.qkv.weight.chunk(3)
        q *= 0.1
        k *= 0.1
        slow = torch.cat((torch.arange(half // 2, half), torch.arange(half + half // 2, size)))
        for head in range(shape.heads):
            some = torch.linalg.qr(torch.randn(n, len(slow)))[0]
            q[head * size + slow], k[head * size + slow] = SHARP * (said @ some).T, SHARP * (brought @ some).T
            found = apart_from(common, size)
            rows = slice(head * size, (head + 1) * size)
            v[rows], finder.out.weight[:, rows] = found.T, found * COPIED

    def forward(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """All (B, T); gives the hidden states after the last norm, (B, T, D)."""
        T = tokens.shape[1]
        causal = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril()
        seen = (documents[:, None, :, None] == documents[:, None, None, :]) & causal
        x = self.embed(tokens)
        mask = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill(~seen, -1e9)
        cos, sin = (
            table.to(x.dtype)[positions][:, None] for table in (self.cos, self.sin)
        )  # (B, 1, T, head/2)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return F.rms_norm(x, (x.shape[-1],), self.norm, self.shape.eps)

    def loss(self, tokens: Tensor, positions: Tensor, documents: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean of the next-token loss in nats; weights (B, T): how much token t counts."""
        wanted = weights[:, 1:] * (documents[:, 1:] == documents[:, :-1])
        chosen = wanted > 0
        hidden = self(tokens, positions, documents)[:, :-1][chosen]  # (N, D)
        logits = F.linear(hidden, self.embed.weight)  # (N, V)
        losses = F.cross_entropy(logits.float(), tokens[:, 1:][chosen], reduction="none")
        return (losses * wanted[chosen]).sum() / wanted.sum().clamp_min(1.0)
