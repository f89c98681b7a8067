"""The tokenizer: byte-level BPE with the splitting rule that llama.cpp knows as "qwen2", so each digit is a token."""

import random
from pathlib import Path

from documents import ASSISTANT, END, SYSTEM, USER, Document, known_chat, known_text, reading_chat
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from worlds import Population

SPECIAL = (END, SYSTEM, USER, ASSISTANT)
PRE = "qwen2"
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(path: Path, size: int, *, people: Population, texts: list[str], seed: int) -> None:
    """Train on a sample of everything the model will read and write it as a tokenizers JSON file."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *world_sample(people, seed)], trainer)
    tokenizer.save(str(path))


def world_sample(people: Population, seed: int) -> list[str]:
    """Texts of the generator, without role tokens."""
    rng = random.Random(seed)
    facts = people.all_facts()
    documents: list[Document] = []
    for _ in range(6_000):
        documents += [known_chat(rng, people, facts), known_text(rng, people), reading_chat(rng)]
    return [text for document in documents for text in plain_parts(document)]


def plain_parts(document: Document) -> list[str]:
    """The document's text between its role tokens."""
    text = "".join(piece for piece, _ in document)
    for token in SPECIAL:
        text = text.replace(token, "\0")
    return [part for part in text.split("\0") if part]
