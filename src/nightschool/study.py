"""Study: what the program was given to remember becomes part of the weights: examined, and gated.

A study is a row of the store that goes through STAGES. Every stage writes its product into the store, a
chunk, a text or a file at a time, and can be done again without harm: a study that was killed anywhere goes
on where it was. Lessons belong to their source: they go when the source goes.

    write      rules and model write items about each chunk; the model answers them with the chunk in view
    divide     near-duplicates go; some questions of each fact are set aside: the exam
    rehearse   the base says things of its own accord, to be learned again beside the lessons
    train      a run as `train` makes it; its adapter is the candidate
    examine    closed-book, before and after; general text; made-up questions
    promote    the candidate takes the adapter's name if it passes the gate; else its card says why not

Ideas: phrasing diversity makes facts extractable (Physics of Language Models 3.1, arXiv:2309.14316); a
model's own answers with the text in view are its best lessons (prompt distillation, arXiv:2412.14964).
"""

import json
import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nightschool.adapters import Adapter, Stack, check_name, find_adapter
from nightschool.engine import Engine
from nightschool.errors import NightschoolError, NotFound
from nightschool.evaluate import Question
from nightschool.events import Event, Notice, Progress
from nightschool.examination import Examined, examine_study
from nightschool.fit import fit_one
from nightschool.gguf import open_gguf
from nightschool.hub import base_hash, find_base
from nightschool.index import Index
from nightschool.lessonbook import Lessonbook, Source, files_of
from nightschool.model import read_config
from nightschool.paths import package_data, write_text
from nightschool.promotion import NEXT, Gate, amend_card, exists, promote
from nightschool.rehearsal import rehearse
from nightschool.runs import Order, Run, carry_out, find_run
from nightschool.settings import StudySettings, TrainSettings
from nightschool.store import Database, get_note, set_note
from nightschool.syllabus import Syllabus, divide, lesson_lines, question_line
from nightschool.teacher import announcement, open_teacher
from nightschool.writer import side_by_side
from nightschool.writing import write_chunk

STAGES = ("write", "divide", "rehearse", "train", "examine", "promote", "done")
DEFAULT_NAME = "notes"
WRITING_SHARE = 0.5  # of the time, at most
TRAINING_SHARE = 0.8  # of what is left then; the rest is for the exam
MIN_EPOCHS = 0.1
CHARACTERS_A_TOKEN = 6.5  # of a line of lessons, the JSON around it included, about
TOKENS_A_REHEARSAL = 100  # what one text of the base gives, about
GENERAL = "demo/general.txt"


