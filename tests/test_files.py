"""Uploaded files: through the real OpenAI client, and what must not get in."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import httpx
import openai
import pytest
from serving import serving

from nightschool import datasets, jobs, uploads
from nightschool.store import open_store

GOOD = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
NO_ANSWER = b'{"messages": [{"role": "user", "content": "a"}]}'
TOOL = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}'
PREFERENCE = b'{"input": {}, "preferred_output": [], "non_preferred_output": []}'


def bytes_kept(home):
    return sorted((home / "files").iterdir()) if (home / "files").exists() else []


def test_a_file_is_kept_listed_read_and_deleted(client, home):
    made = client.files.create(file=("examples.jsonl", GOOD), purpose="fine-tune")
    assert made.id.startswith("file-")
    assert (made.bytes, made.filename, made.purpose) == (len(GOOD), "examples.jsonl", "fine-tune")
    assert client.files.wait_for_processing(made.id).status == "processed"
    assert client.files.content(made.id).read() == GOOD
    assert client.files.retrieve(made.id) == made
    assert bytes_kept(home)[0].stat().st_mode & 0o077 == 0  # nobody else's to read
    note = client.files.create(file=("note.md", b"# Boiler"), purpose="assistants")
    assert [file.id for file in client.files.list()] == [note.id, made.id]
    assert [file.id for file in client.files.list(order="asc", limit=1)] == [made.id, note.id]  # two pages
    assert [file.id for file in client.files.list(purpose="fine-tune")] == [made.id]
    assert client.files.delete(made.id).deleted
    assert [file.id for file in client.files.list()] == [note.id]
    assert len(bytes_kept(home)) == 1
    with pytest.raises(openai.NotFoundError, match=f"No such File object: {made.id}"):
        client.files.content(made.id)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GOOD + b"\n" + NO_ANSWER, "line 2: has no assistant turn to learn from"),
        (GOOD + b"\n\n{broken\n" + GOOD, "line 3: is not JSON"),
        (GOOD + b"\n[1, 2]", "line 2: is not a JSON object"),
        (GOOD + b"\n" + TOOL, "line 2: message 2 calls a tool"),
        (PREFERENCE, "line 1: has no list 'messages'"),
        (b'{"prompt": "a", "completion": "b"}', "line 1: has no list 'messages'"),
        (GOOD + b'\n{"messages": [{"role": "user", "content": "\xff"}]}', "line 2: is not UTF-8"),
        (b"[" * 100_000, "line 1: is not JSON: nested too deeply"),
        (b"GGUF\0\0\0\0", "line 1: is not"),
        (b"\n \n", "holds no examples"),
        (b"", "is empty"),
    ],
)
def test_examples_that_cannot_be_used_are_refused_by_line_and_not_kept(client, home, content, said):
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("examples.jsonl", content), purpose="fine-tune")
    assert said in refused.value.body["message"]
    assert refused.value.body["param"] == "file"
    assert refused.value.body["type"] == "invalid_request_error"
    assert not list(client.files.list())
    assert not bytes_kept(home)


KILLED = """
import io, os, signal, sys
from nightschool import uploads
from nightschool.store import open_store
moment, db = sys.argv[1], open_store()

class Source(io.BytesIO):  # dies while it is read
    def read(self, size=-1):
        piece = super().read(size)
        if moment == "copying" and not piece:
            os.kill(os.getpid(), signal.SIGKILL)
        return piece

def watch(statement):
    if moment == "renamed" and statement == "commit":
        os.kill(os.getpid(), signal.SIGKILL)

