"""Fine-tuning through the real OpenAI client: whole jobs on ember, in a real server, with all that can befall
them. Every job is a few dozen steps."""

import csv
import io
import json
import os
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from threading import Event

import openai
import psutil
import pytest
from serving import serving

from nightschool import jobs, uploads
from nightschool.store import open_store
from nightschool.supervisor import Supervisor

LIMIT_S = 120.0
FINISHED = ("succeeded", "failed", "cancelled")


def sums(count=24, first=0):
    """Lines of examples."""
    return "\n".join(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"What is {i} and {i}?"},
                    {"role": "assistant", "content": f"It is {2 * i}."},
                ]
            }
        )
        for i in range(first, first + count)
    )


def upload(client, text=None, name="sums.jsonl"):
    return client.files.create(file=(name, (text or sums()).encode()), purpose="fine-tune")


def settings(epochs, **more):
    """A quick supervised job's method."""
    return {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 8} | more},
    }


def until(condition, *, limit_s=LIMIT_S):
    """Wait for something to be so, and return what it is."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)
    return found


def finished(client, id):
    def look():
        job = client.fine_tuning.jobs.retrieve(id)
        return job if job.status in FINISHED else None

    return until(look)


def pause(client, id):
    """Pause a job, and wait until it has stopped."""
    client.fine_tuning.jobs.pause(id)

    def look():
        job = client.fine_tuning.jobs.retrieve(id)
        return job if job.status == "paused" else None

    return until(look)


def steps_done(id):
    with closing(open_store()) as db:
        return len(jobs.steps(db, id))


def at_step(id, count=1):
    until(lambda: steps_done(id) >= count)


def worker():
    """The process that works on a job now."""
    with closing(open_store()) as db:
        row = db.execute("select owner from jobs where state = 'running'").fetchone()
    pid = int(row["owner"].partition(":")[0]) if row else os.getpid()
    return None if pid == os.getpid() else psutil.Process(pid)


@pytest.fixture
def server():
    with serving(threads=1, nice=0) as found:
        yield found


# Whole jobs ---------------------------------------------------------------------------------------


def test_a_job_paused_and_resumed_gives_the_model_of_one_undisturbed_and_both_can_be_talked_to(client, home):
    file, held_out = upload(client), upload(client, sums(8, first=30), name="held-out.jsonl")
    order = {
        "model": "ember",
        "training_file": file.id,
        "validation_file": held_out.id,
        "method": settings(20, learning_rate_multiplier=0.5),
        "seed": 7,
    }
    first = client.fine_tuning.jobs.create(**order, suffix="my sums", metadata={"team": "night"})
    second = client.fine_tuning.jobs.create(**order, integrations=[])
    assert (first.status, second.status) == ("queued", "queued")
    at_step(first.id)
    paused = pause(client, first.id)
    assert paused.fine_tuned_model is None
    assert steps_done(first.id) < 60
    assert finished(client, second.id).status == "succeeded"  # the next in the queue need not wait
    assert client.fine_tuning.jobs.resume(first.id).status in ("queued", "running")
    done, undisturbed = finished(client, first.id), client.fine_tuning.jobs.retrieve(second.id)
    assert done.status == "succeeded", done.error

    weights = [
        (folder / "adapter_model.safetensors").read_bytes() for folder in shelf(home, done, undisturbed)
    ]
    assert weights[0] == weights[1]
    check_what_a_job_says(client, done)
    check_results(client, done)
    check_checkpoints(client, done)
    for job in (done, undisturbed):
        assert client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    asked = {
        "messages": [{"role": "user", "content": "What is 5 and 5?"}],
        "temperature": 0,
        "max_tokens": 12,
    }
    said = [
        client.chat.completions.create(model=model, **asked).choices[0].message.content
        for model in (done.fine_tuned_model, undisturbed.fine_tuned_model, "ember")
    ]
    assert said[0] == said[1]
    assert said[0].startswith("It is ")
    assert said[2] != said[0]
    check_lists(client, done, undisturbed)


def shelf(home, *done):
    """The folders of jobs' adapters."""
    return [
        next(path for path in (home / "adapters").iterdir() if path.name.endswith(job.id[-8:]))
        for job in done
    ]


