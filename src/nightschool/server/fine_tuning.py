"""/v1/fine_tuning/jobs: OpenAI's fine-tuning, done on this machine; the tuned model is served at once.

A job trains an adapter on a base, or goes on from one: `model` is the name of either. Its files are checked
before it is queued. What OpenAI offers and this does not (preference and reinforcement methods, integrations
that send figures elsewhere) is refused in a sentence.
"""

import re
import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request

from nightschool import jobs, uploads
from nightschool.adapters import Adapter, find_adapter, list_adapters
from nightschool.decoders import read_config
from nightschool.errors import DataError, NotFound
from nightschool.gguf import open_gguf
from nightschool.server import fine_tuning_shapes as shapes
from nightschool.server.database import Store
from nightschool.server.files import found
from nightschool.server.models import Target, resolve
from nightschool.server.pagination import page_after
from nightschool.server.problems import ApiError
from nightschool.server.state import Here, State
from nightschool.store import Database, transaction
from nightschool.tuned import CHECKPOINT, ORGANISATION, SNAPSHOT, adapter_name, tuned_name

ANSWER_WITHIN_S = 3.0  # a wish is often obeyed by then, and the answer shows it
LOOK_EVERY_S = 0.05
SEEDS = 2**31

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

Limit = Annotated[int, Query(ge=1, le=1000)]
Thing = TypeVar("Thing", shapes.Job, shapes.Checkpoint)


# Creating -----------------------------------------------------------------------------------------


@router.post("")
def create_job(db: Store, here: Here, order: shapes.Order) -> shapes.Job:
    """Queue a job; its files are checked first, and it has failed already where they cannot be used."""
    check_method(order)
    target = resolve(order.model)
    start = start_of(target, order.model)
    read_config(open_gguf(target.base.path))  # raises where it cannot be trained
    files = {name: id for name in ("training_file", "validation_file") if (id := getattr(order, name))}
    for name, id in files.items():
        check_file(db, id, name)
    id = jobs.new_id("ftjob")
    suffix, short = order.suffix or "", id[-8:]
    spec = {
        "asked_model": order.model,
        "training_file": order.training_file,
        "validation_file": order.validation_file,
        "seed": order.seed if order.seed is not None else secrets.randbelow(SEEDS),
        "suffix": order.suffix,
        "start": start,
        "served_as": tuned_name(target.base.name, suffix, short),
        **chosen(order),
    }
    jobs.add(
        db,
        jobs.FINE_TUNING,
        name=adapter_name(suffix, short),
        model=target.base.name,
        spec=spec,
        id=id,
        metadata=order.metadata,
        state=jobs.VALIDATING,
    )
    job = validate(db, id, files)
    here.supervisor.wake()
    return shown(db, job)


def check_method(order: shapes.Order) -> None:
    """Raise for what is not offered here."""
    if order.method and order.method.type != "supervised":
        raise ApiError(
            400,
            f"The method {order.method.type!r} is not offered here; 'supervised' is.",
            param="method.type",
            code="unsupported_method",
        )
    if order.integrations:
        raise ApiError(
            400,
            "Integrations send figures to other machines, which this server does not do; leave them away. "
            "The figures are in the job's events and in its result file.",
            param="integrations",
            code="unsupported_integration",
        )


def start_of(target: Target, name: str) -> str | None:
    """The adapter to go on from; None for a bare base. Raises ApiError for what cannot be gone on from."""
    if not target.adapters and not target.memory:
        return None
    if len(target.adapters) != 1 or target.adapters[0][1] != 1 or target.memory:
        raise ApiError(
            400,
            f"{name[:200]!r} cannot be trained further: name a base, or one adapter at its full scale.",
            param="model",
            code="invalid_model",
        )
    adapter = target.adapters[0][0]
    if not find_adapter(adapter).card.get("settings", {}).get("targets"):
        raise ApiError(
            400,
            f"The adapter {adapter!r} was made elsewhere and does not say how: train on its base instead.",
            param="model",
            code="invalid_model",
        )
    return adapter


def check_file(db: Database, id: str, name: str) -> None:
    """Raise unless the file is there, and for training."""
    try:
        upload = found(db, id, param=name)
    except ApiError as error:
        raise ApiError(400, f"Invalid {name}: {error.message}", param=name, code="invalid_value") from error
    if upload.purpose != uploads.TRAINING:
        raise ApiError(
            400,
            f"Invalid {name}: {id!r} was uploaded for {upload.purpose!r}; upload it for 'fine-tune'.",
            param=name,
            code="invalid_value",
        )


