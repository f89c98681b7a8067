"""The queue, and studies as jobs: paused, resumed, cancelled, on a tiny base."""

import time
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
from test_study import EASY, NOTES, QUICK
from tiny import write_tiny

from nightschool import jobs
from nightschool.adapters import list_adapters
from nightschool.errors import JobState, NotFound
from nightschool.library import remember_text
from nightschool.settings import StudySettings
from nightschool.store import open_store, transaction
from nightschool.supervisor import Supervisor
from nightschool.worker import MIN_MINUTES, left_of, study_notes

STAGES = ("write", "divide", "rehearse", "expect", "train", "examine", "promote")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("base") / "tiny.gguf", "llama"))


@pytest.fixture
def db(home):
    with closing(open_store()) as found:
        yield found


@contextmanager
def supervising():
    supervisor = Supervisor(threads=1, nice=0)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.close()


def until(condition, *, limit_s=120):
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)
    return found


def add_study(db, base, **more):
    for name, text in NOTES.items():
        remember_text(db, text, name=name)
    train = {"precision": "fp32", "batch_tokens": 512}
    spec = {"settings": QUICK | EASY | more, "train": train}
    return jobs.add(db, jobs.STUDY, name="notes", model=base, spec=spec)


def ended(db, id):
    return until(lambda: (job := jobs.find(db, id)).is_finished and job)


def test_a_study_that_is_paused_goes_on_and_its_adapter_is_put_to_use(db, base):
    job = add_study(db, base)
    with supervising() as supervisor:
        until(lambda: jobs.find(db, job.id).stage == "write" and jobs.find(db, job.id).progress)
        jobs.ask(db, job.id, jobs.PAUSE)
        until(lambda: jobs.find(db, job.id).state == jobs.PAUSED)
        assert not list_adapters()
        jobs.ask(db, job.id, jobs.RESUME)
        supervisor.wake()
        done = ended(db, job.id)
    assert done.state == jobs.SUCCEEDED, done.error
    assert (done.result["adapter"], done.result["promoted"], done.result["reasons"]) == ("notes", True, [])
    assert done.result["model"] == f"{base}+notes"
    assert 0 <= done.result["recall_after"] <= 1
    shown = jobs.as_json(db, done)
    assert shown["loss"]
    assert shown["stage"] in (*STAGES, "done")
    told = [event.message for event in jobs.events(db, job.id)]
    assert told.count("The job has started.") == 2
    assert any("Going on with the study" in each for each in told)


def test_a_cancelled_study_leaves_nothing_but_the_lessons_that_were_written(db, base, home):
    job = add_study(db, base, epochs=400.0)
    with supervising():
        until(lambda: jobs.steps(db, job.id) or jobs.find(db, job.id).is_finished)
        jobs.ask(db, job.id, jobs.CANCEL)
        assert ended(db, job.id).state == jobs.CANCELLED
    assert not list_adapters()
    assert not [path for folder in ("runs", "study") for path in (home / folder).iterdir()]
    assert db.execute("select count(*) from studies where stage != 'done'").fetchone()[0] == 0
    assert db.execute("select count(*) from lessons").fetchone()[0] > 0


def test_a_study_that_had_to_wait_has_what_is_left_until_its_hour(db, base, monkeypatch):
    remember_text(db, NOTES["house.md"])
    queued_at, settings = time.time(), StudySettings(minutes=240.0)
    job = jobs.add(db, jobs.STUDY, name="notes", model=base, spec={"until": queued_at + 3600})
    for waited_s, left_minutes in ((0, 60.0), (1200, 40.0), (3600, MIN_MINUTES), (90_000, MIN_MINUTES)):
        monkeypatch.setattr(time, "time", lambda waited_s=waited_s: queued_at + waited_s)
        assert left_of(db, job, settings).minutes == pytest.approx(left_minutes)
    with closing(study_notes(db, job, time.monotonic)) as events:
        assert "has passed" in next(events).text
    begun = replace(job, result={"begun_s": 0.0})  # in a later sitting too
    monkeypatch.setattr(time, "time", lambda: queued_at + 1800)
    assert left_of(db, begun, settings).minutes == pytest.approx(30.0)


