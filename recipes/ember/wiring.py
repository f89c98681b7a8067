"""What the network begins with: heads that copy and heads that find, set by hand before any training.

Two things a reader of notes must do did not come about in networks of this size in hours of training
(LOG.md), so they are there from the start, roughly, and training makes them good:

- *Copying.* "… Ada Vole … Ada" → "Vole": a head brings to each place the token before it, a later one looks
  for places where that token is the present one.
- *Finding.* Which sentence has the words of the question? An answer begins with the sentence's first word,
  which stands before all that tells the sentence from others. So every place is brought the first two words
  of its sentence; the words of a question look for themselves further up and fetch those; the place that
  answers gathers what they fetched.

The stream of D numbers is divided into rooms at right angles to each other. Embeddings live in the room
`said`, all with a part in common; queries and keys made of that part alone are the same everywhere, so only
the rotation by position is left of them: they agree best at a distance. What ends a sentence has a mark.
Other weights are random or zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

EMBED_STD = 0.2
COMMON, MARKED = 0.6, 0.4  # sizes of the common part and of the mark, beside all else in an embedding
ELSEWHERE = 0.25  # of an embedding, outside its room
ROOMS = {  # numbers of the stream for: one number each …
    "common": 1,
    "ends": 1,  # this token ends a sentence
    "first": 1,  # the one before does: a sentence begins here
    "second": 1,  # the one before that does
    "said": 64,  # … which token stands here
    "before": 32,  # the token before
    "before_that": 32,
    "begins": 32,  # the first token of this sentence
    "goes_on": 32,  # its second
    "found_begins": 32,  # those two of the sentence where this token stood earlier
    "found_goes_on": 28,
}
# Pairs of the rotation, fastest first: three tell neighbours apart, the middle ones a sentence from the one
# before it, the last six hardly feel distance.
FAST, HERE, RECENT, FAR = slice(0, 3), slice(0, 4), slice(2, 9), slice(10, 16)
QUESTION = slice(1, 7)  # pairs that together reach as far back as a question is long
# Gains, found by measuring what heads look at before any training and how fast finding is learned.
BRING, COPY, TURN_BACK, FETCH, GATHER = 0.4, 0.8, 0.5, 0.7, 0.5
SHARP_COPY, SHARP_FIND, NOT_HERE, LATEST, BEGINNING, LATELY = 5.0, 4.0, 0.6, 0.7, 0.2, 1.5


@dataclass(frozen=True)
class Head:
    """One head: queries and keys (head, D), values (head, D), what they add to the stream (D, head)."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor


@torch.no_grad()
def wire(
    embed: nn.Embedding, blocks: Sequence[nn.Module], *, heads: int, theta: float, ends: Sequence[int]
) -> None:
    """Set embeddings and the heads of the first four blocks; `ends`: ids of the tokens that end a sentence.

    Needs a stream of 256, heads of 32 numbers, eight a block, whose rotary pairs are (i, i + 16).
    """
    D = embed.weight.shape[1]
    size = D // heads
    if (D, size) != (256, 32):
        raise ValueError(f"Wiring is for a stream of 256 in heads of 32, not of {D} in heads of {size}.")
    room = dict(zip(ROOMS, torch.split(orthonormal(D, D), list(ROOMS.values()), dim=1), strict=True))
    common, mark, first, second = (room[name][:, 0] for name in ("common", "ends", "first", "second"))
    embed.weight.copy_(embeddings(embed.num_embeddings, room, ends))
    wiring = Wiring(size, theta, common)
    said, narrow = room["said"], [room["said"] @ orthonormal(64, 32) for _ in range(4)]
    known, known_too, begin, go_on = narrow  # four views of `said`, 32 numbers each

    set_heads(
        blocks[0],
        [
            wiring.at_distance(1, known, room["before"] * BRING),
            wiring.at_distance(2, known_too, room["before_that"] * BRING),
            wiring.at_distance(1, mark[:, None], first[:, None] * BRING),
            wiring.at_distance(2, mark[:, None], second[:, None] * BRING),
        ],
    )
    set_heads(
        blocks[1],
        [
            wiring.latest(first, begin, room["begins"] * TURN_BACK),
            wiring.latest(second, go_on, room["goes_on"] * TURN_BACK),
        ],
    )
    fetch = (("begins", "found_begins"), ("goes_on", "found_goes_on"))
    set_heads(
        blocks[2],
        [
            wiring.same_token(said @ orthonormal(64, 12), room[what][:, : ROOMS[to]], room[to] * FETCH)
            for what, to in fetch
            for _ in range(2)
        ],
    )
    gather = wiring.lately(room["found_begins"], begin * GATHER)
    copy = [wiring.follows(known, room["before"], half * COPY) for half in (said[:, :32], said[:, 32:])]
    set_heads(blocks[3], [gather, *copy, *copy, copy[0]])