def chosen(order: shapes.Order) -> dict[str, Any]:
    """The hyperparameters that were given; None for those that are left to us."""
    supervised = order.method.supervised if order.method else None
    given = (supervised and supervised.hyperparameters) or order.hyperparameters or shapes.Hyperparameters()
    values = given.model_dump()
    return {name: None if value == "auto" else value for name, value in values.items()}


def validate(db: Database, id: str, files: Mapping[str, str]) -> jobs.Job:
    """Read a job's files once more; it is queued then, or has failed."""
    for name, file in files.items():
        with transaction(db):
            jobs.tell(db, id, f"Validating {name.replace('_', ' ')}: {file}")
        try:
            uploads.check_again(uploads.find(db, file))
        except (DataError, NotFound) as error:
            jobs.fail(db, id, str(error), code=f"invalid_{name}", param=name)
            return jobs.find(db, id)
    return jobs.validated(db, id)


# Looking ------------------------------------------------------------------------------------------


@router.get("")
def list_jobs(db: Store, request: Request, *, after: str | None = None, limit: Limit = 20) -> shapes.Jobs:
    """List jobs, newest first; `metadata[key]=value` lists those that carry it, `metadata=null` bare ones."""
    wanted = metadata_filter(request)
    every = [job for job in jobs.list_jobs(db, jobs.FINE_TUNING) if carries(job, wanted)]
    page, has_more = page_after(after, every, limit=limit)
    return shapes.Jobs(data=[shown(db, job) for job in page], has_more=has_more)


def metadata_filter(request: Request) -> dict[str, str] | None:
    """What a job's metadata must hold; None for jobs without any."""
    if request.query_params.get("metadata") == "null":
        return None
    found = {}
    for name, value in request.query_params.items():
        if match := re.fullmatch(r"metadata\[(.{1,64})\]", name):
            found[match[1]] = value
    return found


def carries(job: jobs.Job, wanted: Mapping[str, str] | None) -> bool:
    if wanted is None:
        return not job.metadata
    return all((job.metadata or {}).get(key) == value for key, value in wanted.items())


@router.get("/{id}")
def retrieve_job(db: Store, id: str) -> shapes.Job:
    """Describe a job."""
    return shown(db, job_of(db, id))


@router.get("/{id}/events")
def list_events(db: Store, id: str, *, after: str | None = None, limit: Limit = 20) -> shapes.Events:
    """List what a job has said, newest first."""
    job = job_of(db, id)
    number = after.rpartition("-")[2] if after else "0"
    if not re.fullmatch(r"\d{1,9}", number):
        raise ApiError(400, f"{str(after)[:80]!r} is no event of this job.", param="after")
    events = jobs.events(db, id, after=int(number), limit=limit + 1, newest_first=True)
    return shapes.Events(
        data=[event_of(job, event) for event in events[:limit]], has_more=len(events) > limit
    )


def event_of(job: jobs.Job, event: jobs.JobEvent) -> shapes.Event:
    return shapes.Event(
        id=f"ftevent-{job.id.removeprefix('ftjob-')}-{event.number}",
        created_at=event.at,
        level=event.level,  # type: ignore[arg-type]
        message=event.message,
        type="metrics" if event.data else "message",
        data=event.data or {},
    )


@router.get("/{id}/checkpoints")
def list_checkpoints(
    db: Store, id: str, *, after: str | None = None, limit: Limit = 10
) -> shapes.Checkpoints:
    """List the models that a job has left at the ends of its last epochs, newest first."""
    job = job_of(db, id)
    every = sorted(checkpoints_of(db, job), key=lambda checkpoint: -checkpoint.step_number)
    page, has_more = page_after(after, every, limit=limit)
    return shapes.Checkpoints.of(page, has_more=has_more)


def checkpoints_of(db: Database, job: jobs.Job) -> list[shapes.Checkpoint]:
    """What is on the shelf of a job: snapshots, and the adapter itself."""
    steps = {step.step: step for step in jobs.steps(db, job.id)}
    last = max(steps, default=0)
    found = []
    for adapter in list_adapters():
        if adapter.name == job.name and job.state == jobs.SUCCEEDED:
            found.append(checkpoint_of(job, adapter, steps.get(last) or jobs.Step(last), name=""))
        number = adapter.name.removeprefix(job.name + SNAPSHOT)
        if number != adapter.name and number.isdecimal():
            step = steps.get(int(number)) or jobs.Step(int(number))
            found.append(checkpoint_of(job, adapter, step, name=CHECKPOINT + number))
    return found


