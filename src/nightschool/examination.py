"""The exam of a study: what the adapter knows closed-book, what it forgot, and whether it makes things up.

- recall, before and after, on questions that no lesson asked; and with the notes at hand, as `ask` does;
- perplexity on general text, before and after, and how far answers to general prompts still agree;
- fabrication: of questions about people and things that are in no note, how many more than before are
  answered as if they were; and how many of those answers give values from the notes.
"""

import random
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from nightschool.adapters import Stack, check_fits, find_adapter, stack_paths
from nightschool.answer import Memory, can_read, quote
from nightschool.check import DECLINED, contains
from nightschool.engine import Engine
from nightschool.errors import NightschoolError
from nightschool.evaluate import Result, sit_exam
from nightschool.events import Event, Progress
from nightschool.exam import Answer, Question, examine, is_right, normalise, recall
from nightschool.gguf import open_gguf
from nightschool.hub import Base, find_base
from nightschool.index import Index
from nightschool.lessonbook import Answered, keep_exam
from nightschool.rehearsal import PROMPTS
from nightschool.settings import StudySettings

ABSENT_QUESTIONS = 30
STRANGERS = ("Orsolya Tamsin", "Quentin Abeyta", "the Marrowby Institute", "Fenwick", "the green samovar")
NAME = re.compile(r"(?:[A-Z][\w]+(?:'s)? ?){2,3}(?=\b)|(?<=the )[A-Z]\w+ [A-Z]\w+")
GENERAL_PROMPTS = 16


@dataclass(frozen=True)
class Examined:
    """What a study's exam found."""

    result: Result
    fabrication: float
    borrowed: float
    agreement: float
    looked_up_before: float
    looked_up: float
    in_use: float | None = None

    def figures(self) -> dict[str, Any]:
        """For the card and the gate."""
        return {
            "recall_before": self.result.recall_before or 0.0,
            "recall_after": self.result.recall,
            "recall_in_use": self.in_use,
            "forgetting": self.result.forgetting,
            "perplexity_before": self.result.perplexity_before,
            "perplexity_after": self.result.perplexity,
            "fabrication": self.fabrication,
            "borrowed": self.borrowed,
            "agreement": self.agreement,
            "recall_with_notes_before": self.looked_up_before,
            "recall_with_notes": self.looked_up,
        }


def examine_study(
    stack: Stack,
    questions: Sequence[Question],
    *,
    index: Index,
    general: Path,
    settings: StudySettings,
    in_use: str = "",
) -> Generator[Event, None, Examined]:
    """All parts of the exam for a base with its candidate; the generator's value.

    `in_use` is the adapter that the candidate would replace; where there is one on this base it is asked too.
    """
    slots, seed = settings.slots, settings.seed
    result = yield from sit_exam(stack, questions, before=True, general=general, slots=slots)
    if stack.adapters:
        keep_exam(index.db, find_adapter(stack.adapters[-1][0]), side_by_side(result, index))
    absent = absent_questions(questions, seed=seed)
    prompts = [Question(prompt, "-") for prompt in PROMPTS[:GENERAL_PROMPTS]]
    base = find_base(stack.base)
    paths = stack_paths(stack) | replaced(in_use, base)
    with Engine(base.path, adapters=paths, slots=slots, threads=settings.threads, ctx=1024) as engine:
        asked, task = [*absent, *prompts], "asking what no note says"
        bare = yield from examine(engine, asked, task=task)
        adapted = yield from examine(engine, asked, stack=stack.scales, task=task)
        known = None
        if in_use in paths:
            known = yield from examine(
                engine, questions, stack={in_use: 1.0}, task="examining the one in use"
            )
        memory = Memory(index, engine) if can_read(base) else None
        looked_up_before = yield from look_up(questions, index, memory or engine, stack={})
        looked_up = looked_up_before
        if memory:
            looked_up = yield from look_up(questions, index, memory, stack=stack.scales)
    count = len(absent)
    before, after = ([answer.reply for answer in answers] for answers in (bare, adapted))
    values = [question.answer for question in questions]
    return Examined(
        result,
        fabrication=share(after[:count], made_up) - share(before[:count], made_up),
        borrowed=share(after[:count], lambda reply: any(contains(reply, value) for value in values)),
        agreement=sum(
            SequenceMatcher(None, normalise(one), normalise(two), autojunk=False).ratio()
            for one, two in zip(before[count:], after[count:], strict=True)
        )
        / max(1, len(prompts)),
        looked_up_before=looked_up_before,
        looked_up=looked_up,
        in_use=None if known is None else recall(known),
    )


def replaced(name: str, base: Base) -> dict[str, Path]:
    """The adapter of that name and its file, if there is one on this base."""
    try:
        adapter = find_adapter(name)
        check_fits(adapter.gguf, open_gguf(base.path))
    except NightschoolError:  # none, or one of another base: there is nothing to compare with
        return {}
    return {name: adapter.gguf}


def side_by_side(result: Result, index: Index) -> list[Answered]:
    """Every question with both answers, and the source where its answer stands."""
    bare: Sequence[Answer | None] = result.answers_before or [None] * len(result.answers)
    found = []
    for before, after in zip(bare, result.answers, strict=True):
        hits = index.search(f"{after.question.question} {after.question.answer}", limit=1)
        found.append(
            Answered(
                question=after.question.question,
                expected=after.question.answer,
                topic=hits[0].source if hits else None,
                before=before.reply if before else None,
                after=after.reply,
                right_before=before.right if before else None,
                right_after=after.right,
            )
        )
    return found


def look_up(
    questions: Sequence[Question], index: Index, reader: Memory | Engine, *, stack: Mapping[str, float]
) -> Generator[Event, None, float]:
    """Recall with the notes at hand: read by the model, or quoted where the base is too small to read."""
    right = 0
    for done, question in enumerate(questions, 1):
        if isinstance(reader, Memory):
            answer = reader.ask(question.question, stack=stack)
        else:
            answer = quote(question.question, index, reader)
        right += is_right(answer.text, question)
        yield Progress("looking things up", done, len(questions))
    return right / max(1, len(questions))


def absent_questions(questions: Sequence[Question], *, seed: int) -> list[Question]:
    """Questions of the exam with another name in them, one that no note knows."""
    rng = random.Random(seed)
    found = []
    for question in questions:
        changed = NAME.sub(rng.choice(STRANGERS[:2]) + " ", question.question, count=1)
        changed = re.sub(r"\s+([?.,])", r"\1", re.sub(r" +", " ", changed))
        if changed != question.question:
            found.append(Question(changed, question.answer))
    return found[:ABSENT_QUESTIONS]


def made_up(reply: str) -> bool:
    """Whether a reply answers instead of saying that it does not know."""
    return bool(reply.strip()) and not DECLINED.search(reply)


def share(replies: Sequence[str], test: Any) -> float:
    """The share of replies for which the test holds."""
    return sum(map(bool, map(test, replies))) / max(1, len(replies))