@dataclass(frozen=True)
class StudyOrder:
    """What a person asks for; no sources means all that are known."""

    base: str
    name: str = DEFAULT_NAME
    sources: tuple[str, ...] = ()
    settings: StudySettings = StudySettings()
    train: TrainSettings = TrainSettings()
    teacher: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a study ended; `reasons` say why the adapter was not promoted, and are empty where it was."""

    adapter: Adapter | None
    figures: dict[str, Any]
    reasons: tuple[str, ...]

    @property
    def is_promoted(self) -> bool:
        return self.adapter is not None and not self.reasons


def study(db: Database, order: StudyOrder, *, restart: bool = False) -> Generator[Event, None, Outcome]:
    """Do a study to its end, or go on with the unfinished one of the same name and base.

    Raises NightschoolError where there is nothing to study.
    """
    check_name(order.name + NEXT)
    book = Lessonbook(db, base_hash(find_base(order.base).path))
    unfinished = book.unfinished(order.name)
    if unfinished and restart:
        book.finish(unfinished.id)
        unfinished = None
    if unfinished:
        yield Notice(f"Going on with the study of {order.name!r} that stopped at: {unfinished.stage}.")
    night = Night(
        db,
        book,
        order,
        unfinished.id if unfinished else book.begin(order.name, order.base, plan(book, order)),
    )
    while night.stage != "done":
        yield from getattr(night, night.stage)()
        night.stage = STAGES[STAGES.index(night.stage) + 1]
    return night.outcome()


def plan(book: Lessonbook, order: StudyOrder) -> dict[str, Any]:
    """Which sources are studied, with which settings: what a resumed study must not decide again."""
    sources = book.sources(order.sources, learned_by=order.name)
    if not sources:
        raise NightschoolError("There is nothing to study yet: `nightschool remember` some notes first.")
    return {
        "sources": [source.id for source in sources],
        "settings": asdict(order.settings),
        "train": asdict(order.train),
        "teacher": order.teacher,
    }


class Night:
    """One study at work: its stages are methods that yield events; its state is in the store."""

    def __init__(self, db: Database, book: Lessonbook, order: StudyOrder, id: int) -> None:
        self.db, self.book, self.id = db, book, id
        state = book.state(id)
        known = state.plan["train"]
        known["targets"] = tuple(known["targets"])
        self.order = replace(
            order,
            settings=StudySettings(**state.plan["settings"]),
            train=TrainSettings(**known),
            teacher=state.plan["teacher"],
        )
        self.settings = self.order.settings
        self.figures = state.figures
        self._stage = state.stage
        self.started: float = time.monotonic() - self.figures.get("seconds", 0.0)
        self.sources: list[Source] = book.sources_by_id(state.plan["sources"])

    @property
    def stage(self) -> str:
        return self._stage

    @stage.setter
    def stage(self, stage: str) -> None:
        self._stage = stage
        self.note()

    def note(self, **figures: Any) -> None:
        """Keep figures, and the time used so far."""
        self.figures |= figures
        self.figures["seconds"] = round(time.monotonic() - self.started, 1)
        self.book.note(self.id, self._stage, self.figures)

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.settings.minutes * 60 - (time.monotonic() - self.started)

    @property
    def folder(self) -> Path:
        """Where the files of this study lie while it is under way."""
        return files_of(self.id)

    @property
    def candidate(self) -> str:
        return self.order.name + NEXT

    def engine(self) -> Engine:
        """The base, ready to write and answer."""
        base = find_base(self.order.base)
        return Engine(base.path, slots=self.settings.slots, threads=self.settings.threads, ctx=1024)

    # The stages ---------------------------------------------------------------------------------

    def write(self) -> Generator[Event, None, None]:
        """Items for every chunk that this base has not written about; as many as the time allows."""
        new = self.book.unwritten(self.sources)
        if not new:
            return
        yield Notice(f"{len(new)} of {self.book.count_chunks(self.sources)} chunks are new.")
        began, done = time.monotonic(), 0
        with ExitStack() as opened:
            engine = opened.enter_context(self.engine())
            teacher = None
            if self.order.teacher:
                yield Notice(announcement(self.order.teacher))
                teacher = opened.enter_context(
                    open_teacher(self.order.teacher, slots=self.settings.slots, threads=self.settings.threads)
                )
            for chunk in new:
                if done and time.monotonic() - began > self.settings.minutes * 60 * WRITING_SHARE:
                    yield Notice(
                        f"{len(new) - done} chunks wait for the next study: this one's time is short."
                    )
                    break
                verdicts = yield from write_chunk(engine, chunk.text, self.settings, teacher=teacher)
                self.book.keep(chunk, verdicts)
                done += 1
                yield Progress("writing lessons", done, len(new))
        self.note(writing_s=round(time.monotonic() - began, 1), chunks_written=done)

    def divide(self) -> Generator[Event, None, None]:
        """Lessons, exam and development questions; counted."""
        syllabus = self.syllabus()
        self.note(
            lessons_written=self.book.count_items(self.sources),
            lessons_kept=syllabus.count,
            dropped=self.book.reasons(self.sources) | syllabus.dropped,
            facts=len(syllabus.facts),
            exam_questions=len(syllabus.exam),
            dev_questions=len(syllabus.dev),
        )
        if not syllabus.facts:
            raise NightschoolError("Nothing in these sources gave a lesson that passed the check.")
        yield Notice(
            f"{self.figures['lessons_kept']:,} of {self.figures['lessons_written']:,} items kept, about "
            f"{len(syllabus.facts):,} facts; {len(syllabus.exam)} questions set aside as the exam"
        )

    def syllabus(self) -> Syllabus:
        """The division of the kept items; the same items and seed divide the same way."""
        return divide(self.book.items(self.sources), self.settings)

    def rehearse(self) -> Generator[Event, None, None]:
        """Enough of the base's own words for their share of the lessons; those of earlier studies count."""
        lines = lesson_lines(self.syllabus(), self.settings)
        tokens = sum(map(len, lines)) / CHARACTERS_A_TOKEN
        share = self.settings.rehearsal
        wanted = round(tokens * share / (1 - share) / TOKENS_A_REHEARSAL) + 1 if share else 0
        missing = self.book.missing_rehearsals(wanted)
        if not missing:
            return
        with self.engine() as engine:
            for start in range(0, len(missing), 64):
                some = missing[start : start + 64]
                said = yield from side_by_side(
                    lambda number: rehearse(engine, number, seed=self.settings.seed),
                    some,
                    at_once=self.settings.slots,
                    task="rehearsing",
                )
                self.book.keep_rehearsals(zip(some, said, strict=True))

    def train(self) -> Generator[Event, None, None]:
        """A run on the lessons; done already where the candidate is the run's."""
        if "epochs" not in self.figures:  # decided once: a resumed run must be the same one
            self.note(epochs=self.affordable_epochs())
            if self.figures["epochs"] < self.settings.epochs:
                yield Notice(
                    f"The time allows {self.figures['epochs']:.1f} of {self.settings.epochs:g} epochs."
                )
        order = self.training_order()
        run = begun_run(order)
        if exists(self.candidate) and find_adapter(self.candidate).card.get("run") == self.figures.get("run"):
            return
        self.note(run=run.folder.name)
        self.book.note_learned(self.candidate, self.sources)
        adapter = yield from carry_out(order, run)
        set_note(self.db, self.speed_key, str(adapter.card["training"]["tokens_per_s"]))

    def affordable_epochs(self) -> float:
        """How often the lessons can be seen in the time that is left, by this machine's measured speed.

        The speed is that of the last study on this base; before there is one, it is measured.
        """
        lines = lesson_lines(self.syllabus(), self.settings)
        tokens = sum(map(len, lines)) / CHARACTERS_A_TOKEN / (1 - self.settings.rehearsal)
        known = get_note(self.db, self.speed_key)
        if known is None:
            file = open_gguf(find_base(self.order.base).path)
            speed = fit_one(self.order.base, file, read_config(file).layers).tokens_per_s
        else:
            speed = float(known)
        self.note(lesson_tokens=round(tokens), planned_tokens_per_s=round(speed, 1))
        return max(MIN_EPOCHS, min(self.settings.epochs, self.left_s * TRAINING_SHARE * speed / tokens))

    @property
    def speed_key(self) -> str:
        return f"tokens_per_s {self.book.base_hash}"

    def training_order(self) -> Order:
        """The files of the run, written anew where they are missing: the same bytes every time."""
        syllabus = self.syllabus()
        lines = lesson_lines(syllabus, self.settings)
        files = {
            "lessons": lines,
            "dev": [question_line(item) for item in syllabus.dev],
            "rehearsal": [rehearsal_line(*pair) for pair in self.book.rehearsals()],
        }
        paths: dict[str, Path | None] = dict.fromkeys(files)
        for name, texts in files.items():
            if texts:
                path = self.folder / f"{name}.jsonl"
                write_text(path, "\n".join(texts) + "\n")
                paths[name] = path
        lessons = paths["lessons"]
        assert lessons is not None
        asked = self.order.train
        settings = replace(
            asked,
            rank=asked.rank or self.settings.rank,
            lr=asked.lr or self.settings.lr,
            epochs=asked.epochs or self.figures["epochs"],
            rehearsal=self.settings.rehearsal,
            seed=self.settings.seed,
            threads=self.settings.threads,
        )
        return Order(
            base=self.order.base,
            data=(lessons,),
            name=self.candidate,
            settings=settings,
            valid=paths["dev"],
            rehearsal=paths["rehearsal"],
        )

    def examine(self) -> Generator[Event, None, None]:
        """Before and after, on the questions that were set aside."""
        syllabus = self.syllabus()
        questions = [Question(item.question, item.value) for item in syllabus.exam]
        found: Examined = yield from examine_study(
            Stack(self.order.base, ((self.candidate, 1.0),)),
            questions,
            index=Index(self.db),
            general=package_data(GENERAL),
            slots=self.settings.slots,
            seed=self.settings.seed,
        )
        self.note(**found.figures())

    def promote(self) -> Generator[Event, None, None]:
        """The gate. What did not pass stays beside, and its card says why."""
        if not exists(self.candidate):  # promoted a moment before a kill
            self.clear_files()
            return
        training = find_adapter(self.candidate).card.get("training", {})
        self.note(reasons=self.gate().failures(self.figures), training=training)
        amend_card(
            find_adapter(self.candidate),
            study=self.id,
            sources=[{"name": source.label, "hash": source.hash} for source in self.sources],
            exam={key: value for key, value in self.figures.items() if key != "training"},
            promoted=not self.figures["reasons"],
            not_promoted_because=self.figures["reasons"],
        )
        if not self.figures["reasons"]:
            promote(self.db, self.order.name)
        self.clear_files()
        yield Notice("; ".join(self.figures["reasons"]) or f"{self.order.name} is promoted.")

    def gate(self) -> Gate:
        """The limits of this study."""
        return Gate(self.settings.min_gain, self.settings.max_forgetting, self.settings.max_fabrication)

    def clear_files(self) -> None:
        """Remove the lessons' files: the store has them, and forgetting looks nowhere else."""
        if self.folder.is_dir():
            for file in self.folder.iterdir():
                file.unlink()
            self.folder.rmdir()

    def outcome(self) -> Outcome:
        """What came of it."""
        reasons = tuple(self.figures.get("reasons", ()))
        name = self.candidate if reasons else self.order.name
        return Outcome(find_adapter(name) if exists(name) else None, self.figures, reasons)


def begun_run(order: Order) -> Run:
    """The unfinished run of this order, or a new one."""
    try:
        return find_run(order, resume=True)
    except NotFound:
        return find_run(order, replace_old=True)


def rehearsal_line(prompt: str, said: str) -> str:
    """One text of the base as a training example."""
    if not prompt:
        return json.dumps({"text": said}, ensure_ascii=False)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": said}]
    return json.dumps({"messages": messages}, ensure_ascii=False)
