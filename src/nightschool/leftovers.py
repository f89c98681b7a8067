"""What a job leaves when it is given up: its run, half-made adapters, the files of its study. All of it goes.

The notes and the lessons written about them stay: they are the person's, and the next study uses them.
"""

import shutil

from nightschool import jobs
from nightschool.adapters import list_adapters, remove_adapter, with_snapshots
from nightschool.jobs import Job
from nightschool.lessonbook import files_of, state_of
from nightschool.paths import adapters_dir, runs_dir
from nightschool.promotion import NEXT, drop
from nightschool.store import Database, transaction


def discard(db: Database, job: Job) -> None:
    """Remove everything that a job has begun; does no harm where there is nothing."""
    if job.kind == jobs.FINE_TUNING:
        _discard_run(str(job.result.get("run", "")))
        for adapter in with_snapshots(job.name):
            remove_adapter(adapter.name)
        for draft in adapters_dir().glob(f".{job.name}*.draft"):
            shutil.rmtree(draft, ignore_errors=True)
    else:
        _discard_study(db, job)


def _discard_run(run: str) -> None:
    if run:
        shutil.rmtree(runs_dir() / run, ignore_errors=True)


def _discard_study(db: Database, job: Job) -> None:
    rows = db.execute(
        "select * from studies where adapter = ? and base = ? and stage != 'done'", (job.name, job.model)
    ).fetchall()
    for state in map(state_of, rows):
        run = str(state.figures.get("run", ""))
        _discard_run(run)
        shutil.rmtree(files_of(state.id), ignore_errors=True)
        candidate = job.name + NEXT
        if any(each.name == candidate and each.card.get("run") == run for each in list_adapters()):
            drop(db, candidate)
        with transaction(db):
            db.execute("update studies set stage = 'done' where id = ?", (state.id,))
