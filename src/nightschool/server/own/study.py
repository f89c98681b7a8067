"""Studies: what one would do now, and putting one into the queue.

The spec of a job of kind "study" or "rebuild" is study.StudyOrder's fields, `restart`, and `until`: the
moment by which it is to be done, in seconds since 1970.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from fastapi import APIRouter

from nightschool import jobs
from nightschool.errors import NightschoolError
from nightschool.forget import read_due
from nightschool.hub import Base, base_hash, describe
from nightschool.lessonbook import Lessonbook
from nightschool.library import Source, list_sources
from nightschool.pace import MIN_TRAINING_S, PREPARING_SHARE, WRITING_SHARE, epochs_in, wanted_epochs
from nightschool.server.database import Store
from nightschool.server.models import resolve
from nightschool.server.own import shapes
from nightschool.server.own.jobs import shown, wake
from nightschool.server.problems import ApiError
from nightschool.server.state import Here, State
from nightschool.settings import StudySettings
from nightschool.store import Database, get_note

STOP_LIMIT_S, STOP_WAIT_S = 60.0, 0.05
# Where no study on a base was ever finished: what ember's took (bench/RESULTS.md), by parameters.
TOKENS_A_CHUNK = 2500
WRITING_S = 1.5  # a chunk, by a base of EMBER_PARAMETERS
TOKENS_A_SECOND = 3000.0  # trained
EXAM_S = 30.0
EMBER_PARAMETERS = 5.6e6

router = APIRouter()


@dataclass(frozen=True)
class Speeds:
    """What a study on a base takes; `measured`: by an earlier one."""

    tokens_a_chunk: float
    writing_s: float  # a chunk
    reading_tokens_per_s: float  # of lessons that the teacher reads with their passages
    tokens_per_s: float  # trained
    exam_s: float  # and what else there is
    measured: bool


@router.post("/study/plan")
def study_plan(order: shapes.StudyOrder, here: Here, db: Store) -> shapes.StudyPlan:
    """Say what this very order would do now, and about how long it would take."""
    base = base_of(order.base, here)
    book = Lessonbook(db, base_hash(base.path))
    spec = spec_of(order, list_sources(db))
    settings = StudySettings(**spec["settings"])
    if spec["until"] is not None:
        settings = replace(settings, minutes=(spec["until"] - time.time()) / 60)
    sources = book.sources(spec["sources"], learned_by=order.name)
    unfinished = book.unfinished(order.name)
    if unfinished and not order.restart:  # it goes on as it was planned, but for the time
        sources = book.sources_by_id(unfinished.plan["sources"])
        settings = replace(StudySettings(**unfinished.plan["settings"]), minutes=settings.minutes)
    chunks, new = book.count_chunks(sources), len(book.unwritten(sources))
    speeds = speeds_of(db, book, base)
    forecast = foresee(settings, speeds, chunks=chunks, new=new)
    return shapes.StudyPlan(
        sources=len(sources),
        chunks=chunks,
        new_chunks=new,
        lesson_tokens=forecast.tokens,
        minutes=round(settings.minutes, 1),
        expected_minutes=round(forecast.seconds / 60, 1),
        epochs=round(forecast.epochs, 2),
        waits=forecast.waits,
        measured=speeds.measured,
        unfinished=unfinished is not None,
    )


@dataclass(frozen=True)
class Forecast:
    """What comes of a study, about; `waits`: chunks that are not written about in the time."""

    tokens: int
    epochs: float
    seconds: float
    waits: int


def foresee(settings: StudySettings, speeds: Speeds, *, chunks: int, new: int) -> Forecast:
    """Go through the stages of a study of so many chunks, `new` of them not written about yet."""
    budget_s = settings.minutes * 60
    written = min(new, max(1, int(budget_s * WRITING_SHARE / speeds.writing_s)))
    tokens = round((chunks - new + written) * speeds.tokens_a_chunk)
    if not tokens:
        return Forecast(0, wanted_epochs(settings, 1), 0.0, 0)
    preparing_s = written * speeds.writing_s
    if settings.distil:
        most_s = max((budget_s - preparing_s) * PREPARING_SHARE, MIN_TRAINING_S)
        preparing_s += min(tokens / speeds.reading_tokens_per_s, most_s)
    epochs = epochs_in(budget_s - preparing_s, settings, tokens, tokens_per_s=speeds.tokens_per_s)
    seconds = preparing_s + tokens * epochs / speeds.tokens_per_s + speeds.exam_s
    return Forecast(tokens, epochs, min(seconds, budget_s), new - written)


def base_of(name: str | None, here: State) -> Base:
    """The base a request means: the server's own where it names none. Raises ApiError for a stack."""
    target = resolve(name or here.settings.model)
    if name and target.adapters:
        raise ApiError(400, f"{name!r} is a stack: a study needs a base alone.", param="base")
    return target.base


