"""Batches for training: documents of the mixture, tokenised and packed into rows."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from documents import (
    ASSISTANT,
    END,
    USER,
    Document,
    greeting_chat,
    known_chat,
    known_text,
    name_chat,
    reading_chat,
    rewording_chat,
    roll_chat,
)
from tokenizers import Tokenizer
from torch import Tensor
from worlds import Population

# Share of documents by kind, from a share of the time on. First the population is learned by heart, then
# reading gets more room. Stories and books are cut at the end of a row and fill what others leave.
MIXTURES: dict[float, dict[str, int]] = {
    0.0: {
        "known_chat": 50,
        "known_text": 14,
        "reading": 9,
        "roll": 0,
        "name": 8,
        "rewording": 4,
        "greeting": 1,
        "story": 5,
        "book": 5,
    },
    0.15: {
        "known_chat": 22,
        "known_text": 8,
        "reading": 18,
        "roll": 10,
        "name": 8,
        "rewording": 5,
        "greeting": 1,
        "story": 9,
        "book": 6,
    },
}
GENERAL = 0.6  # weight of stories and books: much to learn there, and facts must not drown in it
STORY = ("Tell me a story.", "Please tell me a story.", "Can you tell me a story?", "I want to hear a story.")
BOOK = ("Read to me from a book.", "Please read to me from an old book.", "Read me a page from a book.")


@dataclass(frozen=True)
class Batch:
    """All (B, T): token ids, positions within the document, document number, weight in the loss."""

    tokens: Tensor
    positions: Tensor
    documents: Tensor
    weights: Tensor


class Corpus:
    """An endless stream of batches, the same for the same seed; `rng` is its whole state."""

    def __init__(
        self, tokenizer: Tokenizer, people: Population, *, stories: list[str], books: list[str], seed: int
    ) -> None:
        self.tokenizer, self.people, self.facts = tokenizer, people, people.all_facts()
        self.stories, self.books = stories, books
        self.rng = random.Random(seed)

    def document(self, kind: str) -> Document:
        """One document of the kind."""
        rng = self.rng
        makers = {
            "known_chat": lambda: known_chat(rng, self.people, self.facts),
            "known_text": lambda: known_text(rng, self.people),
            "reading": lambda: reading_chat(rng),
            "roll": lambda: roll_chat(rng),
            "name": lambda: name_chat(rng),
            "rewording": lambda: rewording_chat(rng),
            "greeting": lambda: greeting_chat(rng),
            "story": lambda: general(rng, self.stories, asked=STORY),
            "book": lambda: general(rng, self.books, asked=BOOK),
        }
        return makers[kind]()

    def batch(self, rows: int, length: int, *, progress: float) -> Batch:
        """Rows of exactly `length` tokens; `progress`, from 0 to 1, picks the mixture."""
        mixture = MIXTURES[max(start for start in MIXTURES if start <= progress)]
        kinds = self.rng.choices(list(mixture), list(mixture.values()), k=rows * length // 20)
        queue = [(self.document(kind), kind in ("story", "book")) for kind in kinds]
        fillers = [(general(self.rng, self.stories, asked=STORY), True) for _ in range(2 * rows)]
        encoded = encode(self.tokenizer, [document for document, _ in queue + fillers])
        ready = [(item, cut) for item, (_, cut) in zip(encoded, queue + fillers, strict=True)]
        return pack(ready[: len(queue)], ready[len(queue) :], rows=rows, length=length)


def general(rng: random.Random, texts: list[str], *, asked: tuple[str, ...]) -> Document:
    """A story or a passage: asked for, after another text, or by itself."""
    text = [(rng.choice(texts), GENERAL), (END, GENERAL)]
    kind = rng.random()
    if kind < 0.25:
        return [(f"{USER}{rng.choice(asked)}{ASSISTANT}", 0.0), *text]
    return [(END, 0.0), *text] if kind < 0.6 else text


Encoded = tuple[np.ndarray, np.ndarray]


def encode(tokenizer: Tokenizer, documents: list[Document]) -> list[Encoded]:
    """(ids, weights) of each document; pieces end where the splitting rule does, so they are apart."""
    pieces = tokenizer.encode_batch([text for document in documents for text, _ in document])
    encoded: list[Encoded] = []
    at = 0
    for document in documents:
        ids = [piece.ids for piece in pieces[at : at + len(document)]]
        weights = [np.full(len(i), weight, np.float32) for i, (_, weight) in zip(ids, document, strict=True)]
        encoded.append((np.concatenate([np.asarray(i, np.int64) for i in ids]), np.concatenate(weights)))
        at += len(document)
    return encoded


def pack(
    queue: list[tuple[Encoded, bool]], fillers: list[tuple[Encoded, bool]], *, rows: int, length: int
) -> Batch:
    """Fill rows in order; text that may be cut fills the rest of a row."""
    tokens, weights = np.zeros((rows, length), np.int64), np.zeros((rows, length), np.float32)
    positions, documents = np.zeros((rows, length), np.int64), np.zeros((rows, length), np.int64)
    row = at = number = 0
    while row < rows:
        (ids, weight), cut = queue.pop() if queue else fillers.pop()
        if len(ids) > length - at and not cut:
            if at:
                queue.append(((ids, weight), cut))
            (ids, weight), cut = fillers.pop() if fillers else ((ids, weight), cut)
        size = min(len(ids), length - at)
        where = slice(at, at + size)
        tokens[row, where], weights[row, where] = ids[:size], weight[:size]
        positions[row, where], documents[row, where] = np.arange(size), number
        number, at = number + 1, at + size
        if at == length:
            row, at = row + 1, 0
    return Batch(*(torch.from_numpy(array) for array in (tokens, positions, documents, weights)))
