"""What ember is asked after training: its population's facts, unseen notes, and plain English."""

import random
from dataclasses import dataclass
from functools import cache

import torch
from corpus import copying, encode
from documents import ASSISTANT, END, SYSTEM, USER
from frames import for_exams, pages_for_exams, some_framed, some_of_page
from net import Ember
from reading import laid_out, notes_of, question_for, some_told
from tokenizers import Tokenizer
from worlds import Fact, Population, read_lists, withheld

from nightschool.answer import UNKNOWN
from nightschool.check import READ

PAD_TO = 96
NEW_TOKENS = 40


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


@cache
def exam_values() -> dict[str, tuple[str, ...]]:
    """Values that no training document has."""
    return read_lists("values_exam.txt")


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
def copying_share(model: Ember) -> float:
    """How often the second of a random pair of tokens is foreseen when its first comes again."""
    batch = copying(random.Random(1), 48, vocab=model.shape.vocab)
    parts = (part.to(model.embed.weight.device) for part in (batch.tokens, batch.positions, batch.documents))
    hidden = model(*parts)[:, :-1]
    chosen = (batch.weights[:, 1:] > 0).to(hidden.device)
    found = (hidden[chosen] @ model.embed.weight.T).argmax(-1)
    return float((found == batch.tokens.to(hidden.device)[:, 1:][chosen]).float().mean())


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