def speeds_of(db: Database, book: Lessonbook, base: Base) -> Speeds:
    """What earlier studies on a base took, or a guess from its size where there was none."""
    size = describe(base).parameters / EMBER_PARAMETERS
    trained = TOKENS_A_SECOND / size
    # A pass over a lesson with its passage takes about as long as a step of training on the lesson alone.
    guess = Speeds(TOKENS_A_CHUNK, WRITING_S * max(1.0, size), trained, trained, EXAM_S * size, False)
    known = get_note(db, f"tokens_per_s {book.base_hash}")
    row = db.execute(
        "select plan, figures from studies where base_hash = ? and stage = 'done'"
        " and json_extract(figures, '$.lesson_tokens') is not null order by id desc",
        (book.base_hash,),
    ).fetchone()
    if known is None or row is None:
        return guess
    figures, planned = json.loads(row["figures"]), json.loads(row["plan"])
    chunks = book.count_chunks(book.sources_by_id(planned["sources"]))
    written, writing_s = figures.get("chunks_written", 0), figures.get("writing_s", 0.0)
    training_s = figures.get("training", {}).get("seconds", 0.0)
    reading_s = figures.get("reading_s", 0.0)
    return Speeds(
        tokens_a_chunk=figures["lesson_tokens"] / chunks if chunks else guess.tokens_a_chunk,
        writing_s=max(1e-3, writing_s / written) if written else guess.writing_s,
        reading_tokens_per_s=figures["lesson_tokens"] / reading_s if reading_s else float(known),
        tokens_per_s=float(known),
        exam_s=max(1.0, figures.get("seconds", 0.0) - writing_s - reading_s - training_s),
        measured=True,
    )


# Into the queue -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """A study to queue."""

    name: str
    model: str
    spec: dict[str, Any]
    kind: str = jobs.STUDY


@router.post("/study")
def study(order: shapes.StudyOrder, here: Here, db: Store) -> shapes.Job:
    """Queue a study: lessons are written and checked, an adapter is trained, examined, and put to use."""
    base = base_of(order.base, here)
    known = list_sources(db)
    spec = spec_of(order, known)
    if not known:
        raise NightschoolError("There is nothing to study yet: remember some notes first.")
    (job,) = queue_again(db, here, [Wanted(order.name, base.name, spec)])
    return shown(db, job)


def spec_of(order: shapes.StudyOrder, known: Sequence[Source]) -> dict[str, Any]:
    """What the job is told to do. Raises ApiError for what does not go together, or is not there."""
    if order.minutes is not None and order.until is not None:
        raise ApiError(400, "Give `minutes` or `until`, not both.", param="until")
    return {
        "sources": [] if order.sources is None else named(order.sources, known),
        "settings": {} if order.minutes is None else {"minutes": order.minutes},
        "until": when(order.until, datetime.now()).timestamp() if order.until else None,
        "restart": order.restart,
    }


def named(wanted: Sequence[int | str], known: Sequence[Source]) -> list[str]:
    """Names of sources, by id or label. Raises ApiError 404 for one that is not there."""
    found = []
    for each in wanted:
        match = next((source for source in known if each in (source.id, source.label)), None)
        if match is None:
            raise ApiError(404, f"There is no source {each!r}.", param="sources", code="not_found")
        found.append(match.name)
    if not found:
        raise ApiError(400, "Name at least one source, or leave `sources` away for all.", param="sources")
    return found


def when(text: str, now: datetime) -> datetime:
    """When the clock next shows HH:MM."""
    hour, minute = (int(part) for part in text.split(":"))
    then = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return then if then > now else then + timedelta(days=1)


def queue_again(db: Database, here: State, wanted: Sequence[Wanted]) -> list[jobs.Job]:
    """Queue studies, and have the supervisor look."""
    queued = [jobs.add(db, each.kind, name=each.name, model=each.model, spec=each.spec) for each in wanted]
    if queued:
        wake(here)
    return queued


# When a source is forgotten -----------------------------------------------------------------------


def cancel_studies(db: Database, here: State, source: Source) -> list[Wanted]:
    """End the studies, queued or under way, that would learn from a source; as they would be without it.

    Waits until the one under way has stopped: its files go with the source.
    """
    others = [each.name for each in list_sources(db) if each.id != source.id]
    ended, again = [], []
    for job in jobs.list_jobs(db):
        names = job.spec.get("sources", [])
        is_study = job.kind in (jobs.STUDY, jobs.REBUILD)
        if not is_study or job.is_finished or (names and source.name not in names):
            continue
        jobs.ask(db, job.id, jobs.CANCEL)
        ended.append(job.id)
        left = [name for name in names if name != source.name]
        if left or (not names and others):
            spec = {**job.spec, "sources": left, "restart": True}
            again.append(Wanted(job.name, job.model, spec, job.kind))
    wake(here)
    _wait_for(db, ended)
    return again[::-1]  # they were listed newest first


def _wait_for(db: Database, ids: Sequence[str]) -> None:
    end = time.monotonic() + STOP_LIMIT_S
    while any(not jobs.find(db, id).is_finished for id in ids):
        if time.monotonic() > end:
            raise ApiError(
                409, "A study that learns from it does not stop: pause or cancel it, and try again."
            )
        time.sleep(STOP_WAIT_S)


def rebuilding(db: Database, names: Sequence[str]) -> list[Wanted]:
    """The studies that make adapters again from the sources that are left, as they were made before."""
    known = {source.id: source.name for source in list_sources(db)}
    wanted = []
    for due in filter(None, (read_due(db, name) for name in names)):
        spec = {
            "sources": [known[id] for id in due.sources if id in known],
            "settings": due.plan["settings"],
            "train": due.plan["train"],
        }
        wanted.append(Wanted(due.name, due.base, spec, jobs.REBUILD))
    return wanted
