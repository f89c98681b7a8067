"""The queue of long work, in the store: what waits, what runs, how far it is, what came of it.

A job goes through OpenAI's states. Anybody may add one or ask something of it (`ask`); a supervisor claims
the next in line for a worker, which writes how far it is; whoever looks reads rows. What a job does is its
kind's business (worker), what it leaves behind when it is given up is not known here (leftovers).

    validating_files → queued → running → succeeded | failed | cancelled
                          ↑        ↓
                          └──── paused

A job whose owner died with the whole program goes back into the queue, and goes on from what it had saved.
"""

import json
import secrets
import string
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from nightschool.errors import JobState, NotFound
from nightschool.store import Database, Row, transaction

VALIDATING, QUEUED, RUNNING, PAUSED = "validating_files", "queued", "running", "paused"
SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
FINISHED = (SUCCEEDED, FAILED, CANCELLED)
FINE_TUNING, STUDY, REBUILD = "fine_tuning", "study", "rebuild"
PAUSE, CANCEL, RESUME = "pause", "cancel", "resume"
DISCARD = "discard"  # what a cancelled job has begun is still to be removed
MAX_ATTEMPTS = 3  # a job that takes the whole machine down must not do so for ever
SHOWN_LOSSES = 250
ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Job:
    """A row; `spec` is what was asked for, `result` what has come of it so far. Times are since 1970."""

    number: int
    id: str
    kind: str
    name: str
    model: str
    state: str
    stage: str
    spec: dict[str, Any]
    metadata: dict[str, str] | None
    created_at: int
    started_at: int | None
    finished_at: int | None
    progress: dict[str, Any]
    error: dict[str, str | None] | None
    result: dict[str, Any]
    wish: str
    held: bool

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED


@dataclass(frozen=True)
class JobEvent:
    """A line of a job's log; `number` counts from 1 within the job."""

    number: int
    at: int
    level: str
    message: str
    data: dict[str, Any] | None


@dataclass(frozen=True)
class Step:
    """What is known after a step of training; the held-out figures where they were measured then."""

    step: int
    loss: float | None = None
    accuracy: float | None = None
    tokens: int | None = None
    valid_loss: float | None = None
    valid_accuracy: float | None = None


def new_id(prefix: str) -> str:
    """An id as OpenAI's look: file-…, ftjob-…"""
    return f"{prefix}-{''.join(secrets.choice(ALPHABET) for _ in range(24))}"


# Adding and finding


def add(
    db: Database,
    kind: str,
    *,
    name: str,
    model: str,
    spec: Mapping[str, Any],
    id: str | None = None,
    metadata: Mapping[str, str] | None = None,
    state: str = QUEUED,
) -> Job:
    """Put a job at the end of the queue. `name` is its adapter's, `model` what that is trained on."""
    id = id or new_id("job")
    kept = None if metadata is None else json.dumps(metadata)
    with transaction(db):
        db.execute(
            "insert into jobs (id, kind, name, model, state, spec, metadata, created_at)"
            " values (?, ?, ?, ?, ?, ?, ?, ?)",
            (id, kind, name, model, state, json.dumps(spec), kept, int(time.time())),
        )
        tell(db, id, f"Created job {id}.")
    return find(db, id)


def find(db: Database, id: str) -> Job:
    """The job of that id. Raises NotFound."""
    row = db.execute("select * from jobs where id = ?", (id,)).fetchone()
    if row is None:
        raise NotFound(f"There is no job {id!r}.")
    return job_of(row)


def list_jobs(db: Database, kind: str | None = None) -> list[Job]:
    """All jobs, or those of a kind, newest first."""
    where, values = ("where kind = ?", [kind]) if kind else ("", [])
    return [job_of(row) for row in db.execute(f"select * from jobs {where} order by number desc", values)]


