"""Batches for training: documents of the mixture, tokenised and packed into rows."""

import random
from dataclasses import dataclass
from typing import TypeVar

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
)
from everyday import Told
from frames import known_frames, pages_for_training, some_framed, trained
from passages import finding_chat, plain_runs
from reading import (
    ask_chat,
    everyday_name_chat,
    from_stories,
    household,
    household_document,
    notes_chat,
    page_chat,
    rewording_chat,
    roll,
    writing_chat,
)
from tokenizers import Tokenizer
from torch import Tensor
from worlds import Population

Scheduled = TypeVar("Scheduled")
Encoded = tuple[np.ndarray, np.ndarray]  # ids, weights

# Besides, these shares of the tokens are random: pairs that come again, which keep alive what the network is
# wired with (net.py) until notes have a use for it; and runs that have the same tokens in another order,
# which can be repeated only by keeping to one of them, as an answer keeps to one sentence of a page.
COPYING = {0.0: 0.12, 0.4: 0.06}
TANGLED = {0.0: 0.0, 0.4: 0.08}
COPIED_ROW, TANGLED_ROW = 64, 128
# Share of documents by kind, from a share of the time on: first more of the population, which is learned by
# heart, then more notes of every kind. Stories and books are cut at the end of a row and fill up others.
MIXTURES: dict[float, dict[str, int]] = {
    0.0: {
        "known_chat": 26,
        "known_text": 8,
        "household": 4,
        "notes": 18,
        "framed": 8,
        "page": 4,
        "finding": 4,
        "story_notes": 4,
        "roll": 12,
        "name": 4,
        "everyday_name": 4,
        "writing": 7,
        "rewording": 4,
        "greeting": 1,
        "story": 7,
        "book": 5,
    },
    0.4: {
        "known_chat": 12,
        "known_text": 4,
        "household": 4,
        "notes": 30,
        "framed": 10,
        "page": 9,
        "finding": 4,
        "story_notes": 3,
        "ask": 5,
        "roll": 6,
        "name": 3,
        "everyday_name": 4,
        "writing": 9,
        "rewording": 14,
        "greeting": 1,
        "story": 6,
        "book": 4,
    },
}
LENGTHS = {0.0: 256, 0.4: 512}  # tokens a row, from a share of the time on
LONG = 512
FRAMED = {256: 4, 512: 12}  # at most so many sentences in natural English in a document
FRAMED_ABSENT = 0.15  # of the questions about them ask for what they do not say: it is the easy way out
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
        self.frames, self.pages = list(trained().values()), pages_for_training()
        self.household = household(seed + 1) + known_frames(seed + 2)
        self.story_notes = from_stories(stories)
        self.runs = plain_runs(stories + books)
        self.rng = random.Random(seed)

    def document(self, kind: str, *, length: int) -> Document:
        """One document of the kind, for rows of `length` tokens."""
        rng = self.rng
        makers = {
            "known_chat": lambda: known_chat(rng, self.people, self.facts),
            "known_text": lambda: known_text(rng, self.people),
            "name": lambda: name_chat(rng),
            "greeting": lambda: greeting_chat(rng),
            "household": lambda: household_document(rng, self.household),
            "notes": lambda: notes_chat(rng),
            "framed": lambda: notes_chat(
                rng, self.framed(FRAMED[length]), most=FRAMED[length], absent=FRAMED_ABSENT
            ),
            "page": lambda: page_chat(rng, rng.choice(self.pages), most=FRAMED[length], absent=FRAMED_ABSENT),
            "finding": lambda: finding_chat(rng, self.runs, most=FRAMED[length]),
            "ask": lambda: ask_chat(
                rng, self.framed() if rng.random() < 0.5 else (), most=16 if length >= LONG else 8
            ),
            "roll": lambda: roll(rng),
            "everyday_name": lambda: everyday_name_chat(rng),
            "writing": lambda: writing_chat(rng, self.framed() if rng.random() < 0.5 else self.story_notes),
            "rewording": lambda: rewording_chat(rng, self.framed() if rng.random() < 0.3 else ()),
            "story_notes": lambda: notes_chat(rng, self.story_notes),
            "story": lambda: general(rng, self.stories, asked=STORY),
            "book": lambda: general(rng, self.books, asked=BOOK),
        }
        return makers[kind]()

    def framed(self, count: int = 6) -> list[Told]:
        """Fresh notes in natural English."""
        return some_framed(self.rng, self.frames, count)

    def batch(self, rows: int, length: int, *, progress: float) -> Batch:
        """Rows of exactly `length` tokens; `progress`, from 0 to 1, picks the mixture."""
        mixture = at_share(MIXTURES, progress)
        kinds = self.rng.choices(list(mixture), list(mixture.values()), k=rows * length // 60)
        queue = [(self.document(kind, length=length), kind in ("story", "book")) for kind in kinds]
        fillers = [(general(self.rng, self.stories, asked=STORY), True) for _ in range(2 * rows)]
        encoded = encode(self.tokenizer, [document for document, _ in queue + fillers])
        ready = [(item, cut) for item, (_, cut) in zip(encoded, queue + fillers, strict=True)]
        vocab = self.tokenizer.get_vocab_size()
        again = copying(
            self.rng, round(at_share(COPYING, progress) * rows * length / COPIED_ROW), vocab=vocab
        )
        random = list(zip(again.tokens.numpy(), again.weights.numpy(), strict=True))
        tangles = round(at_share(TANGLED, progress) * rows * length / TANGLED_ROW)
        random += [tangled(self.rng, vocab=vocab) for _ in range(tangles)]
        first = ready[: len(queue)] + [(item, False) for item in random]
        return pack(first, ready[len(queue) :], rows=rows, length=length)


def copying(rng: random.Random, rows: int, *, vocab: int) -> Batch:
    """Rows of random tokens: pairs, after them the same pairs in another order, somewhere in the row.

    The first of a pair says what its second is; how far back it stood says nothing.
    """
    draw = np.random.default_rng(rng.getrandbits(64))
    tokens = draw.integers(4, vocab, (rows, COPIED_ROW))  # 0 to 3 are the role tokens
    weights = np.zeros((rows, COPIED_ROW), np.float32)
    for row, weight in zip(tokens, weights, strict=True):
        pairs = int(draw.integers(3, COPIED_ROW // 4 + 1))
        start = int(draw.integers(0, COPIED_ROW - 4 * pairs + 1))
        middle, end = start + 2 * pairs, start + 4 * pairs
        row[middle:end] = draw.permutation(row[start:middle].reshape(pairs, 2)).reshape(-1)
        weight[middle + 1 : end : 2] = 1.0
    positions = np.tile(np.arange(COPIED_ROW), (rows, 1))
    arrays = (tokens, positions, np.zeros_like(positions), weights)
    return Batch(*(torch.from_numpy(array) for array in arrays))


def tangled(rng: random.Random, *, vocab: int) -> Encoded:
    """Runs of few different random tokens, all with the same last one, and then some of the runs again.

    How a run that comes again goes on cannot be told by its last token, which stands in others as well.
    """
    pool = [rng.randrange(4, vocab) for _ in range(rng.randint(8, 40))]
    last = rng.choice(pool)
    runs = [[*(rng.choice(pool) for _ in range(rng.randint(3, 12))), last] for _ in range(rng.randint(2, 8))]
    ids = [token for run in runs for token in run]
    weights = [0.0] * len(ids)
    while len(ids) < TANGLED_ROW:
        for run in rng.sample(runs, len(runs)):
            ids += run
            weights += [0.0, 0.0] + [1.0] * (len(run) - 2)
    return np.asarray(ids[:TANGLED_ROW], np.int64), np.asarray(weights[:TANGLED_ROW], np.float32)


def at_share(schedule: dict[float, Scheduled], progress: float) -> Scheduled:
    """What a schedule says for a share of the time."""
    return schedule[max(start for start in schedule if start <= progress)]


def general(rng: random.Random, texts: list[str], *, asked: tuple[str, ...]) -> Document:
    """A story or a passage: asked for, after another text, or by itself."""
    text = [(rng.choice(texts), GENERAL), (END, GENERAL)]
    kind = rng.random()
    if kind < 0.25:
        return [(f"{USER}{rng.choice(asked)}{ASSISTANT}", 0.0), *text]
    return [(END, 0.0), *text] if kind < 0.6 else text


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