def check_what_a_job_says(client, job):
    assert job.fine_tuned_model == f"ft:ember:local:my-sums:{job.id[-8:]}"
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (20, 8)
    assert job.method.supervised.hyperparameters.learning_rate_multiplier == 0.5
    assert job.created_at <= job.finished_at
    assert (job.seed, job.metadata, job.integrations, job.error) == (7, {"team": "night"}, [], None)
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=7))  # the client turns the pages
    messages = [event.message for event in reversed(events)]
    assert messages[0] == f"Created job {job.id}."
    assert messages[-1] == "The job has successfully completed."
    assert "The job is paused." in messages
    assert len({event.id for event in events}) == len(events) > 30
    metrics = [event.data for event in events if event.type == "metrics"]
    assert metrics[0]["train_loss"] < metrics[-1]["train_loss"]  # newest first


def check_results(client, job):
    rows = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))
    assert list(rows[0]) == [
        "step",
        "train_loss",
        "train_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
    ]
    assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert float(rows[-1]["train_accuracy"]) > float(rows[0]["train_accuracy"])
    measured = [float(row["valid_loss"]) for row in rows if row["valid_loss"]]
    assert len(measured) == 20  # after each epoch
    assert measured[-1] < measured[0]
    assert job.trained_tokens > 20 * 24 * 10
    assert client.files.retrieve(job.result_files[0]).purpose == "fine-tune-results"


def check_checkpoints(client, job):
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [each.fine_tuned_model_checkpoint for each in checkpoints][0] == job.fine_tuned_model
    assert len(checkpoints) == 3
    assert checkpoints[0].step_number > checkpoints[1].step_number > checkpoints[2].step_number
    assert all(each.metrics.full_valid_loss and each.metrics.train_loss for each in checkpoints)
    earlier = checkpoints[1].fine_tuned_model_checkpoint
    assert earlier == f"{job.fine_tuned_model}:ckpt-step-{checkpoints[1].step_number}"
    asked = [{"role": "user", "content": "What is 5 and 5?"}]
    assert client.chat.completions.create(model=earlier, messages=asked, max_tokens=4).choices
    assert client.models.retrieve(earlier).id == earlier
    names = [model.id for model in client.models.list()]
    assert job.fine_tuned_model in names
    shelf = client.get("/nightschool/adapters", cast_to=object)["adapters"]
    counted = client.get("/nightschool/status", cast_to=object)["adapters"]
    assert not [name for name in (*names, *(each["name"] for each in shelf)) if "step-" in name]
    assert len(shelf) == counted == len(names) - 1  # beside ember


def check_lists(client, older, newer):
    assert [job.id for job in client.fine_tuning.jobs.list(limit=1)] == [newer.id, older.id]
    page = client.fine_tuning.jobs.list(after=newer.id)
    assert ([job.id for job in page.data], page.has_more) == ([older.id], False)
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "night"})] == [older.id]
    assert not list(client.fine_tuning.jobs.list(metadata={"team": "day"}))
    bare = client.fine_tuning.jobs.list(extra_query={"metadata": "null"})
    assert [job.id for job in bare] == [newer.id]


def test_a_tuned_model_can_be_trained_further(client, home):
    first = client.fine_tuning.jobs.create(
        model="ember", training_file=upload(client).id, method=settings(12), seed=1
    )
    name = finished(client, first.id).fine_tuned_model
    file = upload(client, sums(8, first=16))
    second = client.fine_tuning.jobs.create(
        model=name, training_file=file.id, seed=1, hyperparameters={"n_epochs": 1, "batch_size": "auto"}
    )
    assert second.model == name
    done = finished(client, second.id)
    assert done.fine_tuned_model.startswith("ft:ember:local::")
    assert isinstance(done.hyperparameters.batch_size, int)  # it says what "auto" has become
    with closing(open_store()) as db:
        begun, further = jobs.steps(db, first.id)[0].loss, jobs.steps(db, second.id)[0].loss
    assert further < begun / 2


# What befalls jobs --------------------------------------------------------------------------------


def test_a_cancelled_job_leaves_nothing(client, server, home):
    file = upload(client)
    begun, waiting = (
        client.fine_tuning.jobs.create(model="ember", training_file=file.id, method=settings(200))
        for _ in range(2)
    )
    assert client.fine_tuning.jobs.cancel(waiting.id).status == "cancelled"
    at_step(begun.id)
    with server.state.engines.chatting, closing(open_store()) as db:  # as every chat does
        until(lambda: jobs.find(db, begun.id).held, limit_s=5)
        pause(client, begun.id)
    assert client.fine_tuning.jobs.cancel(begun.id).status == "cancelled"
    until(lambda: not list((home / "runs").iterdir()))
    assert not (home / "adapters").exists() or not list((home / "adapters").iterdir())
    with pytest.raises(openai.BadRequestError, match="cancelled already"):
        client.fine_tuning.jobs.resume(begun.id)


