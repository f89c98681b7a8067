"""Batches for training: documents of the mixture, tokenised and laid end to end."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from documents import ASSISTANT, END, USER, Document, greeting_chat, known_chat, known_text, name_chat
from drills import Drills, Encoded
from everyday import Told
from frames import by_heart, pages_for_training, some_framed, trained
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

# Shares of the tokens by kind of document, from each of these shares of the time on: first drills and the
# population, learned by heart, then more and more notes of every kind. Stories and books are cut where a
# batch is full.
STARTS = (0.0, 0.06, 0.4, 0.64, 0.84)
SHARES: dict[str, tuple[float, ...]] = {
    "pairs": (10, 2, 2, 1, 1),
    "tangled": (10, 2, 2, 1, 1),
    "beginnings": (24, 5, 3, 3, 2),
    "sentences": (12, 5, 3, 3, 2),
    "known_chat": (9, 5, 5, 4, 3),
    "known_text": (4, 3, 3, 1, 1),
    "heart": (3, 8, 9, 5, 2),
    "notes": (6, 13, 17, 25, 36),
    "framed": (0, 8, 8, 9, 9),
    "page": (6, 20, 22, 29, 27),
    "finding": (4, 10, 7, 5, 3),
    "story_notes": (0, 1, 1, 1, 1),
    "ask": (0, 2, 3, 3, 3),
    "roll": (3, 3, 3, 2, 2),
    "name": (1, 1, 1, 1, 1),
    "everyday_name": (1, 1, 1, 1, 1),
    "writing": (2, 3, 4, 4, 4),
    "rewording": (0, 3, 4, 4, 4),
    "greeting": (0.5, 0.3, 0.3, 0.3, 0.3),
    "story": (7, 6, 6, 5, 4),
    "book": (5, 6, 5, 4, 3),
}
MIXTURES: dict[float, dict[str, float]] = {
    start: {kind: shares[at] for kind, shares in SHARES.items() if shares[at]}
    for at, start in enumerate(STARTS)
}
LONGEST = 640  # tokens of a document
CHARACTERS_A_TOKEN = 4  # about
AT_ONCE = 24  # documents made and tokenised together
# Of the questions about the generator's notes, and about natural ones, so many have no answer. Few at first:
# to say that one does not know is the easy way out.
ABSENT: dict[float, tuple[float, float]] = {0.0: (0.15, 0.04), 0.4: (0.32, 0.15), 0.64: (0.34, 0.17)}
GENERAL = 0.6  # weight of stories and books: much to learn there, and facts must not drown in it
STORY = ("Tell me a story.", "Please tell me a story.", "Can you tell me a story?", "I want to hear a story.")
BOOK = ("Read to me from a book.", "Please read to me from an old book.", "Read me a page from a book.")


@dataclass(frozen=True)
class Batch:
    """Documents end to end: token ids and their weights in the loss, both (N,); how long each document is."""

    tokens: Tensor
    weights: Tensor
    lengths: list[int]


class Corpus:
    """An endless stream of batches, the same for the same seed; `state` is all that it remembers."""

    def __init__(
        self, tokenizer: Tokenizer, people: Population, *, stories: list[str], books: list[str], seed: int
    ) -> None:
        self.tokenizer, self.people, self.facts = tokenizer, people, people.all_facts()
        self.stories, self.books, self.drills = stories, books, Drills(tokenizer)
        self.frames, self.pages = list(trained().values()), pages_for_training()
        self.heart = household(seed + 1) + [known for known, _ in by_heart(seed + 2)]
        self.story_notes = from_stories(stories)
        self.runs = plain_runs(stories + books)
        self.rng = random.Random(seed)
        self.waiting: list[Encoded] = []
        self.mixture: dict[str, float] = {}
        self.given: dict[str, int] = {}  # tokens of each kind since this mixture came

    @property
    def state(self) -> dict[str, Any]:
        """Where the stream is."""
        waiting = [(ids.tolist(), weights.tolist()) for ids, weights in self.waiting]
        return {"rng": self.rng.getstate(), "waiting": waiting, "mixture": self.mixture, "given": self.given}

    @state.setter
    def state(self, kept: dict[str, Any]) -> None:
        version, internal, gauss = kept["rng"]
        self.rng.setstate((version, tuple(internal), gauss))
        self.waiting = [
            (np.asarray(ids, np.int64), np.asarray(weights, np.float32)) for ids, weights in kept["waiting"]
        ]
        self.mixture, self.given = kept["mixture"], kept["given"]

    def document(self, kind: str, *, absent: tuple[float, float]) -> Document:
        """One document in words; `absent` as in ABSENT."""
        rng, (seldom, rarely) = self.rng, absent
        makers: dict[str, Callable[[], Document]] = {
            "known_chat": lambda: known_chat(rng, self.people, self.facts),
            "known_text": lambda: known_text(rng, self.people),
            "name": lambda: name_chat(rng),
            "greeting": lambda: greeting_chat(rng),
            "heart": lambda: household_document(rng, self.heart),
            "notes": lambda: notes_chat(rng, absent=seldom),
            "framed": lambda: notes_chat(rng, self.framed(12), most=12, absent=rarely),
            "page": lambda: page_chat(rng, rng.choice(self.pages), absent=rarely),
            "finding": lambda: finding_chat(rng, self.runs, most=12),
            "ask": lambda: ask_chat(rng, self.framed() if rng.random() < 0.5 else (), absent=seldom, most=16),
            "roll": lambda: roll(rng),
            "everyday_name": lambda: everyday_name_chat(rng),
            "writing": lambda: writing_chat(rng, self.framed() if rng.random() < 0.5 else self.story_notes),
            "rewording": lambda: rewording_chat(rng, self.framed() if rng.random() < 0.3 else ()),
            "story_notes": lambda: notes_chat(rng, self.story_notes, absent=seldom),
            "story": lambda: general(rng, self.stories, asked=STORY),
            "book": lambda: general(rng, self.books, asked=BOOK),
        }
        return makers[kind]()

    def framed(self, count: int = 6) -> list[Told]:
        """Fresh notes in natural English."""
        return some_framed(self.rng, self.frames, count)

    def batch(self, size: int, *, progress: float) -> Batch:
        """Exactly `size` tokens; `progress`, from 0 to 1, picks the mixture."""
        parts: list[Encoded] = []
        room = size
        while room:
            if not self.waiting:
                self.make_more(progress)
            ids, weights = self.waiting.pop()
            if len(ids) > room:  # back to where it was, and a text to fill up with
                self.waiting.append((ids, weights))
                ids, weights = encode(self.tokenizer, [general(self.rng, self.stories, asked=STORY)])[0]
                ids, weights = ids[:room], weights[:room]
            weights = np.concatenate(([np.float32(0)], weights[1:]))  # nothing foretells the first token
            parts.append((ids, weights))
            room -= len(ids)
        tokens, weights = (torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True))
        return Batch(tokens, weights, [len(ids) for ids, _ in parts])

    def make_more(self, progress: float) -> None:
        """Let some documents wait: each time of the kind that is furthest behind its share."""
        mixture, absent = at_share(MIXTURES, progress), at_share(ABSENT, progress)
        if self.mixture != mixture:
            self.mixture, self.given = mixture, dict.fromkeys(mixture, 0)
        ready: list[Encoded] = []
        words: list[tuple[str, Document]] = []
        for _ in range(AT_ONCE):
            kind = min(mixture, key=lambda kind: self.given[kind] / mixture[kind])
            if hasattr(self.drills, kind):
                ready.append(getattr(self.drills, kind)(self.rng))
                self.given[kind] += len(ready[-1][0])
            else:
                words.append((kind, self.document(kind, absent=absent)))
                self.given[kind] += sum(len(text) for text, _ in words[-1][1]) // CHARACTERS_A_TOKEN
        for encoded in encode(self.tokenizer, [document for _, document in words]):
            if len(encoded[0]) <= LONGEST:
                ready.append(encoded)
        self.rng.shuffle(ready)
        self.waiting += ready


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
