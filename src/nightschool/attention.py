"""Causal attention inside each document of a packed stream, in plain torch.

The stream has no padding; only here, where documents must not see each other, are they laid side by side,
those of like length together. Scores are computed a tile of queries at a time, and keys that no query of a
tile can see are skipped.

Shapes: T tokens, N documents of a group, L places in each, H query heads, K key/value heads, d head width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nightschool.memory import KEEP_LENGTH
from nightschool.ops import run

ATTENTION_TILE = 1 << 23  # scores held at once
QUERY_TILE = 128  # causal attention skips the keys right of each tile of queries


@dataclass(frozen=True)
class Group:
    """Documents of like length: the place in the stream of each of their tokens, (N, L).

    Places past a document's end point at its last token; causality hides them from the real ones, and their
    own results are not written back: `keep` (N·L,) marks the real places, or is None where all are.
    `whole`: the group is the stream itself, in order.
    """

    index: Tensor
    keep: Tensor | None
    whole: bool


@dataclass(frozen=True)
class Documents:
    """How a packed stream falls into documents."""

    groups: tuple[Group, ...]

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu") -> "Documents":
        """Group documents by their lengths, so that at most a quarter of a group is padding."""
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
        groups: list[list[int]] = []
        for i in order:
            if groups and lengths[i] >= 0.75 * lengths[groups[-1][0]] - 4:
                groups[-1].append(i)
            else:
                groups.append([i])
        return Documents(tuple(_group(starts, lengths, sorted(group), device) for group in groups))


def _group(
    starts: Sequence[int], lengths: Sequence[int], members: list[int], device: torch.device | str
) -> Group:
    step = torch.arange(max(lengths[i] for i in members))
    length = torch.tensor([lengths[i] for i in members])[:, None]
    index = torch.tensor([starts[i] for i in members])[:, None] + torch.minimum(step, length - 1)
    keep = (step < length).flatten()
    whole = torch.equal(index.flatten(), torch.arange(starts[-1]))
    return Group(index.to(device), None if bool(keep.all()) else keep.to(device), whole)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Documents,
    *,
    scale: float,
    window: int = 0,
    mm: torch.dtype = torch.float32,
) -> Tensor:
    """Causal attention inside each document: q (T, H, d), k (T, K, d), v (T, K, e) → (T, H, e).

    Head h of q reads head h // (H / K) of k and v. With a window a token sees itself and window - 1 before.
    The probabilities of documents longer than KEEP_LENGTH are not kept for the backward but computed again.
    """
    y: Tensor = run(_Attention, q, k, v, documents, scale, window, mm)
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        documents: Documents,
        scale: float,
        window: int,
        mm: torch.dtype,
    ) -> Tensor:
        ctx.documents, ctx.scale, ctx.window, ctx.kept = documents, scale, window, []
        y = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
        q, k, v = (q * scale).to(mm), k.to(mm), v.to(mm)
        ctx.save_for_backward(q, k, v)
        for group in documents.groups:
            qs, ks, vs = (_laid_out(x, group, k.shape[1]) for x in (q, k, v))
            out = qs.new_empty(*qs.shape[:-1], vs.shape[-1])
            for tile in _tiles(qs, window):
                p = _probabilities(qs[tile.queries], ks[tile.keys], tile)
                out[tile.queries] = _times(p, vs[tile.keys])
                if group.index.shape[1] <= KEEP_LENGTH:
                    ctx.kept.append(p)
            _put_back(y, out, group)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        q, k, v = ctx.saved_tensors
        grads = [dy.new_empty(x.shape) for x in (q, k, v)]
        dy = dy.to(q.dtype)
        kept = iter(ctx.kept)
        for group in ctx.documents.groups:
            qs, ks, vs, dys = (_laid_out(x, group, k.shape[1]) for x in (q, k, v, dy))
            if group.keep is not None:
                dys = dys * _laid_out_keep(group, k.shape[1])
            dq, dk, dv = torch.empty_like(qs), torch.zeros_like(ks), torch.zeros_like(vs)
            for tile in _tiles(qs, ctx.window):
                qt, kt, dyt = qs[tile.queries], ks[tile.keys], dys[tile.queries]
                p = next(kept) if group.index.shape[1] <= KEEP_LENGTH else _probabilities(qt, kt, tile)
                dp = _times(dyt, vs[tile.keys].transpose(-1, -2))
                ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
                dq[tile.queries] = _times(ds, kt)
                dk[tile.keys] += _summed_times(ds, qt)
                dv[tile.keys] += _summed_times(p, dyt)
            for grad, part in zip(grads, (dq.mul_(ctx.scale), dk, dv), strict=True):
                _put_back(grad, part, group)
        return *grads, None, None, None, None


def _laid_out(x: Tensor, group: Group, kv_heads: int) -> Tensor:
    """x (T, H, d) → (N·K, H/K, L, d): each key/value head with the query heads that read it."""
    n, length = group.index.shape
    picked = x if group.whole else x[group.index.flatten()]
    heads = picked.reshape(n, length, kv_heads, x.shape[1] // kv_heads, x.shape[2])
    return heads.permute(0, 2, 3, 1, 4).reshape(n * kv_heads, -1, length, x.shape[2])


def _laid_out_keep(group: Group, kv_heads: int) -> Tensor:
    """`keep` in the layout of _laid_out: (N·K, 1, L, 1)."""
    assert group.keep is not None
    n, length = group.index.shape
    return group.keep.view(n, 1, length, 1).repeat_interleave(kv_heads, 0)


def _put_back(y: Tensor, part: Tensor, group: Group) -> None:
    """Write (N·K, H/K, L, e) back to its places in y (T, H, e)."""
    n, length = group.index.shape
    rows = part.view(n, -1, part.shape[1], length, part.shape[3]).permute(0, 3, 1, 2, 4)
    if group.whole:
        y.view(n, length, rows.shape[2], rows.shape[3], -1).copy_(rows)
        return
    flat, places = rows.reshape(n * length, y.shape[1], y.shape[2]), group.index.flatten()
    if group.keep is not None:
        flat, places = flat[group.keep], places[group.keep]
    y.index_copy_(0, places, flat.to(y.dtype))


@dataclass(frozen=True)
class Tile:
    """Some document-head pairs and some of their queries, and the keys that those can see."""

    queries: tuple[slice, slice, slice]
    keys: tuple[slice, slice, slice]
    window: int

    @property
    def offset(self) -> int:
        """The first query's place among the keys."""
        return int(self.queries[2].start - self.keys[2].start)