def test_a_worker_that_is_killed_fails_its_job_and_the_next_one_begins(client, home):
    doomed = client.fine_tuning.jobs.create(
        model="ember", training_file=upload(client).id, method=settings(200)
    )
    following = client.fine_tuning.jobs.create(
        model="ember", training_file=upload(client).id, method=settings(1)
    )
    at_step(doomed.id)
    worker().kill()
    failed = finished(client, doomed.id)
    assert failed.status == "failed"
    assert failed.error.code == "worker_died"
    assert "killed, most likely because the memory ran out" in failed.error.message
    assert client.fine_tuning.jobs.list_events(doomed.id).data[0].level == "error"
    assert finished(client, following.id).status == "succeeded"
    assert [path.name[-8:] for path in (home / "adapters").iterdir()] == [following.id[-8:]]


def test_jobs_go_on_when_the_server_is_started_again(home):
    with serving(threads=1, nice=0) as server, server.openai() as client:
        running = client.fine_tuning.jobs.create(
            model="ember", training_file=upload(client).id, method=settings(40), seed=1
        )
        queued = client.fine_tuning.jobs.create(
            model="ember", training_file=upload(client).id, method=settings(1)
        )
        at_step(running.id)
    stood_at = steps_done(running.id)
    assert 0 < stood_at < 120
    with closing(open_store()) as db:
        assert [jobs.find(db, job.id).state for job in (running, queued)] == ["queued", "queued"]
    with serving(threads=1, nice=0) as server, server.openai() as client:
        assert finished(client, running.id).status == "succeeded"
        assert finished(client, queued.id).status == "succeeded"
        messages = [event.message for event in client.fine_tuning.jobs.list_events(running.id)]
        assert "The program stops; the job goes on when it runs again." in messages
    told = [message for message in messages if message.startswith(f"Step {stood_at}/")]
    assert len(told) <= 1  # no step was computed twice


PROGRAM = """
import time
from nightschool.supervisor import Supervisor
Supervisor(threads=1, nice=0).start()
time.sleep(600)
"""


def queued_job(**spec):
    """A job put into the queue without a server."""
    with closing(open_store()) as db:
        file = uploads.save(db, io.BytesIO(sums().encode()), filename="sums.jsonl", purpose="fine-tune")
        whole = {
            "training_file": file.id,
            "seed": 1,
            "batch_size": 8,
            "served_as": "ft:ember:local::abc",
        } | spec
        return jobs.add(db, jobs.FINE_TUNING, name="ft-abc", model="ember", spec=whole)


def state_of(id):
    with closing(open_store()) as db:
        return jobs.find(db, id).state


@contextmanager
def supervising(**options):
    supervisor = Supervisor(threads=1, nice=0, **options)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.close()


def test_a_job_outlives_the_program_and_its_worker(home):
    job = queued_job(n_epochs=60)
    with subprocess.Popen([sys.executable, "-c", PROGRAM]) as program:
        at_step(job.id)
        orphan = worker()
        program.kill()
    orphan.wait(30)
    assert state_of(job.id) == "queued"  # the worker saved, said so and ended
    before = steps_done(job.id)
    with subprocess.Popen([sys.executable, "-c", PROGRAM]) as program:
        at_step(job.id, before + 1)
        orphan = worker()
        orphan.suspend()  # as when the power goes: neither of them can say anything
        program.kill()
        program.wait()
        orphan.kill()
    assert state_of(job.id) == "running"
    with supervising(), closing(open_store()) as db:
        done = until(lambda: (found := jobs.find(db, job.id)).is_finished and found)
        assert done.state == "succeeded", done.error
        assert "The program was interrupted" in " ".join(each.message for each in jobs.events(db, job.id))


def test_a_job_that_takes_everything_down_again_and_again_is_given_up(home):
    job = queued_job()
    with closing(open_store()) as db:
        for _ in range(jobs.MAX_ATTEMPTS):
            assert jobs.claim(db, "4194999:1.0").id == job.id  # by a process that is no longer there
        assert jobs.claim(db, jobs.owner_of(os.getpid())) is None
        assert "more memory than there is" in jobs.find(db, job.id).error["message"]


