"""Study: what the program was given to remember becomes part of the weights: examined, and gated.

A study is a row of the store that goes through STAGES. Every stage writes its product into the store, a
chunk, a text or a file at a time, and can be done again without harm: a study that was killed anywhere goes
on where it was. Lessons belong to their source: they go when the source goes.

    write      rules and model write items about each chunk; the model answers them with the chunk in view
    divide     near-duplicates go; some questions of each fact are set aside: the exam
    rehearse   the base says things of its own accord, to be learned again beside the lessons
    distil     the base reads the passages once more: what it expects at every word of the lessons' answers
    train      a run as `train` makes it; its adapter is the candidate
    examine    closed-book, before and after; general text; made-up questions
    promote    the candidate takes the adapter's name if it passes the gate; else its card says why not

Time is kept at every stage: what writing, rehearsing and reading leave undone waits or is left out, training
slows down and ends, and the exam comes in time.

Ideas: phrasing diversity makes facts extractable (Physics of Language Models 3.1, arXiv:2309.14316); a
model's own answers with the text in view are its best lessons (prompt distillation, arXiv:2412.14964).
"""

import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nightschool.adapters import Adapter, Stack, check_name, find_adapter
from nightschool.check import READ, gist
from nightschool.decoders import read_config
from nightschool.distil import Reading, expect, prepare
from nightschool.engine import Engine
from nightschool.errors import NightschoolError, NotFound
from nightschool.events import Event, Notice, Progress, result_of
from nightschool.exam import Question, load_exam
from nightschool.examination import Examined, examine_study
from nightschool.fit import fit_one
from nightschool.forget import remove_retired
from nightschool.gguf import open_gguf
from nightschool.hub import base_hash, find_base
from nightschool.index import Index
from nightschool.lessonbook import Lessonbook, Source, clear_files, files_of
from nightschool.pace import (
    BATCH_TOKENS,
    MIN_TRAINING_S,
    PREPARING_SHARE,
    STOPPING_SHARE,
    TRAINING_SHARE,
    WRITING_SHARE,
    epochs_in,
    wanted_epochs,
)
from nightschool.parallel import side_by_side
from nightschool.paths import package_data, write_text
from nightschool.precision import load_model
from nightschool.promotion import NEXT, Gate, amend_card, due_key, exists, promote, tidy
from nightschool.rehearsal import rehearse
from nightschool.runs import DEFAULT_MAX_TOKENS, Order, Run, carry_out, find_run
from nightschool.settings import StudySettings, TrainSettings
from nightschool.store import Database, get_note, set_note
from nightschool.syllabus import Syllabus, Taught, divide_in_turn, lessons, question_line, some_lessons
from nightschool.teacher import announcement, open_teacher
from nightschool.train import Deadline
from nightschool.writing import write_chunk

STAGES = ("write", "divide", "rehearse", "distil", "train", "examine", "promote", "done")
DEFAULT_NAME = "notes"
MEASURE_EPOCHS = 0.5
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
    exam: Path | None = None  # questions of the person's own, in place of those that are set aside


@dataclass(frozen=True)
class Outcome:
    """How a study ended; `reasons` say why the adapter was not promoted, and are empty where it was."""

    adapter: Adapter | None
    figures: dict[str, Any]
    reasons: tuple[str, ...]

    @property
    def is_promoted(self) -> bool:
        return self.adapter is not None and not self.reasons