def current(db: Database) -> Job | None:
    """The job that runs, or the next in the queue."""
    row = db.execute(
        "select * from jobs where state in (?, ?) order by state = ? desc, number", (RUNNING, QUEUED, RUNNING)
    ).fetchone()
    return None if row is None else job_of(row)


def job_of(row: Row) -> Job:
    return Job(
        number=row["number"],
        id=row["id"],
        kind=row["kind"],
        name=row["name"],
        model=row["model"],
        state=row["state"],
        stage=row["stage"],
        spec=json.loads(row["spec"]),
        metadata=json.loads(row["metadata"]) if row["metadata"] else None,
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        progress=json.loads(row["progress"]),
        error=json.loads(row["error"]) if row["error"] else None,
        result=json.loads(row["result"]),
        wish=row["wish"],
        held=bool(row["held"]),
    )


# What people ask of it


def ask(db: Database, id: str, wish: str) -> Job:
    """Pause, cancel or resume: at once where nobody works on the job, else its worker is asked to.

    Raises NotFound, or JobState for what has come to its end.
    """
    with transaction(db):
        job = find(db, id)
        if job.is_finished:
            ended = "was cancelled" if job.state == CANCELLED else f"has {job.state}"
            raise JobState(f"The job {id!r} {ended} already; there is nothing to {wish}.")
        if wish == RESUME:
            _resume(db, job)
        elif job.state == RUNNING:
            db.execute("update jobs set wish = ? where id = ?", (wish, id))
        elif wish == CANCEL:
            _move(db, id, CANCELLED, wish=DISCARD if job.started_at else "")
            tell(db, id, "The job was cancelled.")
        elif job.state != PAUSED:
            _move(db, id, PAUSED)
            tell(db, id, "The job was paused before it began.")
    return find(db, id)


def _resume(db: Database, job: Job) -> None:
    if job.state == PAUSED:
        _move(db, job.id, QUEUED)
        tell(db, job.id, "The job goes on.")
    elif job.wish == PAUSE:  # the worker has not got to it
        db.execute("update jobs set wish = '' where id = ?", (job.id,))


# What its supervisor and its worker say


def claim(db: Database, owner: str) -> Job | None:
    """The next job in the queue, which now runs and belongs to `owner`; None while another one runs.

    Jobs whose owner has died go back into the queue first.
    """
    with transaction(db):
        for row in db.execute("select * from jobs where state = ? order by number", (RUNNING,)).fetchall():
            if is_alive(row["owner"]):
                return None
            _take_back(db, row)
        row = db.execute("select id from jobs where state = ? order by number", (QUEUED,)).fetchone()
        if row is None:
            return None
        db.execute(
            "update jobs set state = ?, owner = ?, attempts = attempts + 1, wish = '', held = 0,"
            " progress = '{}', started_at = coalesce(started_at, ?) where id = ?",
            (RUNNING, owner, int(time.time()), row["id"]),
        )
        tell(db, row["id"], "The job has started.")
        return find(db, row["id"])


def _take_back(db: Database, row: Row) -> None:
    """Queue a job again whose worker is gone; after MAX_ATTEMPTS it has failed."""
    id = row["id"]
    if row["wish"] == CANCEL:
        _move(db, id, CANCELLED, wish=DISCARD)
        tell(db, id, "The job was cancelled.")
    elif row["wish"] == PAUSE:
        _move(db, id, PAUSED)
        tell(db, id, "The job is paused.")
    elif row["attempts"] >= MAX_ATTEMPTS:
        reason = (
            f"It was begun {MAX_ATTEMPTS} times, and each time the whole program or the machine went down. "
            "Most likely it needs more memory than there is: choose a smaller base or a smaller batch."
        )
        _move(db, id, FAILED, error={"code": "interrupted", "message": reason, "param": None})
        tell(db, id, reason, level="error")
    else:
        _move(db, id, QUEUED)
        tell(db, id, "The program was interrupted; the job goes on from what it had saved.", level="warn")