def test_two_programs_on_one_home_do_not_train_at_once(home):
    first, second = queued_job(), queued_job()
    with closing(open_store()) as db, closing(open_store()) as other:
        assert jobs.claim(db, jobs.owner_of(os.getpid())).id == first.id
        assert jobs.claim(other, jobs.owner_of(os.getppid())) is None
        jobs.succeed(db, first.id, {})
        assert jobs.claim(other, jobs.owner_of(os.getppid())).id == second.id


def test_training_stands_still_while_somebody_chats(home):
    chatting = Event()
    job = queued_job(n_epochs=400)
    with supervising(is_chatting=chatting.is_set), closing(open_store()) as db:
        at_step(job.id)
        process = worker()
        chatting.set()
        until(lambda: jobs.find(db, job.id).held, limit_s=5)
        used = sum(process.cpu_times()[:2])
        time.sleep(2)
        assert sum(process.cpu_times()[:2]) - used < 0.3  # of 2 s
        chatting.clear()
        stood_at = steps_done(job.id)
        at_step(job.id, stood_at + 5)
        assert not jobs.find(db, job.id).held
        chatting.set()
        until(lambda: jobs.find(db, job.id).held, limit_s=5)
        jobs.ask(db, job.id, jobs.CANCEL)  # what is held can still be ended
        until(lambda: jobs.find(db, job.id).is_finished)
    assert state_of(job.id) == "cancelled"
    assert not list((home / "runs").iterdir())


def test_a_file_that_teaches_nothing_fails_its_job_with_the_reason(client, home):
    lines = sums(4).replace('"role": "assistant"', '"role": "assistant", "weight": 0')
    job = client.fine_tuning.jobs.create(model="ember", training_file=upload(client, lines).id)
    failed = finished(client, job.id)
    assert failed.status == "failed"
    assert (failed.error.code, failed.error.param) == ("invalid_training_file", "training_file")
    assert "gives nothing to learn" in failed.error.message
    assert not list((home / "runs").iterdir())


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"model": "gpt-4o-mini-2024-07-18"}, "model", "Here are ember"),
        ({"model": "ember:memory"}, "model", "cannot be trained further"),
        ({"model": "../../etc/passwd"}, "model", "does not exist"),
        ({"training_file": "file-none"}, "training_file", "No such File object: file-none"),
        ({"validation_file": "file-none"}, "validation_file", "No such File object"),
        ({"training_file": "DOCUMENT"}, "training_file", "upload it for 'fine-tune'"),
        ({"method": {"type": "dpo"}}, "method.type", "'dpo' is not offered"),
        ({"method": {"type": "reinforcement"}}, "method.type", "'reinforcement' is not offered"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "other machines"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "from 1 to 1000, or 'auto'"),
        ({"hyperparameters": {"learning_rate_multiplier": -1}}, None, "it must be from 0.001 to 100"),
        ({"suffix": "x" * 65}, "suffix", "at most 64"),
        ({"metadata": {"k": "v" * 513}}, None, "at most 512"),
        ({"extra_body": {"n_epochs": 3}}, "n_epochs", "Unknown parameter"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_parameter_at_fault(client, home, changes, param, said):
    document = client.files.create(file=("note.md", b"# A note"), purpose="assistants")
    order = {"model": "ember", "training_file": upload(client).id} | changes
    if order["training_file"] == "DOCUMENT":
        order["training_file"] = document.id
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
        client.fine_tuning.jobs.create(**order)
    assert said in refused.value.body["message"]
    assert param is None or refused.value.body["param"] == param
    assert not list(client.fine_tuning.jobs.list())


def test_jobs_that_are_not_there_are_not_found(client):
    for ask in (
        client.fine_tuning.jobs.retrieve,
        client.fine_tuning.jobs.cancel,
        client.fine_tuning.jobs.pause,
        client.fine_tuning.jobs.resume,
        lambda id: client.fine_tuning.jobs.list_events(id).data,
        lambda id: client.fine_tuning.jobs.checkpoints.list(id).data,
    ):
        with pytest.raises(openai.NotFoundError, match="Could not find fine tune: ftjob-none"):
            ask("ftjob-none")