def _tiles(qs: Tensor, window: int) -> Iterator[Tile]:
    pairs, heads, length, _ = qs.shape
    tall = min(length, QUERY_TILE)
    step = max(1, ATTENTION_TILE // (heads * tall * length))
    for start in range(0, pairs, step):
        rows, every = slice(start, start + step), slice(None)
        for low in range(0, length, tall):
            high = min(low + tall, length)
            first = max(0, low - window + 1) if window else 0
            yield Tile((rows, every, slice(low, high)), (rows, every, slice(first, high)), window)


def _probabilities(q: Tensor, k: Tensor, tile: Tile) -> Tensor:
    """softmax(q kᵀ) of the keys that each query may see. (P, G, l, m)"""
    scores = _times(q, k.transpose(-1, -2))
    scores += _mask(q.shape[2], k.shape[2], tile.offset, tile.window, q.dtype, q.device)
    return torch.softmax(scores, -1)


@lru_cache(maxsize=64)
def _mask(
    queries: int, keys: int, offset: int, window: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """0 where query i, at place offset + i, sees key j, else -inf: (queries, keys)."""
    distance = offset + torch.arange(queries)[:, None] - torch.arange(keys)
    hidden = (distance < 0) | (distance >= window) if window else distance < 0
    return torch.zeros(queries, keys, dtype=dtype).masked_fill_(hidden, float("-inf")).to(device)


def _times(x: Tensor, y: Tensor) -> Tensor:
    """(P, G, l, m) times (P, 1, m, n), the group folded into the rows: (P, G, l, n)."""
    p, g, rows, inner = x.shape
    return torch.bmm(x.reshape(p, g * rows, inner), y.squeeze(1)).view(p, g, rows, -1)


def _summed_times(x: Tensor, y: Tensor) -> Tensor:
    """Σ over the group of xᵀ y: (P, G, l, m), (P, G, l, n) → (P, 1, m, n)."""
    p, g, rows, _ = x.shape
    return torch.bmm(x.reshape(p, g * rows, -1).transpose(1, 2), y.reshape(p, g * rows, -1)).unsqueeze(1)
