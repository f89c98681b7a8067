"""The tokenizer: byte-level BPE; its splitting rule is llama.cpp's "qwen2": one digit, one token."""

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from documents import ASSISTANT, END, SYSTEM, USER, Document, known_chat, known_text
from frames import filled, trained
from reading import ask_chat, notes_chat
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from worlds import Population

SPECIAL = (END, SYSTEM, USER, ASSISTANT)
PRE = "qwen2"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(path: Path, size: int, *, people: Population, texts: list[str], seed: int) -> None:
    """Train on a sample of everything the model will read and write it as a tokenizers JSON file.

    Most of it is everyday English: a word that is one token is found again by looking for one token.
    """
    tokenizer = untrained(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *world_sample(people, seed), *framed_sample(seed)], trainer)
    tokenizer.save(str(path))


def untrained(model: models.BPE) -> Tokenizer:
    """A tokenizer around a model, with our splitting rule."""
    tokenizer = Tokenizer(model)
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def world_sample(people: Population, seed: int) -> list[str]:
    """Texts of the generator, without role tokens."""
    rng = random.Random(seed)
    facts = people.all_facts()
    documents: list[Document] = []
    for _ in range(3_000):
        documents += [known_chat(rng, people, facts), known_text(rng, people), notes_chat(rng, absent=0.3)]
    documents += [ask_chat(rng, absent=0.3) for _ in range(200)]
    return [text for document in documents for text in plain_parts(document)]


def framed_sample(seed: int, *, times: int = 12) -> list[str]:
    """Everyday sentences, each filled so many times, and a question of each kind about them."""
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(times):
        for frame in trained().values():
            told = filled(rng, frame)
            texts += [rng.choice(told.statements), *(rng.choice(asked.questions) for asked in told.asked)]
    return texts


def sentence_ends(tokenizer: Tokenizer) -> list[int]:
    """Ids of tokens that end a sentence or a line: roles, full stops, line ends, the dash of a list."""
    ids = range(tokenizer.get_vocab_size())
    texts = {id: tokenizer.decode([id], skip_special_tokens=False) for id in ids}
    return [id for id, text in texts.items() if text in SPECIAL or re.fullmatch(r"[.!?:]+\"?\n*|\n+|-", text)]


def plain_parts(document: Document) -> list[str]:
    """The document's text between its role tokens."""
    text = "".join(piece for piece, _ in document)
    for token in SPECIAL:
        text = text.replace(token, "\0")
    return [part for part in text.split("\0") if part]


def tokenizer_from(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a written GGUF describes, for checking it against llama.cpp's."""
    tokens = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = untrained(models.BPE(vocab=tokens, merges=merges))
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer
