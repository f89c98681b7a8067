"""What ember is asked after training: its population's facts, unseen notes, and plain English."""

import random
from dataclasses import dataclass

import torch
from corpus import encode
from documents import ASSISTANT, END, USER, reading_chat
from net import Ember
from tokenizers import Tokenizer
from worlds import Fact, Population, withheld

PAD_TO = 96
NEW_TOKENS = 28


@dataclass(frozen=True)
class Question:
    """A prompt with role tokens and what the answer must contain."""

    prompt: str
    wanted: str


def known_questions(people: Population, *, seed: int, count: int, held_out: bool) -> list[Question]:
    """Facts of the population, asked in wordings that training used for them, or in withheld ones."""
    rng = random.Random(seed)
    facts = [fact for fact in people.all_facts() if withheld(fact)]
    picked = rng.sample(facts, count)
    return [Question(prompt(fact, rng, held_out=held_out), fact.value) for fact in picked]


def prompt(fact: Fact, rng: random.Random, *, held_out: bool) -> str:
    """A question for the fact in a withheld or in an open wording."""
    away = withheld(fact)
    wordings = [index for index in range(len(fact.relation.questions)) if (index in away) == held_out]
    return f"{USER}{fact.question(rng.choice(wordings))}{ASSISTANT}"


def reading_questions(*, seed: int, count: int) -> list[Question]:
    """The first question after notes about entities that were never seen."""
    rng = random.Random(seed)
    questions = []
    while len(questions) < count:
        document = reading_chat(rng)
        text = "".join(piece for piece, _ in document)
        head, _, rest = text.partition(f"{ASSISTANT}Thank you. I have read it.{END}")
        start = head + f"{ASSISTANT}Thank you. I have read it.{END}" if rest else ""
        asked, _, reply = (rest or text).partition(ASSISTANT)
        values = [
            piece for piece, weight in document if weight == 1.0 and piece in reply and piece.startswith(" ")
        ]
        if values and reply.index(values[0]) < reply.index(END):
            questions.append(Question(start + asked + ASSISTANT, values[0].strip()))
    return questions


@torch.no_grad()
def generate(model: Ember, tokenizer: Tokenizer, prompts: list[str]) -> list[str]:
    """Greedy answers, all prompts at once, without a cache: fine for a few hundred short ones."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(prompts)]
    end = tokenizer.token_to_id(END)
    longest = max(map(len, rows)) + NEW_TOKENS
    tokens = torch.full((len(rows), longest), end)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    at = torch.tensor([len(ids) for ids in rows])
    for _ in range(NEW_TOKENS):
        width = int(at.max())
        positions = torch.arange(width).expand(len(rows), width)
        hidden = model(tokens[:, :width], positions, torch.zeros_like(positions))  # (N, width, D)
        last = hidden[torch.arange(len(rows)), at - 1]
        tokens[torch.arange(len(rows)), at] = (last @ model.embed.weight.T).argmax(-1)
        at = (at + 1).clamp_max(longest - 1)
    return [
        tokenizer.decode(row[len(ids) :].tolist(), skip_special_tokens=False).split(END)[0]
        for row, ids in zip(tokens, rows, strict=True)
    ]


def score(model: Ember, tokenizer: Tokenizer, questions: list[Question]) -> tuple[float, list[str]]:
    """The share of answers that contain what is wanted, and the answers."""
    answers: list[str] = []
    for start in range(0, len(questions), 64):
        answers += generate(model, tokenizer, [question.prompt for question in questions[start : start + 64]])
    right = [q.wanted.lower() in answer.lower() for q, answer in zip(questions, answers, strict=True)]
    return sum(right) / len(right), answers


@torch.no_grad()
def bits_per_byte(model: Ember, tokenizer: Tokenizer, texts: list[str], *, length: int = 128) -> float:
    """Bits a byte over texts, each cut into windows of `length` tokens that do not see each other."""
    bits, size = 0.0, 0
    for (ids, _), text in zip(encode(tokenizer, [[(text, 1.0)] for text in texts]), texts, strict=True):
        size += len(text.encode())
        for start in range(0, len(ids) - 1, length):
            window = torch.from_numpy(ids[start : start + length + 1])[None]
            positions = torch.arange(window.shape[1])[None]
            zeros = torch.zeros_like(positions)
            loss = model.loss(window, positions, zeros, zeros + 1.0)
            bits += float(loss) * (window.shape[1] - 1) / 0.6931471805599453
    return bits / size