def hand_over(db: Database, id: str, owner: str) -> None:
    """From now on this process works on the job."""
    with transaction(db):
        db.execute("update jobs set owner = ? where id = ? and state = ?", (owner, id, RUNNING))


def owner_of(pid: int) -> str:
    """A process, told apart from a later one with the same number."""
    try:
        return f"{pid}:{psutil.Process(pid).create_time()}"
    except psutil.Error:  # it has ended already
        return f"{pid}:"


def is_alive(owner: str) -> bool:
    """Whether that very process still runs."""
    pid = owner.partition(":")[0]
    return pid.isdecimal() and psutil.pid_exists(int(pid)) and owner_of(int(pid)) == owner


def hold(db: Database, id: str, held: bool) -> None:
    """Note that a job waits while somebody chats, or goes on."""
    with transaction(db):
        db.execute("update jobs set held = ? where id = ? and state = ?", (held, id, RUNNING))


def note(db: Database, id: str, *, stage: str | None = None, **changes: Any) -> None:
    """Write how far a job is; inside a transaction.

    Args:
        changes: `progress` or `result`, whose fields are laid over those that are there.
    """
    job = find(db, id)
    if stage is not None:
        db.execute("update jobs set stage = ? where id = ?", (stage, id))
    for column in ("progress", "result"):
        if column in changes:
            whole = getattr(job, column) | changes[column]
            db.execute(f"update jobs set {column} = ? where id = ?", (json.dumps(whole), id))


def put_back(db: Database, id: str) -> None:
    """Into the queue again: its worker was told to stop, and saved what it had."""
    with transaction(db):
        _move(db, id, QUEUED)
        db.execute("update jobs set attempts = 0 where id = ?", (id,))
        tell(db, id, "The program stops; the job goes on when it runs again.")


def pause(db: Database, id: str) -> None:
    """It stopped because somebody wished it to, and can go on."""
    with transaction(db):
        _move(db, id, PAUSED)
        db.execute("update jobs set attempts = 0 where id = ?", (id,))
        tell(db, id, "The job is paused.")


def cancel(db: Database, id: str) -> None:
    """It stopped for good because somebody wished it to, and nothing of it is left."""
    with transaction(db):
        _move(db, id, CANCELLED)
        tell(db, id, "The job was cancelled.")


def succeed(db: Database, id: str, result: Mapping[str, Any]) -> None:
    """It came to its end."""
    with transaction(db):
        note(db, id, result=dict(result), progress={"seconds_left": 0})
        _move(db, id, SUCCEEDED)
        tell(db, id, "The job has successfully completed.")


def fail(
    db: Database, id: str, message: str, *, code: str = "server_error", param: str | None = None
) -> None:
    """It cannot go on; the message says why and what to do."""
    with transaction(db):
        _move(db, id, FAILED, error={"code": code, "message": message, "param": param})
        tell(db, id, message, level="error")


def given_up(db: Database) -> list[Job]:
    """Cancelled jobs of which something may be left."""
    rows = db.execute("select * from jobs where state = ? and wish = ?", (CANCELLED, DISCARD))
    return [job_of(row) for row in rows.fetchall()]


def cleared(db: Database, id: str) -> None:
    """Nothing of a cancelled job is left."""
    with transaction(db):
        db.execute("update jobs set wish = '' where id = ? and state = ?", (id, CANCELLED))


def _move(
    db: Database, id: str, state: str, *, error: Mapping[str, str | None] | None = None, wish: str = ""
) -> None:
    """Change a job's state; nobody owns it any longer."""
    finished = int(time.time()) if state in FINISHED else None
    db.execute(
        "update jobs set state = ?, finished_at = ?, error = ?, wish = ?, owner = '', held = 0 where id = ?",
        (state, finished, json.dumps(error) if error else None, wish, id),
    )


def validated(db: Database, id: str) -> Job:
    """Its files have been read and are in order: it waits for its turn."""
    with transaction(db):
        tell(db, id, "Files validated, moving job to queued state")
        _move(db, id, QUEUED)
    return find(db, id)


