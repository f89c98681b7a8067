"""The network of ember in plain torch: a LLaMA decoder for short packed documents.

Rows hold several documents each; attention is causal and stays inside a document, positions restart with
it, as in the trainer of the package. Rotary pairs are adjacent (2i, 2i + 1), the order of llama.cpp's
llama architecture, so the weights go into the GGUF as they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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

    def apply_initial_weights(self) -> None:
        """Normal weights; what adds to the stream starts smaller with depth."""
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                scale = 0.02 if "embed" in name else weight.shape[1] ** -0.5
                into_stream = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=scale * ((2 * self.shape.layers) ** -0.5 if into_stream else 1.0))

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