db.set_trace_callback(watch)
uploads.save(db, Source(b"my notes"), filename="note.md", purpose="user_data")
"""


@pytest.mark.parametrize("moment", ["copying", "renamed"])
def test_what_a_killed_upload_leaves_is_swept_when_a_server_starts(home, moment):
    with closing(open_store()) as db:
        kept = uploads.save(db, io.BytesIO(b"kept"), filename="kept.md", purpose="user_data")
        code = [sys.executable, "-c", KILLED, moment]
        assert subprocess.run(code, check=False).returncode == -signal.SIGKILL
        assert len(bytes_kept(home)) == 2
        (home / "files" / "mine.md").touch()  # nothing of ours
        with serving():
            assert [path.name for path in bytes_kept(home)] == [kept.path.name, "mine.md"]
        assert [each.id for each in uploads.list_uploads(db)] == [kept.id]


def test_an_upload_under_way_is_not_swept(home):
    class Slow(io.BytesIO):
        def read(self, size=-1):
            if piece := super().read(size):
                with closing(open_store()) as other:
                    (draft,) = bytes_kept(home)
                    assert uploads.sweep(other) == 0
                    assert draft.exists()
            return piece

    with closing(open_store()) as db:
        made = uploads.save(db, Slow(b"text"), filename="note.md", purpose="user_data")
        assert made.path.read_bytes() == b"text"
        draft = made.path.with_name(f".{made.path.name}.{os.getpid()}.draft")
        draft.touch()
        os.utime(draft, (1, 1))  # of an earlier process that had our number
        assert uploads.sweep(db) == 1
        assert bytes_kept(home) == [made.path]


def test_too_much_is_refused(client, home, monkeypatch):
    monkeypatch.setattr(datasets, "LINE_LIMIT", 200)
    monkeypatch.setattr(datasets, "LINES_LIMIT", 3)
    monkeypatch.setattr(uploads, "MAX_BYTES", 1 << 20)
    long = GOOD.replace(b'"a"', b'"' + b"a" * 300 + b'"')
    for content, said in (
        (GOOD + b"\n" + long, "line 2: is longer than"),
        (b"\n".join([GOOD] * 4), "line 4: is one more than the 3 examples"),
        (b"x" * (1 << 20) + b"x", "is larger than 1 MB"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            client.files.create(file=("examples.jsonl", content), purpose="fine-tune")
    assert not bytes_kept(home)


@pytest.mark.parametrize(
    ("filename", "shown", "suffix"),
    [
        ("../../../etc/cron.d/x.md", "x.md", ".md"),
        ("C:\\Users\\me\\notes.TXT", "notes.TXT", ".txt"),
        ("a\r\nSet-Cookie: b.md", "aSet-Cookie: b.md", ".md"),
        ("run.sh.exe", "run.sh.exe", ""),
        (".bashrc", ".bashrc", ""),
        ("ü" * 300 + ".md", "ü" * 200, ""),
    ],
)
def test_a_name_is_for_people_and_decides_no_path(client, home, filename, shown, suffix):
    with closing(open_store()) as db:  # the client would tidy such names up
        made = uploads.save(db, io.BytesIO(b"text"), filename=filename, purpose="user_data")
    assert made.filename == shown
    assert [path.name for path in bytes_kept(home)] == [made.id + suffix]
    assert client.files.content(made.id).read() == b"text"


@pytest.mark.parametrize("purpose", ["batch", "vision", "evals", "fine-tune-results", "anything"])
def test_other_purposes_are_refused(client, purpose):
    with pytest.raises(openai.BadRequestError, match="must be one of fine-tune, assistants, user_data"):
        client.files.create(file=("a.jsonl", GOOD), purpose=purpose)


def test_what_is_no_upload_is_refused(server):
    def post(**sent):
        return httpx.post(server.url + "/v1/files", trust_env=False, **sent)

    for answer in (
        post(data={"purpose": "fine-tune"}, files={"other": b"x"}),
        post(data={"purpose": "fine-tune", "url": "http://example.com"}, files={"file": ("a.jsonl", GOOD)}),
        post(files={"file": ("a.jsonl", GOOD)}),
        post(json={"purpose": "fine-tune", "file": "/etc/passwd"}),
        post(data={"purpose": "fine-tune", "file": "/etc/passwd"}, files={"x": b"x"}),
    ):
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]


def test_a_file_can_be_kept_for_a_while(client, home, monkeypatch):
    made = client.files.create(
        file=("note.md", b"text"),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert made.expires_at == made.created_at + 3600
    later = time.time() + 3700
    monkeypatch.setattr(time, "time", lambda: later)
    assert not list(client.files.list())
    assert not bytes_kept(home)


def test_a_file_that_a_job_needs_cannot_be_deleted(client, server):
    made = client.files.create(file=("examples.jsonl", GOOD), purpose="fine-tune")
    with closing(open_store()) as db:
        spec = {"training_file": made.id}
        job = jobs.add(db, jobs.FINE_TUNING, name="a", model="ember", spec=spec, state=jobs.PAUSED)
        with pytest.raises(openai.ConflictError, match=f"{job.id!r} needs this file"):
            client.files.delete(made.id)
        jobs.ask(db, job.id, jobs.CANCEL)
    assert client.files.delete(made.id).deleted
