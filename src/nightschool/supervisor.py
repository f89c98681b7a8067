"""Who sees to it that jobs are done: one at a time, each in a child process that may fail alone.

A thread claims the next job, starts a worker for it and passes on what people want. While somebody chats,
the worker is held. A worker that dies leaves a failed job with a reason, and the next one begins; when the
program itself ends, the worker saves, and its job waits in the queue. Two programs on one home share the
queue: only one of them has a worker at a time.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing

from nightschool import jobs
from nightschool.errors import NightschoolError
from nightschool.jobs import Job
from nightschool.leftovers import discard
from nightschool.store import Database, open_store

IDLE_S = 2.0  # between two looks into the queue, where nobody calls
TICK_S = 0.05
QUIET_S = 1.0  # without a chat, before training goes on
CANCEL_S = 2.0  # a worker that has not obeyed by then is killed: all it has is thrown away in any case
STOP_S = 30.0
LOG_TAIL_BYTES = 8192

log = logging.getLogger("nightschool.supervisor")


class Supervisor:
    """Runs the jobs of this home from `start` to `close`.

    Args:
        is_chatting: whether somebody is waiting for an answer right now; asked often.
        threads: how many the worker may compute with; 0 for all cores.
        nice: how far it gives way to other programs, from 0 to 19.
    """

    def __init__(
        self, *, is_chatting: Callable[[], bool] = lambda: False, threads: int = 0, nice: int = 10
    ) -> None:
        self._is_chatting, self._threads, self._nice = is_chatting, threads, nice
        self._closing, self._news = threading.Event(), threading.Event()
        self._is_working = False
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Begin with the first job in the queue."""
        self._thread.start()

    def close(self) -> None:
        """Have the worker save what it has, and end; its job goes on another time."""
        self._closing.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """Something has changed, as a new job or a wish: look at once."""
        self._news.set()

    def look_at_chats(self) -> None:
        """Somebody has begun to chat, or nobody does any longer: only a job that runs must know at once."""
        if self._is_working:
            self._news.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                with closing(open_store()) as db:
                    self._work_through(db)
            except NightschoolError:  # the store is held by another command, or the disk is full
                log.exception("the queue cannot be read; trying again")
                self._closing.wait(IDLE_S)

    def _work_through(self, db: Database) -> None:
        while not self._closing.is_set():
            _clear_away(db)
            job = jobs.claim(db, jobs.owner_of(os.getpid()))
            if job is not None:
                self._see_through(db, job)
            elif self._news.wait(IDLE_S):
                self._news.clear()

    def _see_through(self, db: Database, job: Job) -> None:
        """Have a worker do a job, and settle what it left unsettled."""
        self._is_working = True
        worker = Worker(job.id, threads=self._threads, nice=self._nice)
        jobs.hand_over(db, job.id, jobs.owner_of(worker.process.pid))
        try:
            while worker.is_alive():
                if self._closing.is_set():
                    worker.stop()
                    break
                self._pass_on(db, job.id, worker)
                if self._news.wait(TICK_S):
                    self._news.clear()
                    _clear_away(db)
        finally:
            self._is_working = False
            worker.stop()
        self._settle(db, jobs.find(db, job.id), worker)

    def _pass_on(self, db: Database, id: str, worker: "Worker") -> None:
        """Tell the worker what is new."""
        wish = jobs.find(db, id).wish
        if wish and wish != worker.told:
            worker.tell(wish)
        if worker.is_overdue():
            worker.process.kill()
        if worker.hold(self._is_chatting()):
            jobs.hold(db, id, worker.is_held)

    def _settle(self, db: Database, job: Job, worker: "Worker") -> None:
        if said := worker.last_words():
            log.warning("the worker of %s said: %s", job.id, said)
        if job.state != jobs.RUNNING:  # it has said itself how it ended
            return
        if job.wish == jobs.CANCEL:
            discard(db, job)
            jobs.cancel(db, job.id)
        elif self._closing.is_set():
            jobs.put_back(db, job.id)
        else:
            if job.kind == jobs.FINE_TUNING:
                discard(db, job)
            jobs.fail(db, job.id, how_it_died(worker.process.returncode), code="worker_died")


def _clear_away(db: Database) -> None:
    """Remove what is left of jobs that were cancelled while nobody worked on them."""
    for job in jobs.given_up(db):
        discard(db, job)
        jobs.cleared(db, job.id)


class Worker:
    """The child process of one job, and the line to it."""

    def __init__(self, id: str, *, threads: int, nice: int) -> None:
        self._log = tempfile.TemporaryFile()
        self.told, self.told_at = "", 0.0
        self.is_held, self._quiet_since = False, time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "nightschool.worker", id, str(nice)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env=os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {}),
            start_new_session=True,  # Ctrl-C and a closing terminal are the parent's business
        )

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def tell(self, command: str) -> None:
        """Send a command."""
        self.told, self.told_at = command, time.monotonic()
        self._send(command)

    def _send(self, command: str) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(command.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has just ended, which will be seen

    def hold(self, is_chatting: bool) -> bool:
        """Hold the work up while somebody chats and a moment longer; whether that has changed."""
        now = time.monotonic()
        if is_chatting:
            self._quiet_since = now
        wanted = is_chatting or (self.is_held and now - self._quiet_since < QUIET_S)
        if wanted == self.is_held:
            return False
        self.is_held = wanted
        self._send("hold" if wanted else "go")
        return True

    def is_overdue(self) -> bool:
        """Whether it was told to cancel long ago."""
        return self.told == jobs.CANCEL and time.monotonic() - self.told_at > CANCEL_S

    def stop(self) -> None:
        """Let it save and end; what does not end is killed."""
        assert self.process.stdin
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """The end of what it wrote for a programmer to read."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LOG_TAIL_BYTES))
        text = self._log.read().decode("utf-8", "replace").strip()
        self._log.close()
        return text


def how_it_died(code: int) -> str:
    """Why a worker that said nothing is gone."""
    if code == -getattr(signal, "SIGKILL", 9):
        return (
            "The training process was killed, most likely because the memory ran out. Choose a smaller base "
            "or smaller batches, or close other programs, and create the job again."
        )
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"The training process {how}. Create the job again; the program's log says more."
