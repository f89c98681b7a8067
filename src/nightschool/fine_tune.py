"""A fine-tuning job as OpenAI's API describes it, done with a run: files of the store in, a served model out.

Its spec holds `training_file` and `validation_file` (ids of uploads), `n_epochs`, `batch_size` and
`learning_rate_multiplier` (null where the choice is ours), `seed`, `start` (an adapter to go on from) and
`served_as`, the name beginning in ft:. The job's name is the adapter's.
"""

import csv
import io
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from nightschool import jobs, uploads
from nightschool.adapters import Adapter, find_adapter, list_adapters
from nightschool.errors import DataError, NotFound
from nightschool.events import Event, Notice, TrainStep
from nightschool.jobs import Job, Step
from nightschool.promotion import amend_card, exists
from nightschool.runs import Order, Run, carry_out, read_log
from nightschool.settings import TrainSettings
from nightschool.store import Database, transaction
from nightschool.study import begun_run
from nightschool.tuned import CHECKPOINT, SNAPSHOT

SNAPSHOTS = 3  # OpenAI keeps the last three epochs
CSV_NAME = "step_metrics.csv"
CSV_HEADER = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


def work(db: Database, job: Job, now: Callable[[], float]) -> Generator[Event, None, dict[str, Any]]:
    """Do the job, or go on with it; the value is its result."""
    if not is_made(job):
        order = order_of(db, job)
        run = begun_run(order)
        note(db, job, run=run.folder.name)
        keep_log(db, job, run)
        events = carry_out(order, run, snapshots=SNAPSHOTS, now=now)
        yield from with_choices(events, lambda step: note(db, job, **choices(job, run, step)))
        keep_log(db, job, run)
    for adapter in list_adapters():
        if served_as := name_of(adapter, job):
            amend_card(adapter, model=served_as, job=job.id)
    result = jobs.find(db, job.id).result
    files = result.get("result_files") or [write_results(db, job)]
    yield Notice(f"New fine-tuned model created: {job.spec['served_as']}")
    return {
        "adapter": job.name,
        "model": job.spec["served_as"],
        "result_files": files,
        "trained_tokens": jobs.trained_tokens(db, job.id),
    }


def name_of(adapter: Adapter, job: Job) -> str | None:
    """The name that a job's adapter, or a snapshot of it, is served under; None for others."""
    served_as, snapshot = str(job.spec["served_as"]), job.name + SNAPSHOT
    if adapter.name.startswith(snapshot):
        return served_as + CHECKPOINT + adapter.name.removeprefix(snapshot)
    return served_as if adapter.name == job.name else None


def is_made(job: Job) -> bool:
    """Whether a kill came between the adapter and the end of its job."""
    run = job.result.get("run")
    return bool(run) and exists(job.name) and find_adapter(job.name).card.get("run") == run


def order_of(db: Database, job: Job) -> Order:
    """What the run shall do."""
    spec = job.spec
    valid = spec.get("validation_file")
    return Order(
        base=job.model,
        data=(file_of(db, spec["training_file"]),),
        name=job.name,
        settings=settings_of(spec),
        format="chat",
        valid=file_of(db, valid) if valid else None,
        start=spec.get("start"),
        batch=spec.get("batch_size"),
        lr_multiplier=spec.get("learning_rate_multiplier") or 1.0,
    )


def file_of(db: Database, id: str) -> Path:
    """The bytes of an upload. Raises DataError where it has been deleted meanwhile."""
    try:
        return uploads.find(db, id).path
    except NotFound as error:
        raise DataError(
            f"The file {id!r} was deleted before the job could read it: upload it again."
        ) from error


def settings_of(spec: dict[str, Any]) -> TrainSettings:
    """Training settings; an adapter to go on from decides the shape of the new one."""
    shape: dict[str, Any] = {}
    if spec.get("start"):
        card = find_adapter(spec["start"]).card
        shape = {"rank": card["rank"], "alpha": card["alpha"]}
        shape["targets"] = tuple(card["settings"]["targets"])
    return TrainSettings(epochs=spec.get("n_epochs"), seed=spec["seed"], **shape)


def with_choices(
    events: Generator[Event, None, Adapter], note_step: Callable[[TrainStep], None]
) -> Generator[Event, None, Adapter]:
    """Pass events on; with the first step it is settled what was left open."""
    noted = False
    try:
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                adapter: Adapter = end.value
                return adapter
            if isinstance(event, TrainStep) and not noted:
                noted = True
                note_step(event)
            yield event
    finally:
        events.close()


def choices(job: Job, run: Run, step: TrainStep) -> dict[str, Any]:
    """The hyperparameters in OpenAI's words, "auto" replaced by what was chosen."""
    epochs = run.state["settings"]["epochs"]
    batch = max(1, round(run.state["lessons"] * epochs / step.total))
    return {
        "hyperparameters": {
            "n_epochs": max(1, round(epochs)),
            "batch_size": job.spec.get("batch_size") or batch,
            "learning_rate_multiplier": job.spec.get("learning_rate_multiplier") or 1.0,
        }
    }


def note(db: Database, job: Job, **result: Any) -> None:
    """Keep what has come of the job so far."""
    with transaction(db):
        jobs.note(db, job.id, result=result)


def keep_log(db: Database, job: Job, run: Run) -> None:
    """The steps as the run's own log has them: none is missing there, whatever was killed when."""
    made = []
    for line in read_log(run.folder):
        if "lr" in line:
            made.append(Step(line["step"], line["loss"], line["accuracy"], line["tokens"]))
        else:
            made.append(Step(line["step"], valid_loss=line["loss"], valid_accuracy=line["accuracy"]))
    with transaction(db):
        jobs.keep_steps(db, job.id, made)


def write_results(db: Database, job: Job) -> str:
    """The figures of every step as a CSV file among the uploads; its id."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(CSV_HEADER)
    for step in jobs.steps(db, job.id):
        figures = (step.loss, step.accuracy, step.valid_loss, step.valid_accuracy)
        rows.writerow([step.step, *("" if each is None else f"{each:.5f}" for each in figures)])
    content = io.BytesIO(text.getvalue().encode())
    id = uploads.save(db, content, filename=CSV_NAME, purpose=uploads.RESULTS).id
    note(db, job, result_files=[id])
    return id
