"""Jobs of every kind, as the page shows them."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from nightschool import jobs
from nightschool.server.database import Store
from nightschool.server.own import shapes
from nightschool.server.state import Here, State
from nightschool.store import Database

JobId = Annotated[str, Path(max_length=100)]

router = APIRouter()


def shown(db: Database, job: jobs.Job) -> shapes.Job:
    """A job in our own JSON."""
    found = jobs.as_json(db, job)
    result: dict[str, Any] | None = found.pop("result")
    if result is not None:
        known = {key: value for key, value in result.items() if key in shapes.JobResult.model_fields}
        found["result"] = shapes.JobResult(**known)
    return shapes.Job(**found)


@router.get("/jobs")
def list_jobs(db: Store) -> shapes.Jobs:
    """List all jobs, newest first."""
    return shapes.Jobs(jobs=[shown(db, job) for job in jobs.list_jobs(db)])


@router.get("/jobs/{id}")
def retrieve_job(id: JobId, db: Store) -> shapes.Job:
    """Say how far a job is."""
    return shown(db, jobs.find(db, id))


@router.get("/jobs/{id}/events")
def list_events(
    id: JobId,
    db: Store,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> shapes.JobEvents:
    """The log of a job, in order."""
    jobs.find(db, id)
    events = [shapes.JobEvent(**vars(event)) for event in jobs.events(db, id, after=after, limit=limit)]
    return shapes.JobEvents(events=events, last=events[-1].number if events else after)


@router.post("/jobs/{id}/cancel")
def cancel_job(id: JobId, db: Store, here: Here) -> shapes.Job:
    """Give a job up for good."""
    return _ask(db, here, id, jobs.CANCEL)


@router.post("/jobs/{id}/pause")
def pause_job(id: JobId, db: Store, here: Here) -> shapes.Job:
    """Stop a job; it can go on later."""
    return _ask(db, here, id, jobs.PAUSE)


@router.post("/jobs/{id}/resume")
def resume_job(id: JobId, db: Store, here: Here) -> shapes.Job:
    """Let a paused job go on."""
    return _ask(db, here, id, jobs.RESUME)


def _ask(db: Database, here: State, id: str, wish: str) -> shapes.Job:
    job = jobs.ask(db, id, wish)
    wake(here)
    return shown(db, job)


def wake(here: State) -> None:
    """Have the supervisor look at the queue at once."""
    if here.supervisor is not None:
        here.supervisor.wake()