def checkpoint_of(job: jobs.Job, adapter: Adapter, step: jobs.Step, *, name: str) -> shapes.Checkpoint:
    made = adapter.card.get("created")
    return shapes.Checkpoint(
        id=f"ftckpt_{job.id[-8:]}-{step.step}",
        created_at=int(datetime.fromisoformat(made).timestamp()) if made else job.created_at,
        fine_tuned_model_checkpoint=job.spec["served_as"] + name,
        fine_tuning_job_id=job.id,
        step_number=step.step,
        metrics=shapes.Metrics(
            step=step.step,
            train_loss=step.loss,
            train_mean_token_accuracy=step.accuracy,
            valid_loss=step.valid_loss,
            valid_mean_token_accuracy=step.valid_accuracy,
            full_valid_loss=step.valid_loss,
            full_valid_mean_token_accuracy=step.valid_accuracy,
        ),
    )


# Steering -----------------------------------------------------------------------------------------


@router.post("/{id}/cancel")
def cancel_job(db: Store, here: Here, id: str) -> shapes.Job:
    """Cancel a job; nothing of what it has begun is left."""
    return ask(db, here, id, wish=jobs.CANCEL)


@router.post("/{id}/pause")
def pause_job(db: Store, here: Here, id: str) -> shapes.Job:
    """Pause a job after the step it is at; it keeps what it has learned."""
    return ask(db, here, id, wish=jobs.PAUSE)


@router.post("/{id}/resume")
def resume_job(db: Store, here: Here, id: str) -> shapes.Job:
    """Let a paused job go on, from where it was to the same model."""
    return ask(db, here, id, wish=jobs.RESUME)


def ask(db: Database, here: State, id: str, *, wish: str) -> shapes.Job:
    """Ask something of a job; the answer waits a moment for it to come true."""
    job_of(db, id)
    job = jobs.ask(db, id, wish)
    here.supervisor.wake()
    end = time.monotonic() + ANSWER_WITHIN_S
    while wish != jobs.RESUME and job.state == jobs.RUNNING and time.monotonic() < end:
        time.sleep(LOOK_EVERY_S)
        job = jobs.find(db, id)
    return shown(db, job)


def job_of(db: Database, id: str) -> jobs.Job:
    """The fine-tuning job of that id. Raises ApiError 404 as OpenAI words it."""
    try:
        job = jobs.find(db, id)
    except NotFound:
        job = None
    if job is None or job.kind != jobs.FINE_TUNING:
        raise ApiError(
            404,
            f"Could not find fine tune: {id[:80]}",
            param="fine_tuning_job_id",
            code="fine_tune_not_found",
        )
    return job


def shown(db: Database, job: jobs.Job) -> shapes.Job:
    """A job in OpenAI's words."""
    spec = job.spec
    names = ("n_epochs", "batch_size", "learning_rate_multiplier")
    asked = {name: spec.get(name) or "auto" for name in names}
    settled = shapes.Hyperparameters(**(asked | job.result.get("hyperparameters", {})))
    succeeded = job.state == jobs.SUCCEEDED
    left = job.progress.get("seconds_left") if job.state == jobs.RUNNING else None
    return shapes.Job(
        id=job.id,
        created_at=job.created_at,
        finished_at=job.finished_at,
        estimated_finish=None if left is None else int(time.time() + left),
        model=spec["asked_model"],
        fine_tuned_model=spec["served_as"] if succeeded else None,
        organization_id=ORGANISATION,
        status=job.state,  # type: ignore[arg-type]
        training_file=spec["training_file"],
        validation_file=spec["validation_file"],
        result_files=job.result.get("result_files", []) if succeeded else [],
        trained_tokens=job.result.get("trained_tokens") if succeeded else None,
        hyperparameters=settled,
        method=shapes.Method(type="supervised", supervised=shapes.Supervised(hyperparameters=settled)),
        seed=spec["seed"],
        user_provided_suffix=spec.get("suffix"),
        metadata=job.metadata,
        error=shapes.Error(**job.error) if job.error else None,  # type: ignore[arg-type]
    )
