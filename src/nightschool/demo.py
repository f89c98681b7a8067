"""The demonstration: the embedded base is given a page of notes, answers from it, studies it, and knows it.

The notes are about people and things that exist nowhere else. Everything is made from them on the spot, in a
home of its own that is gone afterwards: the index, the lessons, which the base writes itself, the adapter,
which then moves to the shelf. The exam asks in wordings that somebody else wrote and that no lesson has.
Everything runs through the same functions as `remember`, `ask`, `study` and `chat`: nothing here knows more
than a person at the keyboard.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightschool.adapters import Adapter, Stack, find_adapter, stack_paths, whole_folder
from nightschool.answer import Answer, Memory, can_read, quote
from nightschool.engine import Engine
from nightschool.events import Event, Notice, Progress
from nightschool.exam import Question, is_right, load_exam
from nightschool.hub import find_base
from nightschool.index import Index
from nightschool.lessonbook import Answered, read_exam
from nightschool.library import remember
from nightschool.paths import adapters_dir, package_data
from nightschool.promotion import amend_card
from nightschool.receipt import Meter, Receipt
from nightschool.settings import StudySettings
from nightschool.store import Database, open_store
from nightschool.study import StudyOrder, study

BASE, NAME = "ember", "demo"
SHOWN = 5
SETTINGS = StudySettings(minutes=10.0, steps=160, by_words=8)
CHAT = ("Hello! Who are you?", "What does Hester Quillby do for a living?", "And what is Bodkin afraid of?")


@dataclass(frozen=True)
class Asked:
    """A question of the exam with the answer that was looked up."""

    question: Question
    answer: Answer

    @property
    def right(self) -> bool:
        return is_right(self.answer.text, self.question)


@dataclass(frozen=True)
class Findings:
    """What was found; `exam` has every question with both answers, `figures` are the study's."""

    remember_s: float
    chunks: int
    asked: list[Asked]
    exam: list[Answered]
    figures: dict[str, Any]
    chat: list[tuple[str, str]]
    adapter: Adapter
    receipt: Receipt

    @property
    def shown(self) -> list[Answered]:
        """Questions spread over the exam: not the best ones, the ones that fall there."""
        return spread(self.exam)

    def as_json(self) -> dict[str, Any]:
        """The figures, for programs."""
        training = self.adapter.card["training"]
        return {
            "remember_s": self.remember_s,
            "ask_recall": sum(each.right for each in self.asked) / max(1, len(self.asked)),
            "lessons_written": self.figures["lessons_written"],
            "lessons_kept": self.figures["lessons_kept"],
            "recall_before": self.figures["recall_before"],
            "recall_after": self.figures["recall_after"],
            "forgetting": self.figures["forgetting"],
            "fabrication": self.figures["fabrication"],
            "promoted": not self.figures["reasons"],
            "write_s": self.figures["writing_s"],
            "study_s": self.figures["seconds"],
            "train_s": training["seconds"],
            "train_tokens": training["tokens"],
            "train_tokens_per_s": training["tokens_per_s"],
            "total_s": self.receipt.seconds,
            "peak_rss_bytes": self.receipt.peak_rss_bytes,
            "energy_j": self.receipt.energy_j,
            "cost_eur": self.receipt.cost_eur,
            "adapter": str(self.adapter.folder),
        }


def notes() -> Path:
    """The page that is taught."""
    return package_data("demo/notes.md")


def spread(things: Sequence[Any], count: int = SHOWN) -> list[Any]:
    """So many of them, evenly spaced."""
    return list(things[:: max(1, len(things) // count)][:count])


def demonstrate() -> Generator[Event, None, Findings]:
    """Remember, ask, study, examine, chat; the generator's value is what was found."""
    meter = Meter()
    questions = package_data("demo/exam.jsonl")
    with home_of_its_own() as shelf:
        db = open_store()
        began = time.perf_counter()
        remembered = yield from remember(db, [notes()])
        remember_s = time.perf_counter() - began
        asked = yield from look_up(db, load_exam(questions))
        order = StudyOrder(BASE, name=NAME, settings=SETTINGS, exam=questions)
        outcome = yield from study(db, order)
        assert outcome.adapter is not None
        exam = read_exam(db, outcome.adapter)
        adapter = moved(outcome.adapter, shelf / NAME)
        db.close()
    chat = yield from talk()
    return Findings(
        remember_s, remembered.chunks, asked, exam, outcome.figures, chat, adapter, meter.receipt()
    )


@contextmanager
def home_of_its_own() -> Iterator[Path]:
    """A fresh home for the block, gone after it; gives the shelf of the person's own."""
    shelf, before = adapters_dir(), os.environ.get("NIGHTSCHOOL_HOME")
    with tempfile.TemporaryDirectory(prefix="nightschool-demo-") as folder:
        os.environ["NIGHTSCHOOL_HOME"] = folder
        try:
            yield shelf
        finally:
            if before is None:
                del os.environ["NIGHTSCHOOL_HOME"]
            else:
                os.environ["NIGHTSCHOOL_HOME"] = before


def look_up(db: Database, questions: Sequence[Question]) -> Generator[Event, None, list[Asked]]:
    """The exam with the notes at hand, as `ask` answers it."""
    index, base = Index(db), find_base(BASE)
    with Engine(base.path) as engine:
        memory = Memory(index, engine) if can_read(base) else None
        asked = []
        for question in questions:
            text = question.question
            asked.append(
                Asked(question, memory.ask(text, stack={}) if memory else quote(text, index, engine))
            )
            yield Progress("asking", len(asked), len(questions))
    for each in spread(asked, 2):
        cited = each.answer.citations[0] if each.answer.citations else "nothing cited"
        yield Notice(f"{each.question.question}  {each.answer.text}  {cited}")
    return asked


def moved(adapter: Adapter, target: Path) -> Adapter:
    """Put the studied adapter on the person's shelf, in place of an earlier demonstration's."""
    with whole_folder(target) as draft:
        shutil.copytree(adapter.folder, draft, dirs_exist_ok=True)
    # Its sources and its study were those of the home that is gone.
    return amend_card(Adapter(NAME, target, adapter.card), study=None, sources=[{"name": notes().name}])


def talk() -> Generator[Event, None, list[tuple[str, str]]]:
    """A short chat with the base and what it has learned."""
    stack = Stack(BASE, ((find_adapter(NAME).name, 1.0),))
    said = []
    with Engine(find_base(BASE).path, adapters=stack_paths(stack)) as engine:
        for text in CHAT:
            messages = [{"role": "user", "content": text}]
            reply = engine.chat(messages, stack=stack.scales, temperature=0.0, max_tokens=48)
            said.append((text, reply.strip()))
            yield Progress("chatting", len(said), len(CHAT))
    return said
