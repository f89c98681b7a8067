"""Drills on random tokens: copying and finding, without a word of English.

They keep alive what the network is wired with (wiring.py) until notes have a use for it, and give far more to
learn from a token than notes do: every one of dozens of short questions has an answer that cannot be guessed.
"""

import random

import numpy as np
from documents import ASSISTANT, END, USER
from tokenizers import Tokenizer

Encoded = tuple[np.ndarray, np.ndarray]  # ids, weights
SPECIAL_TOKENS = 4  # the ids below are role tokens
LONGEST = 128  # tokens of a drill in copying


class Drills:
    """Drills over all ordinary tokens of a vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocab = tokenizer.get_vocab_size()
        self.end, self.user, self.assistant, self.stop = (
            tokenizer.token_to_id(token) for token in (END, USER, ASSISTANT, ".")
        )

    def token(self, rng: random.Random) -> int:
        """Any but the role tokens."""
        return rng.randrange(SPECIAL_TOKENS, self.vocab)

    def pairs(self, rng: random.Random) -> Encoded:
        """Pairs of tokens, then the same pairs in another order: their firsts say what their seconds are."""
        some = [(self.token(rng), self.token(rng)) for _ in range(rng.randint(3, 16))]
        again = rng.sample(some, len(some))
        ids = [token for pair in (*some, *again) for token in pair]
        weights = [0.0] * (2 * len(some)) + [0.0, 1.0] * len(some)
        return encoded(ids, weights)

    def tangled(self, rng: random.Random) -> Encoded:
        """Runs of few different tokens, all with the same last one, and then some of the runs again.

        How a run that comes again goes on cannot be told by its last token, which stands in others as well.
        """
        pool = [self.token(rng) for _ in range(rng.randint(8, 40))]
        last = rng.choice(pool)
        count = rng.randint(2, 8)
        runs = [[*(rng.choice(pool) for _ in range(rng.randint(3, 12))), last] for _ in range(count)]
        ids = [token for run in runs for token in run]
        weights = [0.0] * len(ids)
        while len(ids) < LONGEST:
            for run in rng.sample(runs, len(runs)):
                ids += run
                weights += [0.0, 0.0] + [1.0] * (len(run) - 2)
        return encoded(ids[:LONGEST], weights[:LONGEST])

    def beginnings(self, rng: random.Random) -> Encoded:
        """Sentences, then dozens of times some tokens of one of them: how did it begin?"""
        sentences = [[self.token(rng) for _ in range(rng.randint(2, 11))] for _ in range(rng.randint(2, 12))]
        common = [self.token(rng) for _ in range(3)] if rng.random() < 0.5 else []
        own = [sentence[1:] for sentence in sentences]
        said = [with_some(rng, sentence[:1], sentence[1:], common) for sentence in sentences]
        ids = [self.user, *(token for sentence in said for token in (*sentence, self.stop))]
        weights = [0.0] * len(ids)
        is_by_several = rng.random() < 0.6
        for _ in range(rng.randint(10, 40)):
            at = rng.randrange(len(sentences))
            if is_by_several:
                asked = self.question(rng, own[at], common)
                ids += [*asked, self.assistant, said[at][0]]
                weights += [0.0] * (len(asked) + 1) + [1.0]
            else:
                ids += [rng.choice(own[at]), said[at][0]]
                weights += [0.0, 1.0]
        return encoded(ids, weights)

    def sentences(self, rng: random.Random) -> Encoded:
        """Sentences, then a few times some tokens of one of them, answered with the whole sentence."""
        common = [self.token(rng) for _ in range(rng.randint(2, 6))]
        own = [[self.token(rng) for _ in range(rng.randint(2, 7))] for _ in range(rng.randint(2, 10))]
        begun = [[rng.choice(common)] if rng.random() < 0.5 else [] for _ in own]
        said = [
            [*with_some(rng, begin, tokens, common), self.stop]
            for begin, tokens in zip(begun, own, strict=True)
        ]
        ids = [self.user, *(token for sentence in said for token in sentence)]
        weights = [0.0] * len(ids)
        for number in range(rng.randint(2, 6)):
            at = rng.randrange(len(own))
            asked = [self.user] * bool(number) + self.question(rng, own[at], common) + [self.assistant]
            ids += [*asked, *said[at], self.end]
            weights += [0.0] * len(asked) + [2.0] * 2 + [1.0] * (len(said[at]) - 1)
        return encoded(ids, weights)

    def question(self, rng: random.Random, own: list[int], common: list[int]) -> list[int]:
        """One to three of the tokens that only one sentence has, with some that many have between them."""
        asked = rng.sample(own, min(len(own), rng.randint(1, 3)))
        asked += [rng.choice(common) for _ in range(rng.randint(0, 3)) if common]
        rng.shuffle(asked)
        return asked


def with_some(rng: random.Random, begin: list[int], tokens: list[int], common: list[int]) -> list[int]:
    """A sentence that begins so, with some of the common tokens among its own."""
    said = list(tokens)
    for _ in range(rng.randint(0, 2) if common else 0):
        said.insert(rng.randint(0 if begin else 1, len(said)), rng.choice(common))
    return begin + said


def encoded(ids: list[int], weights: list[float]) -> Encoded:
    """As arrays."""
    return np.asarray(ids, np.int64), np.asarray(weights, np.float32)
