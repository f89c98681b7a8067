"""The program that does one job: `python -m nightschool.worker JOB NICE`, a child of the supervisor.

It consumes the generators that the command line draws, and writes what they say into the store. Commands come
as lines on stdin and are obeyed between two events: closing the work saves it, so that it can go on.

    hold     stop computing, keep everything in memory: somebody is chatting
    go       go on
    pause    save and end; the job can be resumed
    cancel   end, and leave nothing half-made
    (end)    the supervisor is gone or stops: save, put the job back into the queue, end

`hold` is obeyed in the midst of a step too, between two operations of the model, unless a transaction is
open. The work gives way to what else runs on the machine.
"""

import _thread
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

from nightschool import fine_tune, jobs
from nightschool.errors import DataError, FileFormatError, NightschoolError, NotEnoughMemory, StoreError
from nightschool.events import Event, Notice, Progress, TrainStep, Validation
from nightschool.jobs import Job, Step
from nightschool.leftovers import discard
from nightschool.settings import StudySettings, TrainSettings
from nightschool.store import Database, open_store, transaction
from nightschool.study import StudyOrder, study

HOLD, GO, STOP = "hold", "go", "stop"
WRITE_EVERY_S = 0.5
MIN_MINUTES = 1.0  # for a study that goes on when its time is up: enough to end well
TOLD_STEPS = 100  # of a job's steps, so many are told in its log

log = logging.getLogger("nightschool.worker")


class Control:
    """What the supervisor wants, read from a stream by a thread of its own.

    Args:
        may_hold: whether the main thread may be stopped where it is.
    """

    def __init__(self, commands: IO[bytes], may_hold: Callable[[], bool]) -> None:
        self.asked = ""
        self._commands, self._may_hold = commands, may_hold
        self._free = threading.Event()
        self._free.set()
        self._is_waiting = False
        self._lost_s = 0.0

    def start(self) -> None:
        """Begin to listen; from the main thread."""
        signal.signal(signal.SIGINT, self._interrupted)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._commands:
            command = line.decode().strip()
            if command == HOLD and not self.asked:
                self._free.clear()
                _thread.interrupt_main(signal.SIGINT)
            elif command in (jobs.PAUSE, jobs.CANCEL):
                self.asked = command
            if command != HOLD:
                self._free.set()
        self.asked = self.asked or STOP
        self._free.set()

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if not self._is_waiting and self._may_hold():
            self.wait()

    def wait(self) -> None:
        """Return when nothing holds the work up."""
        if self._free.is_set():
            return
        self._is_waiting = True
        began = time.monotonic()
        self._free.wait()
        self._lost_s += time.monotonic() - began
        self._is_waiting = False

    def now(self) -> float:
        """A clock that stands still while the work is held up."""
        return time.monotonic() - self._lost_s


