"""What ember is asked after training: its population's facts, unseen notes, and plain English."""

import math
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import numpy as np
import torch
from documents import ASSISTANT, END, SYSTEM, USER
from drills import Encoded
from frames import by_heart, for_exams, pages_for_exams, some_framed, some_of_page
from net import Ember
from reading import laid_out, notes_of, question_for, some_told
from tokenizers import Tokenizer
from worlds import Fact, Population, read_lists, withheld

from nightschool.answer import UNKNOWN
from nightschool.check import READ
from nightschool.engine import Engine

SLOTS = 8


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


def notes_questions(*, seed: int, count: int, absent: bool = False) -> list[Question]:
    """A question after notes (2–8 facts, 1–4 entities, none seen in training); or one they do not answer."""
    rng = random.Random(f"exam {seed}")
    return [notes_question(rng, absent=absent) for _ in range(count)]


def notes_question(rng: random.Random, *, absent: bool) -> Question:
    """One question in one of the forms that people use."""
    said = some_told(rng, entities=rng.randint(1, 4), facts=rng.randint(2, 8), values=exam_values())
    notes = notes_of(rng, said)
    asked, found = question_for(rng, said, absent=1.0 if absent else 0.0)
    forms = (
        f"{USER}{READ.format(passage=notes, question=asked)}{ASSISTANT}",
        f"{USER}{notes} {asked}{ASSISTANT}",
        f"{SYSTEM}{notes}{USER}{asked}{ASSISTANT}",
        f"{USER}{notes}{ASSISTANT}Thank you. I have read it.{END}{USER}{asked}{ASSISTANT}",
    )
    return Question(rng.choice(forms), found.value if found else UNKNOWN)


def framed_questions(*, seed: int, count: int) -> list[Question]:
    """A question after two to six notes in natural English, of frames that training does not have."""
    rng = random.Random(f"exam {seed}")
    found = []
    for _ in range(count):
        said = some_framed(rng, for_exams(), rng.randint(2, 6))
        asked = rng.choice(said[0].asked)
        notes = notes_of(rng, said)
        prompt = f"{USER}{READ.format(passage=notes, question=rng.choice(asked.questions))}{ASSISTANT}"
        found.append(Question(prompt, asked.value))
    return found


def page_questions(*, seed: int, count: int) -> list[Question]:
    """A question after a whole page of notes, of those that training does not have."""
    rng = random.Random(f"exam {seed}")
    found = []
    for _ in range(count):
        page = rng.choice(pages_for_exams())
        said, _ = some_of_page(rng, page, len(page.frames))
        asked = rng.choice(rng.choice(said).asked)
        notes = laid_out(rng, page.heading, [one.statements[0] for one in said])
        prompt = f"{USER}{READ.format(passage=notes, question=rng.choice(asked.questions))}{ASSISTANT}"
        found.append(Question(prompt, asked.value))
    return found


def heart_questions(known: int, *, seed: int, count: int) -> list[Question]:
    """What is known by heart (`by_heart(known)`), asked in words that training kept back."""
    asked = [(question, wanted) for _, (question, wanted) in by_heart(known) if question]
    picked = random.Random(seed).sample(asked, min(count, len(asked)))
    return [Question(f"{USER}{question}{ASSISTANT}", wanted) for question, wanted in picked]


@cache
def exam_values() -> dict[str, tuple[str, ...]]:
    """Values that no training document has."""
    return read_lists("values_exam.txt")


def answers(engine: Engine, prompts: Sequence[str], *, max_tokens: int = 48) -> list[str]:
    """Greedy replies, several at a time; prompts carry their role tokens."""

    def one(prompt: str) -> str:
        found = engine.complete(prompt, temperature=0.0, max_tokens=max_tokens)
        return str(found["content"]).strip()

    with ThreadPoolExecutor(SLOTS) as pool:
        return list(pool.map(one, prompts))


def right(questions: Sequence[Question], replies: Sequence[str]) -> float:
    """The share of replies that contain what is wanted."""
    found = [q.wanted.lower() in reply.lower() for q, reply in zip(questions, replies, strict=True)]
    return sum(found) / max(1, len(found))


@torch.no_grad()
def drilled(model: Ember, kind: Callable[[random.Random], Encoded], *, count: int = 48) -> float:
    """The share of tokens foreseen in drills of a kind, of those that count."""
    rng = random.Random(1)
    drills = [kind(rng) for _ in range(count)]
    tokens, weights = (torch.from_numpy(np.concatenate(each)) for each in zip(*drills, strict=True))
    hidden = model(tokens, [len(ids) for ids, _ in drills])
    chosen = torch.nonzero(weights)[:, 0]
    found = (hidden[chosen - 1] @ model.embed.weight.T).argmax(-1)
    return float((found == tokens[chosen]).float().mean())


@torch.no_grad()
def bits_per_byte(model: Ember, tokenizer: Tokenizer, texts: Sequence[str], *, length: int = 256) -> float:
    """Bits a byte over texts, each cut into windows of `length` tokens that do not see each other."""
    windows: list[list[int]] = []
    for encoding in tokenizer.encode_batch(list(texts)):
        windows += [encoding.ids[start : start + length] for start in range(0, len(encoding.ids), length)]
    nats = 0.0
    for start in range(0, len(windows), 16):
        some = windows[start : start + 16]
        tokens = torch.tensor([token for window in some for token in window])
        weights = torch.ones(len(tokens))
        weights[torch.tensor([0, *accumulate(map(len, some))][:-1])] = 0.0
        nats += model.loss(tokens, weights, [len(window) for window in some]).item() * weights.sum().item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)