# Its log and its steps


def tell(
    db: Database, id: str, message: str, *, level: str = "info", data: Mapping[str, Any] | None = None
) -> None:
    """Add a line to a job's log; inside a transaction."""
    db.execute(
        "insert into job_events (job_id, number, at, level, message, data) values (?,"
        " (select coalesce(max(number), 0) + 1 from job_events where job_id = ?), ?, ?, ?, ?)",
        (id, id, int(time.time()), level, message, None if data is None else json.dumps(data)),
    )


def events(
    db: Database, id: str, *, after: int = 0, limit: int = 100, newest_first: bool = False
) -> list[JobEvent]:
    """Lines of a job's log from number `after` on, or before it where the newest come first (0: all)."""
    compare, order = ("<", "desc") if newest_first else (">", "asc")
    rows = db.execute(
        f"select * from job_events where job_id = ? and (? = 0 or number {compare} ?)"
        f" order by number {order} limit ?",
        (id, after, after, limit),
    )
    return [
        JobEvent(
            row["number"],
            row["at"],
            row["level"],
            row["message"],
            json.loads(row["data"]) if row["data"] else None,
        )
        for row in rows
    ]


def keep_steps(db: Database, id: str, made: Iterable[Step]) -> None:
    """Keep figures of steps; what is None leaves what is known. Inside a transaction."""
    db.executemany(
        "insert into job_steps (job_id, step, loss, accuracy, tokens, valid_loss, valid_accuracy)"
        " values (?, ?, ?, ?, ?, ?, ?) on conflict do update set loss = coalesce(excluded.loss, loss),"
        " accuracy = coalesce(excluded.accuracy, accuracy), tokens = coalesce(excluded.tokens, tokens),"
        " valid_loss = coalesce(excluded.valid_loss, valid_loss),"
        " valid_accuracy = coalesce(excluded.valid_accuracy, valid_accuracy)",
        [
            (id, each.step, each.loss, each.accuracy, each.tokens, each.valid_loss, each.valid_accuracy)
            for each in made
        ],
    )


def steps(db: Database, id: str, *, at_most: int | None = None) -> list[Step]:
    """The steps of a job in order; of many, evenly `at_most` or a few more, those with held-out figures
    among them.
    """
    count = db.execute("select count(*) from job_steps where job_id = ?", (id,)).fetchone()[0]
    every = -(-count // at_most) if at_most and count else 1
    rows = db.execute(
        "select step, loss, accuracy, tokens, valid_loss, valid_accuracy from job_steps where job_id = ?"
        " and (step % ? = 0 or step = 1 or valid_loss is not null or step ="
        " (select max(step) from job_steps where job_id = ?)) order by step",
        (id, every, id),
    )
    return [Step(*row) for row in rows]


def trained_tokens(db: Database, id: str) -> int:
    """Tokens that its steps have read."""
    return int(
        db.execute("select coalesce(sum(tokens), 0) from job_steps where job_id = ?", (id,)).fetchone()[0]
    )


def as_json(db: Database, job: Job) -> dict[str, Any]:
    """A job as our own API shows it."""
    progress = job.progress
    losses: Sequence[Step] = steps(db, job.id, at_most=SHOWN_LOSSES)
    return {
        "id": job.id,
        "kind": job.kind,
        "name": job.name,
        "model": job.model,
        "state": job.state,
        "stage": job.stage,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "progress": {key: progress[key] for key in ("task", "done", "total")} if "task" in progress else None,
        "loss": [(each.step, each.loss, each.valid_loss) for each in losses if each.loss is not None],
        "tokens_per_s": progress.get("tokens_per_s"),
        "seconds_left": progress.get("seconds_left") if job.state == RUNNING else None,
        "held": job.held,
        "error": job.error["message"] if job.error else None,
        "result": job.result if job.state == SUCCEEDED else None,
    }
