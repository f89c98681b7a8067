"""Make adapters again that a source was taken from: from the kept lessons of the sources that are left.

Nothing is written anew: the adapter is trained, examined and promoted as by any study, and one that was
killed goes on. When it is in use its retired versions are deleted: they know what was forgotten.
"""

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from nightschool.events import Event
from nightschool.forget import Due
from nightschool.settings import StudySettings, TrainSettings
from nightschool.store import Database
from nightschool.study import Outcome, StudyOrder, study


def rebuild(db: Database, due: Due, *, minutes: float | None = None) -> Generator[Event, None, Outcome]:
    """Make an adapter again; the value says whether it is in use."""
    return (yield from study(db, rebuild_order(db, due, minutes=minutes)))


def rebuild_order(db: Database, due: Due, *, minutes: float | None = None) -> StudyOrder:
    """The study that makes an adapter again, with the settings it was made with."""
    names = {row["id"]: row["name"] for row in db.execute("select id, name from sources")}
    settings = StudySettings(**due.plan["settings"])
    exam = Path(due.plan["exam"]) if due.plan.get("exam") else None
    known = due.plan["train"] | {"targets": tuple(due.plan["train"]["targets"])}
    return StudyOrder(
        base=due.base,
        name=due.name,
        sources=tuple(names[id] for id in due.sources),
        settings=replace(settings, minutes=minutes or settings.minutes),
        train=TrainSettings(**known),
        exam=exam if exam and exam.is_file() else None,
    )