def study(
    db: Database,
    order: StudyOrder,
    *,
    restart: bool = False,
    now: Callable[[], float] = time.monotonic,
) -> Generator[Event, None, Outcome]:
    """Do a study to its end, or go on with the unfinished one of the same name and base.

    `now` is a clock for speeds, which may stand still while the work is held up; what time is left is another
    question.

    Raises NightschoolError where there is nothing to study.
    """
    check_name(order.name + NEXT)
    book = Lessonbook(db, base_hash(find_base(order.base).path))
    unfinished = book.unfinished(order.name)
    if unfinished and restart:
        book.finish(unfinished.id)
        clear_files(unfinished)
        unfinished = None
    if unfinished:
        yield Notice(f"Going on with the study of {order.name!r} that stopped at: {unfinished.stage}.")
    night = Night(
        db,
        book,
        order,
        unfinished.id if unfinished else book.begin(order.name, order.base, plan(book, order)),
        now=now,
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
    if order.exam:
        load_exam(order.exam)
    earlier = taught_before(book, order, sources)
    known = {id for generation in earlier for id in generation}
    return {
        "sources": [source.id for source in sources],
        "generations": [*earlier, [source.id for source in sources if source.id not in known]],
        "settings": asdict(order.settings),
        "train": asdict(order.train),
        "teacher": order.teacher,
        "exam": str(order.exam.resolve()) if order.exam else None,
    }


def taught_before(book: Lessonbook, order: StudyOrder, sources: Sequence[Source]) -> list[list[int]]:
    """The sources that the adapter in use learned, study by study, if a study may go on from there.

    None where there is nothing new, where one of them has changed or is gone, or was not written about to
    its end, or where questions were set aside in another way.
    """
    if not exists(order.name) or order.exam:
        return []
    card = find_adapter(order.name).card
    past = book.past(card.get("study"))
    if past is None or past.plan.get("exam") or card.get("rank") != (order.train.rank or order.settings.rank):
        return []
    before: list[list[int]] = past.plan.get("generations") or [past.plan["sources"]]
    ids = {id for generation in before for id in generation}
    learned, now = book.learned(order.name), {source.id: source.hash for source in sources}
    same = all(id in now and learned.get(id) == now[id] for id in ids)
    settled = not book.unwritten([source for source in sources if source.id in ids])
    then, wanted = StudySettings(**past.plan["settings"]), order.settings
    alike = all(getattr(then, name) == getattr(wanted, name) for name in ("exam", "dev", "seed"))
    return before if same and settled and alike and len(ids) < len(sources) else []


class Night:
    """One study at work: its stages are methods that yield events; its state is in the store."""

    def __init__(
        self,
        db: Database,
        book: Lessonbook,
        order: StudyOrder,
        id: int,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.db, self.book, self.id, self.now = db, book, id, now
        state = book.state(id)
        known = state.plan["train"]
        known["targets"] = tuple(known["targets"])
        # Everything is as it was planned, but the time: that is what this sitting has.
        self.settings = replace(StudySettings(**state.plan["settings"]), minutes=order.settings.minutes)
        self.order = replace(
            order,
            settings=self.settings,
            train=TrainSettings(**known),
            teacher=state.plan["teacher"],
            exam=Path(state.plan["exam"]) if state.plan.get("exam") else None,
        )
        self.figures = state.figures
        self._stage = state.stage
        self._syllabus: Syllabus | None = None
        self.began_s = time.monotonic()
        self.before_s = float(self.figures.get("seconds", 0.0))
        self.sources: list[Source] = book.sources_by_id(state.plan["sources"])
        there = {source.id for source in self.sources}
        before: list[list[int]] = state.plan.get("generations") or [state.plan["sources"]]
        self.generations = [[id for id in generation if id in there] for generation in before]

    @property
    def stage(self) -> str:
        return self._stage

    @stage.setter
    def stage(self, stage: str) -> None:
        self._stage = stage
        self._syllabus = None  # a source may be forgotten meanwhile
        self.note()

    def note(self, **figures: Any) -> None:
        """Keep figures, and the time used so far."""
        self.figures |= figures
        self.figures["seconds"] = round(self.before_s + time.monotonic() - self.began_s, 1)
        self.book.note(self.id, self._stage, self.figures)

    @property
    def left_s(self) -> float:
        """Seconds that are left of this sitting's time."""
        return self.settings.minutes * 60 - (time.monotonic() - self.began_s)

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
        began, began_work, done, words = time.monotonic(), self.now(), 0, 0
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
                said = [f"{verdict.item.question} {verdict.item.answer}" for verdict in verdicts]
                words += sum(map(len, engine.tokenize_many(said)))
                done += 1
                yield Progress("writing lessons", done, len(new))
        seconds = self.now() - began_work
        self.note(
            writing_s=round(self.figures.get("writing_s", 0.0) + seconds, 1),
            chunks_written=self.figures.get("chunks_written", 0) + done,
            written_tokens_per_s=round(words / max(seconds, 1e-9), 1),
        )

    def divide(self) -> Generator[Event, None, None]:
        """Lessons, exam and development questions; counted. And whether there is time to teach them all."""
        yield from self.dividing()
        syllabus = self.syllabus()
        questions = self.questions()
        self.note(
            lessons_written=self.book.count_items(self.sources),
            lessons_kept=syllabus.count,
            dropped=added(self.book.reasons(self.sources), syllabus.dropped),
            facts=len(syllabus.facts) + len(syllabus.earlier),
            exam_questions=len(questions),
            dev_questions=len(syllabus.dev),
        )
        if not syllabus.facts:
            raise NightschoolError("Nothing in these sources gave a lesson that passed the check.")
        yield Notice(
            f"{self.figures['lessons_kept']:,} of {self.figures['lessons_written']:,} items kept, about "
            f"{self.figures['facts']:,} facts; {len(questions)} questions in the exam"
        )
        speed = self.speed()
        tokens = self.training_tokens()
        everything = tokens * wanted_epochs(self.settings, tokens)
        goes_on = bool(syllabus.earlier) and everything > self.left_s * TRAINING_SHARE * speed
        self.note(goes_on=goes_on)
        self.note(lesson_tokens=round(self.training_tokens()), planned_tokens_per_s=round(speed, 1))
        if goes_on:
            yield Notice(
                f"There is no time to learn everything anew: {self.order.name} goes on learning, with "
                f"{self.settings.earlier:.0%} of the lessons from what it knows."
            )

    def syllabus(self) -> Syllabus:
        """The division of the kept items; made once a stage."""
        if self._syllabus is None:
            result_of(self.dividing())
        assert self._syllabus is not None
        return self._syllabus

    def dividing(self) -> Generator[Event, None, None]:
        """Divide the kept items; the same items and seed divide the same way. Many take their time."""
        settings, reserved = self.settings, frozenset[str]()
        if self.order.exam:
            settings = replace(settings, exam=0)
            reserved = frozenset(gist(question.question) for question in load_exam(self.order.exam))
        by_id = {source.id: source for source in self.sources}
        items = [self.book.items([by_id[id] for id in generation]) for generation in self.generations]
        self._syllabus = yield from divide_in_turn(items, settings, reserved=reserved)

    def questions(self) -> list[Question]:
        """The exam: the person's own, or the questions that were set aside."""
        if self.order.exam:
            return load_exam(self.order.exam)
        return [Question(item.question, item.value) for item in self.syllabus().exam]

    def lessons(self) -> list[Taught]:
        """What is taught tonight: everything, or what is new with a share of what was taught before."""
        syllabus, share = self.syllabus(), self.settings.earlier
        new = lessons(syllabus.facts, self.settings)
        if not self.figures.get("goes_on"):
            return new + lessons(syllabus.earlier, self.settings)
        characters = sum(len(each.line) for each in new) * share / max(1 - share, 0.01)
        return new + some_lessons(syllabus.earlier, self.settings, characters=characters)

    def training_tokens(self) -> float:
        """About how many tokens are trained on in an epoch, rehearsal included."""
        return (
            sum(len(each.line) for each in self.lessons())
            / CHARACTERS_A_TOKEN
            / (1 - self.settings.rehearsal)
        )

    def speed(self) -> float:
        """Tokens trained a second, as in the last study on this base; measured before there is one."""
        known = get_note(self.db, self.speed_key)
        if known is not None:
            return float(known)
        file = open_gguf(find_base(self.order.base).path)
        return fit_one(self.order.base, file, read_config(file).layers).tokens_per_s

    def rehearse(self) -> Generator[Event, None, None]:
        """Enough of the base's own words for their share of the lessons; those of earlier studies count."""
        yield from self.dividing()
        share = self.settings.rehearsal
        wanted = round(self.training_tokens() * share / TOKENS_A_REHEARSAL) + 1 if share else 0
        missing = self.book.missing_rehearsals(wanted)
        if not missing:
            return
        over_s = time.monotonic() + self.left_s * PREPARING_SHARE
        with self.engine() as engine:
            for start in range(0, len(missing), 64):
                if start and time.monotonic() > over_s:  # fewer texts do, they come round more often
                    break
                some = missing[start : start + 64]
                said = yield from side_by_side(
                    lambda number: rehearse(engine, number, seed=self.settings.seed),
                    some,
                    at_once=self.settings.slots,
                    task="rehearsing",
                )
                self.book.keep_rehearsals(zip(some, said, strict=True))

    def distil(self) -> Generator[Event, None, None]:
        """What the base expects when it reads, for as many lessons as there is time for."""
        if not self.settings.distil:
            return
        yield from self.dividing()
        readings = [
            Reading(each.question, each.answer, READ.format(passage=each.passage, question=each.question))
            for each in self.lessons()
        ]
        over_s = time.monotonic() + max(self.left_s * PREPARING_SHARE, MIN_TRAINING_S)
        began_work = self.now()
        file = open_gguf(find_base(self.order.base).path)
        with self.engine() as engine:
            limit = min(self.order.train.max_tokens or DEFAULT_MAX_TOKENS, read_config(file).context)
            pairs = yield from prepare(engine, readings, max_tokens=limit)
            ctx = engine.settings.ctx
        if not pairs:
            return
        settings = replace(self.order.train, threads=self.settings.threads)
        model = yield from load_model(file, [asked for asked, _ in pairs], settings, ctx=ctx)
        with closing(expect(model, pairs, self.expected, top=self.settings.distil_top)) as events:
            for event in events:
                yield event
                if time.monotonic() > over_s:
                    yield Notice("Time is short: the teacher has read a part of the lessons only.")
                    break
        self.note(reading_s=round(self.figures.get("reading_s", 0.0) + self.now() - began_work, 1))

    @property
    def expected(self) -> Path:
        """What the teacher expects, while the study is under way."""
        return self.folder / "expected.npz"

    def train(self) -> Generator[Event, None, None]:
        """A run on the lessons; done already where the candidate is the run's."""
        yield from self.dividing()
        left_s = max(self.left_s, MIN_TRAINING_S)
        now = time.monotonic()
        deadline = Deadline(now + left_s * TRAINING_SHARE, now + left_s * STOPPING_SHARE)
        if "epochs" not in self.figures:  # decided once: a resumed run must be the same one
            tokens = self.training_tokens()
            wanted = wanted_epochs(self.settings, tokens)
            epochs = epochs_in(left_s, self.settings, tokens, tokens_per_s=self.speed())
            self.note(epochs=round(epochs, 2))
            if epochs < wanted:
                yield Notice(f"The time allows {self.figures['epochs']:.1f} of {wanted:.1f} epochs.")
        if exists(self.candidate) and find_adapter(self.candidate).card.get("run") == self.figures.get("run"):
            return
        order = self.training_order()
        run = begun_run(order)
        self.note(run=run.folder.name)
        self.book.note_learned(self.candidate, self.sources)
        adapter = yield from carry_out(order, run, deadline=deadline, now=self.now)
        training = adapter.card["training"]
        if training["steps"]:
            set_note(self.db, self.speed_key, str(training["tokens_per_s"]))

    @property
    def speed_key(self) -> str:
        return f"tokens_per_s {self.book.base_hash}"

    def training_order(self) -> Order:
        """The files of the run, written anew where they are missing: the same bytes every time."""
        files = {
            "lessons": [each.line for each in self.lessons()],
            "dev": [question_line(item) for item in self.syllabus().dev],
            "rehearsal": [rehearsal_line(*pair) for pair in self.book.rehearsals()],
        }
        paths: dict[str, Path | None] = dict.fromkeys(files)
        for name, texts in files.items():
            if texts:
                path = self.folder / f"{name}.jsonl"
                write_text(path, "\n".join(texts) + "\n")
                paths[name] = path
        data = paths["lessons"]
        assert data is not None
        asked = self.order.train
        settings = replace(
            asked,
            rank=asked.rank or self.settings.rank,
            lr=asked.lr or self.settings.lr,
            epochs=asked.epochs or self.figures["epochs"],
            batch_tokens=asked.batch_tokens or BATCH_TOKENS,
            rehearsal=self.settings.rehearsal,
            seed=self.settings.seed,
            threads=self.settings.threads,
            patience=asked.patience or self.settings.patience,
            measure_epochs=MEASURE_EPOCHS,
        )
        return Order(
            base=self.order.base,
            data=(data,),
            name=self.candidate,
            settings=settings,
            valid=paths["dev"],
            rehearsal=paths["rehearsal"],
            expected=self.expected if self.expected.exists() else None,
            distil=self.settings.distil,
            start=self.order.name if self.figures.get("goes_on") else None,
        )

    def examine(self) -> Generator[Event, None, None]:
        """Before and after, on the questions that were set aside."""
        yield from self.dividing()
        found: Examined = yield from examine_study(
            Stack(self.order.base, ((self.candidate, 1.0),)),
            self.questions(),
            index=Index(self.db),
            general=package_data(GENERAL),
            settings=self.settings,
            in_use=self.order.name,
        )
        self.note(**found.figures())

    def promote(self) -> Generator[Event, None, None]:
        """The gate. What did not pass stays beside, and its card says why."""
        if not exists(self.candidate):  # promoted a moment before a kill
            tidy(self.db, self.order.name)
            self.settle()
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
            self.settle()
        self.clear_files()
        yield Notice("; ".join(self.figures["reasons"]) or f"{self.order.name} is promoted.")

    def settle(self) -> None:
        """Where the adapter had to be made again: it is, and its retired versions know what was forgotten."""
        if get_note(self.db, due_key(self.order.name)) is not None:
            remove_retired(self.order.name)
            set_note(self.db, due_key(self.order.name), None)

    def gate(self) -> Gate:
        """The limits of this study."""
        return Gate(self.settings.min_gain, self.settings.max_forgetting, self.settings.max_fabrication)

    def clear_files(self) -> None:
        """Remove the lessons' files: the store has them, and forgetting looks nowhere else."""
        clear_files(self.book.state(self.id))

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


def added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """Counts of both."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