class Recorder:
    """Writes what the work says of itself into the store, not more often than people can read."""

    def __init__(self, db: Database, job: Job, now: Callable[[], float]) -> None:
        self.db, self.id, self.now = db, job.id, now
        self.stage = stages(db, job)
        self.steps: list[Step] = []
        self.told: list[tuple[str, dict[str, Any] | None]] = []
        self.progress: dict[str, Any] = {}
        self.task, self.task_began, self.task_first = "", now(), 0
        self.written_s, self.written_task = 0.0, ""

    def keep(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case Notice(text):
                self.told.append((text, None))
            case Validation(step, loss, accuracy):
                self.steps.append(Step(step, valid_loss=loss, valid_accuracy=accuracy))
            case TrainStep():
                self._step(event)
            case Progress():
                self._progress(event)
        now = time.monotonic()
        if self.progress.get("task") != self.written_task or now - self.written_s >= WRITE_EVERY_S:
            with suppress(StoreError):  # another command writes for long: the next event tries again
                self.write()

    def _step(self, event: TrainStep) -> None:
        self.steps.append(Step(event.step, event.loss, event.accuracy, event.tokens))
        self.progress = {
            "task": "training",
            "done": event.step,
            "total": event.total,
            "tokens_per_s": round(event.tokens_per_s, 1),
            "seconds_left": round(event.eta_s, 1),
        }
        every = -(-event.total // TOLD_STEPS)
        if event.step % every == 0 or event.step in (1, event.total) or event.ends_epoch:
            data = {
                "step": event.step,
                "total_steps": event.total,
                "train_loss": event.loss,
                "train_mean_token_accuracy": event.accuracy,
            }
            self.told.append((f"Step {event.step}/{event.total}: training loss={event.loss:.4f}", data))

    def _progress(self, event: Progress) -> None:
        if event.task != self.task:
            self.task, self.task_began, self.task_first = event.task, self.now(), event.done
        done, left = event.done - self.task_first, None
        if event.total and done:
            left = round((self.now() - self.task_began) / done * (event.total - event.done), 1)
        self.progress = {
            "task": event.task,
            "done": event.done,
            "total": event.total,
            "tokens_per_s": None,
            "seconds_left": left,
        }

    def write(self) -> None:
        """Everything that was taken in and is not in the store yet."""
        with transaction(self.db):
            jobs.keep_steps(self.db, self.id, self.steps)
            for message, data in self.told:
                jobs.tell(self.db, self.id, message, data=data)
            jobs.note(self.db, self.id, stage=self.stage(), progress=self.progress)
        self.steps, self.told = [], []
        self.written_s, self.written_task = time.monotonic(), self.progress.get("task", "")


def stages(db: Database, job: Job) -> Callable[[], str]:
    """A word for what a job is doing."""
    if job.kind == jobs.FINE_TUNING:
        return lambda: "train" if jobs.steps(db, job.id, at_most=1) else "prepare"

    def stage() -> str:
        row = db.execute(
            "select stage from studies where adapter = ? and base = ? order by id desc", (job.name, job.model)
        ).fetchone()
        return row["stage"] if row else "write"

    return stage


# Kinds of jobs ------------------------------------------------------------------------------------

Work = Generator[Event, None, dict[str, Any]]


def study_notes(db: Database, job: Job, now: Callable[[], float]) -> Work:
    """A study, or the rebuilding of an adapter, which is one; server.own.study says what its spec holds."""
    spec = job.spec
    train = dict(spec.get("train") or {})
    if "targets" in train:
        train["targets"] = tuple(train["targets"])
    order = StudyOrder(
        base=job.model,
        name=job.name,
        sources=tuple(spec.get("sources") or ()),
        settings=left_of(db, job, StudySettings(**(spec.get("settings") or {}))),
        train=TrainSettings(**train),
        teacher=spec.get("teacher"),
    )
    if (spec.get("until") or math.inf) < time.time():
        yield Notice("The hour that it was to be done by has passed: it takes as little time as it can.")
    restart = bool(spec.get("restart")) and "begun_s" not in job.result
    with transaction(db):
        jobs.note(db, job.id, result={"begun_s": 0.0 if restart else studied_s(db, job)} | job.result)
    outcome = yield from study(db, order, restart=restart, now=now)
    found = {key: outcome.figures.get(key) for key in ("recall_before", "recall_after", "forgetting")}
    adapter = outcome.adapter.name if outcome.adapter else None
    return found | {
        "adapter": adapter,
        "model": f"{job.model}+{adapter}" if adapter else None,
        "promoted": outcome.is_promoted,
        "reasons": list(outcome.reasons),
    }


def left_of(db: Database, job: Job, settings: StudySettings) -> StudySettings:
    """The settings with the time that is left: to the moment that was asked for, or by earlier sittings."""
    until = job.spec.get("until")
    if until is not None:
        return replace(settings, minutes=max(MIN_MINUTES, (until - time.time()) / 60))
    if "begun_s" not in job.result:
        return settings
    used_minutes = (studied_s(db, job) - job.result["begun_s"]) / 60
    return replace(settings, minutes=max(MIN_MINUTES, settings.minutes - used_minutes))


def studied_s(db: Database, job: Job) -> float:
    """How long the unfinished study has been at work."""
    row = db.execute(
        "select figures from studies where adapter = ? and base = ? and stage != 'done' order by id desc",
        (job.name, job.model),
    ).fetchone()
    return float(json.loads(row["figures"]).get("seconds", 0.0)) if row else 0.0


KINDS: dict[str, Callable[[Database, Job, Callable[[], float]], Work]] = {
    jobs.FINE_TUNING: fine_tune.work,
    jobs.STUDY: study_notes,
    jobs.REBUILD: study_notes,
}


# One job ------------------------------------------------------------------------------------------


def do(db: Database, job: Job, control: Control) -> None:
    """Do a job to its end, or until something else is asked for; its state says which."""
    work = KINDS[job.kind](db, job, control.now)
    recorder = Recorder(db, job, control.now)
    result = None
    try:
        while result is None and not control.asked:
            control.wait()
            try:
                recorder.keep(next(work))
            except StopIteration as end:
                result = end.value
    finally:
        work.close()
        recorder.write()
    if result is not None:
        jobs.succeed(db, job.id, result)
    else:
        obey(db, job.id, control.asked)


def obey(db: Database, id: str, asked: str) -> None:
    """The work has stopped in between: what becomes of the job."""
    job = jobs.find(db, id)
    if asked == jobs.CANCEL:
        discard(db, job)
        jobs.cancel(db, id)
    elif asked == jobs.PAUSE and job.wish == jobs.PAUSE:
        jobs.pause(db, id)
    else:  # the supervisor stops, or somebody thought better of pausing
        jobs.put_back(db, id)


def give_up(db: Database, id: str, error: BaseException) -> None:
    """A job that failed: say why, and leave nothing of it."""
    job = jobs.find(db, id)
    if job.kind == jobs.FINE_TUNING:  # a study goes on with what it has when it is asked for again
        discard(db, job)
    message, code, param = reason_of(error)
    jobs.fail(db, id, message, code=code, param=param)


def reason_of(error: BaseException) -> tuple[str, str, str | None]:
    """What to tell the person, a code for programs, and the parameter at fault."""
    if isinstance(error, (DataError, FileFormatError)):
        return str(error), "invalid_training_file", "training_file"
    if isinstance(error, NotEnoughMemory):
        return str(error), "not_enough_memory", None
    if isinstance(error, NightschoolError):
        return str(error), "server_error", None
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        advice = (
            "Choose a smaller base or smaller batches, or close other programs, and create the job again."
        )
        return f"The memory ran out. {advice}", "not_enough_memory", None
    if isinstance(error, OSError):
        return f"A file could not be read or written: {error.strerror or error}.", "server_error", None
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"Something went wrong inside ({said}). This is a mistake of the program's.", "server_error", None


def give_way(nice: int) -> None:
    """Let other programs go first."""
    if os.name == "nt":
        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if nice else psutil.NORMAL_PRIORITY_CLASS)
        return
    os.nice(nice)
    with suppress(OSError):  # where Linux shares the processor among sessions, niceness counts within each
        Path("/proc/self/autogroup").write_text(str(nice))


def main(id: str, nice: int, commands: IO[bytes]) -> int:
    """Do the job of that id; whatever goes wrong is in its row, and in the log for a programmer."""
    give_way(nice)
    with closing(open_store()) as db:
        control = Control(commands, may_hold=lambda: not db.in_transaction)
        control.start()
        job = jobs.find(db, id)
        try:
            do(db, job, control)
        except Exception as error:
            if not isinstance(error, NightschoolError):
                log.exception("job %s failed", id)
            give_up(db, id, error)
    return 0


if __name__ == "__main__":
    logging.basicConfig()
    # Unbuffered: at the end of the program a thread still reads, and must not hold a buffer's lock.
    raise SystemExit(
        main(sys.argv[1], int(sys.argv[2]), open(sys.stdin.fileno(), "rb", buffering=0, closefd=False))
    )