def orthonormal(size: int, count: int) -> Tensor:
    """(size, count) random columns at right angles."""
    return torch.linalg.qr(torch.randn(size, count))[0]


def embeddings(vocab: int, room: dict[str, Tensor], ends: Sequence[int]) -> Tensor:
    """(vocab, D): random in their room, a little elsewhere, with the common part and the marks."""
    said = room["said"]
    D, wide = said.shape
    rows = torch.randn(vocab, wide) @ said.T * (D / wide) ** 0.5 + ELSEWHERE * torch.randn(vocab, D)
    for name in ("common", "ends", "first", "second"):
        rows -= (rows @ room[name]) * room[name].T
    rows += COMMON * D**0.5 * room["common"].T
    rows[list(ends)] += MARKED * D**0.5 * room["ends"].T
    return rows * EMBED_STD


class Wiring:
    """Heads of `size` numbers for a stream with a common part (D,)."""

    def __init__(self, size: int, theta: float, common: Tensor) -> None:
        self.size, self.half, self.common = size, size // 2, common
        self.turn = theta ** (-torch.arange(self.half) / self.half)  # radians a position
        pairs = torch.arange(self.half)[FAR]
        self.far = torch.cat((pairs, pairs + self.half))

    def at_distance(self, distance: int, what: Tensor, to: Tensor) -> Head:
        """Looks so many places back."""
        q, k = torch.zeros(self.size), torch.zeros(self.size)
        k[FAST] = 1.0
        q[FAST] = (distance * self.turn[FAST]).cos()
        q[self.half : self.half + FAST.stop] = -(distance * self.turn[FAST]).sin()
        return self.head(torch.outer(q, self.common), torch.outer(k, self.common), what, to)

    def latest(self, flag: Tensor, what: Tensor, to: Tensor) -> Head:
        """Looks at the nearest place back that has the flag (D,)."""
        q, k = torch.zeros(self.size), torch.zeros(self.size)
        q[RECENT], k[RECENT] = 1.0, LATEST
        q[FAR.start + 2 : self.half], k[FAR.start + 2 : self.half] = 1.0, BEGINNING
        return self.head(torch.outer(q, self.common), torch.outer(k, flag), what, to)

    def lately(self, what: Tensor, to: Tensor) -> Head:
        """Looks at the last few places alike."""
        near = torch.zeros(self.size)
        near[QUESTION] = LATELY
        near = torch.outer(near, self.common)
        return self.head(near, near, what, to)

    def same_token(self, token: Tensor, what: Tensor, to: Tensor) -> Head:
        """Looks for the same token (D, 12) further back, and not at itself."""
        q, k = torch.zeros(self.size, len(self.common)), torch.zeros(self.size, len(self.common))
        q[self.far] = k[self.far] = token.T * SHARP_FIND
        here = torch.zeros(self.size)
        here[HERE] = NOT_HERE
        here = torch.outer(here, self.common)
        return self.head(q + here, k - here, what, to)

    def follows(self, token: Tensor, before: Tensor, to: Tensor) -> Head:
        """Looks for places that stand behind the present token (D, n), brought there as `before`."""
        some = orthonormal(token.shape[1], len(self.far))
        q, k = torch.zeros(self.size, len(self.common)), torch.zeros(self.size, len(self.common))
        q[self.far], k[self.far] = (token @ some).T * SHARP_COPY, (before @ some).T * SHARP_COPY
        return self.head(q, k, to / COPY, to)

    def head(self, q: Tensor, k: Tensor, what: Tensor, to: Tensor) -> Head:
        """A head that brings the numbers `what` (D, n ≤ size) of where it looks `to` (D, n)."""
        v, out = torch.zeros(self.size, len(self.common)), torch.zeros(len(self.common), self.size)
        v[: what.shape[1]], out[:, : to.shape[1]] = what.T, to
        return Head(q, k, v, out)


def set_heads(block: nn.Module, heads: Sequence[Head]) -> None:
    """Put heads into a block, from its first on."""
    q, k, v = block.qkv.weight.chunk(3)  # views, each (D, D)
    for number, head in enumerate(heads):
        rows = slice(number * len(head.q), (number + 1) * len(head.q))
        q[rows], k[rows], v[rows] = head.q, head.k, head.v
        block.out.weight[:, rows] = head.out