def test_a_study_of_nothing_fails_in_a_sentence(db, base):
    job = jobs.add(db, jobs.STUDY, name="notes", model=base, spec={})
    with supervising():
        failed = ended(db, job.id)
    assert failed.state == jobs.FAILED
    assert failed.error["message"].startswith("There is nothing to study yet")


def test_a_mistake_of_the_programs_own_fails_the_job_and_says_so(db, base):
    job = jobs.add(db, jobs.STUDY, name="notes", model=base, spec={"settings": {"no such": 1}})
    with supervising():
        assert "a mistake of the program's" in ended(db, job.id).error["message"]


# Rows ---------------------------------------------------------------------------------------------


def queued(db):
    return jobs.add(db, jobs.STUDY, name="notes", model="ember", spec={})


def test_what_waits_is_paused_resumed_and_cancelled_at_once(db):
    first, second = queued(db), queued(db)
    assert jobs.ask(db, first.id, jobs.PAUSE).state == jobs.PAUSED
    assert jobs.ask(db, first.id, jobs.PAUSE).state == jobs.PAUSED
    assert jobs.current(db).id == second.id
    assert jobs.ask(db, first.id, jobs.RESUME).state == jobs.QUEUED
    assert jobs.ask(db, first.id, jobs.RESUME).state == jobs.QUEUED
    assert jobs.current(db).id == first.id  # in the order they were added
    assert jobs.ask(db, first.id, jobs.CANCEL).state == jobs.CANCELLED
    assert [job.id for job in jobs.list_jobs(db)] == [second.id, first.id]
    for wish in (jobs.PAUSE, jobs.RESUME, jobs.CANCEL):
        with pytest.raises(JobState, match="was cancelled already"):
            jobs.ask(db, first.id, wish)
    with pytest.raises(NotFound, match="no job 'nobody'"):
        jobs.ask(db, "nobody", jobs.CANCEL)


def test_a_wish_to_pause_can_be_taken_back_while_the_worker_is_busy(db):
    job = queued(db)
    jobs.claim(db, "1:1")
    assert jobs.ask(db, job.id, jobs.PAUSE).wish == jobs.PAUSE
    assert jobs.ask(db, job.id, jobs.RESUME).wish == ""
    assert jobs.ask(db, job.id, jobs.CANCEL).wish == jobs.CANCEL
    assert jobs.ask(db, job.id, jobs.RESUME).wish == jobs.CANCEL


def test_the_log_is_read_in_both_directions(db):
    job = queued(db)
    with transaction(db):
        for number in range(2, 8):
            jobs.tell(db, job.id, f"line {number}", data={"n": number} if number % 2 else None)
    forwards = jobs.events(db, job.id, after=3, limit=2)
    assert [(event.number, event.data) for event in forwards] == [(4, None), (5, {"n": 5})]
    backwards = jobs.events(db, job.id, after=3, newest_first=True)
    assert [event.number for event in backwards] == [2, 1]
    assert [event.number for event in jobs.events(db, job.id, newest_first=True, limit=2)] == [7, 6]


def test_of_many_steps_a_few_are_shown_and_the_measured_ones_among_them(db):
    job = queued(db)
    with transaction(db):
        jobs.keep_steps(
            db, job.id, [jobs.Step(n, loss=1 / n, accuracy=0.5, tokens=10) for n in range(1, 2001)]
        )
        jobs.keep_steps(db, job.id, [jobs.Step(n, valid_loss=2 / n) for n in (777, 2000)])
    every, few = jobs.steps(db, job.id), jobs.steps(db, job.id, at_most=100)
    assert len(every) == 2000
    assert 100 <= len(few) <= 103
    assert {1, 777, 2000} <= {step.step for step in few}
    assert every[776] == jobs.Step(777, 1 / 777, 0.5, 10, 2 / 777, None)
    assert jobs.trained_tokens(db, job.id) == 20_000
