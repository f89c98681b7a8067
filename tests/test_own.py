"""Our own API, as the page uses it: remember, ask, study, examine, promote, export, forget."""

import io
import json
import shutil
import time
import zipfile
from collections import deque
from dataclasses import replace

import httpx
import pytest
from tiny import write_tiny

from nightschool import jobs
from nightschool.engine import Engine
from nightschool.hub import register
from nightschool.library import remember as remember_paths
from nightschool.pace import MAX_EPOCHS, PREPARING_SHARE, TRAINING_SHARE, WRITING_SHARE
from nightschool.paths import adapters_dir
from nightschool.promotion import move
from nightschool.server.own.sources import clean_name
from nightschool.server.own.study import Speeds, foresee
from nightschool.settings import StudySettings
from nightschool.store import open_store
from nightschool.study import StudyOrder, study

PEOPLE = "Ada Finch works as a pilot and lives in Brill. She plays the oboe. Her sister is Una Finch."
HOUSE = "# House\n\nThe bread knife is kept behind the tins.\n\n## Canoe\n\nThe red canoe was bought in 2018."
LIMIT_S = 240.0


@pytest.fixture
def own(server):
    with httpx.Client(base_url=server.url + "/v1/nightschool", timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture
def tiny(tmp_path):
    return register(write_tiny(tmp_path / "tiny.gguf", "llama"), "tiny")


def good(response):
    assert response.status_code == 200, response.text
    return response.json()


def refusal(response, status, *, param=None):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param
    return error["message"]


def remember(own, text, name):
    (source,) = good(own.post("/sources", json={"text": text, "name": name}))["remembered"]
    return source


def finished(own, job, *states):
    """The job when it has come to one of these states."""
    states = states or ("succeeded", "failed", "cancelled")
    end = time.monotonic() + LIMIT_S
    while job["state"] not in states:
        assert time.monotonic() < end, f"still {job['state']}: {job['stage']}"
        time.sleep(0.1)
        job = good(own.get(f"/jobs/{job['id']}"))
    return job


def test_status_and_bases_tell_what_is_here(own, tmp_path):
    status = good(own.get("/status"))
    assert (status["default_model"], status["job"], status["chatting"]) == ("ember", None, False)
    assert 0 < status["machine"]["free_memory_bytes"] <= status["machine"]["memory_bytes"]
    register(write_tiny(tmp_path / "tiny.gguf", "gemma3"), "tiny")
    damaged = tmp_path / "damaged.gguf"
    shutil.copyfile(tmp_path / "tiny.gguf", damaged)
    register(damaged, "damaged")
    damaged.write_bytes(b"GGUF")
    bases = {base["name"]: base for base in good(own.get("/bases"))["bases"]}
    assert set(bases) == {"ember", "tiny", "damaged"}
    ember = bases["ember"]
    assert (ember["is_default"], ember["can_train"], ember["quantisation"]) == (True, True, "Q8_0")
    assert ember["parameters"] == 7_999_744
    assert ember["memory_needed_bytes"] > ember["bytes"]
    assert bases["tiny"]["architecture"] == "gemma3"
    assert not bases["tiny"]["is_default"]
    assert "damaged" in bases["damaged"]["problem"]
    assert not bases["damaged"]["can_train"]


def test_what_is_dropped_or_typed_is_answered_from_at_once_and_cited(own):
    files = [
        ("files", ("notes/house.md", HOUSE.encode())),
        ("files", ("broken.pdf", b"%PDF-1.7 nothing")),
        ("files", ("picture.bin", bytes(range(256)))),
    ]
    dropped = good(own.post("/sources", files=files))
    assert [source["label"] for source in dropped["remembered"]] == ["notes/house.md"]
    assert {failed["name"] for failed in dropped["failed"]} == {"broken.pdf", "picture.bin"}
    assert all(failed["reason"] for failed in dropped["failed"])
    note = remember(own, PEOPLE, "people")
    assert (note["kind"], note["label"], note["chunks"]) == ("note", "people", 1)
    found = good(own.post("/ask", json={"question": "Where is the bread knife kept?"}))
    assert found["answer"] == "“The bread knife is kept behind the tins.” [1]"
    (citation,) = found["citations"]
    assert (citation["number"], citation["source"], citation["heading"]) == (1, "notes/house.md", "House")
    assert good(own.post("/ask", json={"question": "Who invented the zip?"}))["known"] is False
    asked = {"question": "Where is the bread knife kept?", "closed_book": True}
    assert good(own.post("/ask", json=asked))["citations"] == []
    text = good(own.get(f"/sources/{dropped['remembered'][0]['id']}"))
    assert [passage["heading"] for passage in text["passages"]] == ["House", "House › Canoe"]
    again = remember(own, PEOPLE, "people")
    assert again["id"] == note["id"]
    changed = remember(own, PEOPLE + " Una is a baker.", "people")
    assert changed["id"] == note["id"]
    assert len(good(own.get("/sources"))["sources"]) == 2


def test_files_that_the_command_line_remembered_are_named_without_their_folders(own, server, tmp_path):
    for folder, text in (("one", "The first gate is green."), ("two", "The second gate is mauve.")):
        (tmp_path / folder / "notes").mkdir(parents=True)
        (tmp_path / folder / "notes" / "gate.md").write_text(text)
        deque(remember_paths(open_store(), [tmp_path / folder / "notes"]), maxlen=0)
    question = "What colour is the second gate?"
    asked = good(own.post("/ask", json={"question": question}))
    assert (asked["answer"], asked["citations"][0]["source"]) == (
        "“The second gate is mauve.” [1]",
        "notes/gate.md",
    )
    with server.openai() as client:
        messages = [{"role": "user", "content": question}]
        said = client.chat.completions.create(model="ember:memory", messages=messages)
        found = client.vector_stores.search("vs_memory", query=question)
    for text in (own.get("/sources").text, said.to_json(), json.dumps([each.filename for each in found])):
        assert "gate.md" in text
        assert str(tmp_path) not in text


def test_a_base_that_reads_is_given_the_passages(own, tmp_path):
    (tmp_path / "able").mkdir()
    (tmp_path / "able" / "card.json").write_text('{"reads_notes": true}')
    register(write_tiny(tmp_path / "able" / "tiny.gguf", "qwen2", context=2048), "able")
    remember(own, HOUSE, "house")
    found = good(own.post("/ask", json={"question": "Where is the bread knife kept?", "model": "able"}))
    assert found["quoted"] is False
    if found["known"]:
        assert found["citations"][0]["source"] == "house"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("C:\\Users\\me\\note.md", "C/Users/me/note.md"),
        ("/a//b/./c.txt", "a/b/c.txt"),
        ("\x00..", "file"),
        ("x" * 500 + ".md", "x" * 197 + ".md"),
    ],
)
def test_names_of_uploads_lead_nowhere(given, kept):
    assert clean_name(given) == kept


def test_a_study_is_planned_done_examined_put_to_use_exported_and_undone(own, tiny, home, server):
    people, house = remember(own, PEOPLE, "people"), remember(own, HOUSE, "house")
    plan = good(own.post("/study/plan", json={"minutes": 5, "base": "tiny"}))
    assert (plan["sources"], plan["new_chunks"], plan["measured"]) == (2, 3, False)
    assert 0 < plan["expected_minutes"] <= 5
    job = good(own.post("/study", json={"minutes": 1, "base": "tiny"}))
    assert (job["kind"], job["name"], job["model"]) == ("study", "notes", "tiny")
    job = finished(own, job)
    assert job["state"] == "succeeded", job["error"]
    result = job["result"]
    assert result["adapter"] == ("notes" if result["promoted"] else "notes.next")
    assert bool(result["reasons"]) != result["promoted"]
    if result["promoted"]:  # how much so small a base learns depends on the time it had
        move(open_store(), "notes", "notes.next")
    assert [step for step, _, _ in job["loss"]] == sorted({step for step, _, _ in job["loss"]})
    log = good(own.get(f"/jobs/{job['id']}/events", params={"limit": 1000}))
    assert [event["number"] for event in log["events"]] == list(range(1, log["last"] + 1))
    rest = good(own.get(f"/jobs/{job['id']}/events", params={"after": log["last"] - 1}))
    assert rest["events"] == log["events"][-1:]
    again = good(own.post("/study/plan", json={"base": "tiny"}))
    assert (again["new_chunks"], again["measured"]) == (0, True)

    (candidate,) = good(own.get("/adapters"))["adapters"]
    assert (candidate["name"], candidate["promoted"], candidate["can_promote"]) == ("notes.next", False, True)
    assert candidate["reasons"] == result["reasons"]
    promoted = good(own.post("/adapters/notes/promote"))
    assert (promoted["name"], promoted["model"], promoted["can_roll_back"]) == ("notes", "tiny+notes", False)
    detail = good(own.get("/adapters/notes"))
    assert {topic["name"] for topic in detail["topics"]} == {"people", "house"}
    assert sum(topic["questions"] for topic in detail["topics"]) == len(detail["exam"]) > 2
    assert detail["recall_after"] == pytest.approx(
        sum(answer["right_after"] for answer in detail["exam"]) / len(detail["exam"])
    )
    check_exports(own, tiny, home)
    shutil.copytree(adapters_dir() / "notes", adapters_dir() / "notes.previous")
    assert good(own.post("/adapters/notes/rollback"))["can_roll_back"]
    check_nothing_tells_paths(own, server, home)

    forgotten = good(own.delete(f"/sources/{people['id']}", params={"rebuild": True}))
    assert forgotten["forgotten"] == "people"
    assert "notes" in forgotten["adapters_retired"]
    assert (forgotten["adapters_rebuilding"], forgotten["traces_left"]) == (["notes"], False)
    assert not [path for path in (home / "nightschool.db",) if b"oboe" in path.read_bytes()]
    (rebuild,) = forgotten["jobs"]
    job = good(own.get(f"/jobs/{rebuild}"))
    assert (job["kind"], job["name"], job["model"]) == ("rebuild", "notes", "tiny")
    assert spec_of(rebuild)["sources"] == [NAME_OF_HOUSE]
    assert good(own.get("/adapters"))["adapters"] == []
    assert good(own.delete(f"/sources/{house['id']}"))["jobs"] == []
    assert finished(own, job)["state"] == "cancelled"


NAME_OF_HOUSE = "note/house"


def spec_of(job):
    """What a job was told to do: not shown, for it names files of this machine."""
    return jobs.find(open_store(), job).spec


def check_exports(own, tiny, home):
    """Every format is what the adapter is, and nothing of it stays on the disk."""
    folder = adapters_dir() / "notes"
    lora = own.get("/adapters/notes/export")
    assert lora.content == (folder / "adapter.gguf").read_bytes()
    assert 'filename="notes.gguf"' in lora.headers["content-disposition"]
    peft = zipfile.ZipFile(io.BytesIO(own.get("/adapters/notes/export?format=peft").content))
    assert sorted(peft.namelist()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert peft.read("adapter_model.safetensors") == (folder / "adapter_model.safetensors").read_bytes()
    merged = home.parent / "merged.gguf"
    merged.write_bytes(own.get("/adapters/notes/export?format=merged").content)
    greedy = {"temperature": 0.0, "max_tokens": 8}
    with Engine(merged) as one, Engine(tiny.path, adapters={"notes": folder / "adapter.gguf"}) as two:
        stacked = two.complete("the red", stack={"notes": 1.0}, **greedy)["content"]
        assert one.complete("the red", **greedy)["content"] == stacked
    ollama = zipfile.ZipFile(io.BytesIO(own.get("/adapters/notes/export?format=modelfile").content))
    assert sorted(ollama.namelist()) == ["Modelfile", "model.gguf"]
    assert b"FROM ./model.gguf" in ollama.read("Modelfile")
    assert ollama.read("model.gguf") == merged.read_bytes()
    refusal(own.get("/adapters/notes/export?format=exe"), 400, param="format")
    refusal(own.get("/adapters/nothing/export"), 404)
    end = time.monotonic() + 10  # it goes a moment after the last byte
    while list((home / "exports").iterdir()):
        assert time.monotonic() < end, "what was exported stays on the disk"
        time.sleep(0.01)


def check_nothing_tells_paths(own, server, home):
    """No answer says where files lie on this machine."""
    paths = ["/status", "/bases", "/sources", "/jobs", "/adapters", "/adapters/notes"]
    paths += [f"/jobs/{job['id']}/events?limit=1000" for job in good(own.get("/jobs"))["jobs"]]
    for path in paths:
        text = json.dumps(good(own.get(path)))
        assert str(home) not in text, path
        assert str(home.parent) not in text, path


def test_jobs_are_paused_resumed_and_cancelled(own, tiny):
    source = remember(own, PEOPLE, "people")
    first = good(own.post("/study", json={"minutes": 5, "base": "tiny"}))
    finished(own, first, "running")
    second = good(own.post("/study", json={"name": "other", "base": "tiny", "sources": [source["id"]]}))
    assert [job["id"] for job in good(own.get("/jobs"))["jobs"]] == [second["id"], first["id"]]
    assert good(own.get("/status"))["job"]["id"] == first["id"]
    assert good(own.post(f"/jobs/{second['id']}/pause"))["state"] == "paused"
    own.post(f"/jobs/{first['id']}/pause")
    finished(own, first, "paused")
    assert good(own.post(f"/jobs/{second['id']}/resume"))["state"] in ("queued", "running")
    own.post(f"/jobs/{second['id']}/cancel")
    assert finished(own, second)["state"] == "cancelled"
    refusal(own.post(f"/jobs/{second['id']}/resume"), 400)
    good(own.post(f"/jobs/{first['id']}/resume"))
    forgotten = good(own.delete(f"/sources/{source['id']}"))
    assert finished(own, first)["state"] == "cancelled"  # there is nothing left to learn
    assert forgotten["jobs"] == []
    refusal(own.get("/jobs/job-none"), 404)


def test_a_study_under_way_begins_again_without_what_is_forgotten(own, tiny):
    people, house = remember(own, PEOPLE, "people"), remember(own, HOUSE, "house")
    job = good(own.post("/study", json={"minutes": 5, "base": "tiny"}))
    finished(own, job, "running")
    forgotten = good(own.delete(f"/sources/{people['id']}"))
    assert finished(own, job)["state"] == "cancelled"
    (again,) = forgotten["jobs"]
    assert spec_of(again) == spec_of(job["id"]) | {"restart": True}  # of all that is left
    named = good(own.post("/study", json={"name": "house", "base": "tiny", "sources": [house["id"]]}))
    assert spec_of(named["id"])["sources"] == [NAME_OF_HOUSE]
    for id in (again, named["id"]):
        own.post(f"/jobs/{id}/cancel")
        assert finished(own, good(own.get(f"/jobs/{id}")))["state"] == "cancelled"


def test_mistakes_are_told_with_the_field_at_fault(own):
    assert "nothing to study" in refusal(own.post("/study", json={}), 400)
    remember(own, PEOPLE, "people")
    for body, status, param in (
        ({"minutes": 5, "until": "07:00"}, 400, "until"),
        ({"until": "25:00"}, 400, "until"),
        ({"minutes": -1}, 400, "minutes"),
        ({"name": "../x"}, 400, "name"),
        ({"sources": ["nothing"]}, 404, "sources"),
        ({"sources": []}, 400, "sources"),
        ({"base": "ember+notes"}, 404, "model"),
        ({"wordings": 5}, 400, "wordings"),
    ):
        refusal(own.post("/study", json=body), status, param=param)
        refusal(own.post("/study/plan", json=body), status, param=param)
    refusal(own.post("/sources", json={"text": ""}), 400, param="text")
    refusal(own.post("/sources", content=b"{", headers={"Content-Type": "application/json"}), 400)
    refusal(own.post("/sources", files=[("notes", (None, "text"))]), 400, param="files")
    refusal(own.post("/ask", json={"question": "x", "model": "nothing"}), 404, param="model")
    refusal(own.post("/ask", json={}), 400, param="question")
    refusal(own.get("/sources/99"), 404)
    refusal(own.delete("/sources/99"), 404)
    refusal(own.post("/adapters/notes/promote"), 404)
    refusal(own.post("/adapters/notes/rollback"), 404)
    refusal(own.get("/adapters/.hidden"), 400, param="name")


def test_a_plan_is_of_what_is_ordered(own, tiny):
    assert good(own.post("/study/plan", json={}))["sources"] == 0
    remember(own, PEOPLE, "people")
    house = remember(own, HOUSE, "house")

    def planned(**order):
        return good(own.post("/study/plan", json={"base": "tiny"} | order))

    every = planned(minutes=600)
    assert (every["sources"], every["chunks"], every["epochs"]) == (2, 3, MAX_EPOCHS)  # there are few lessons
    for one in ([house["id"]], ["house"]):
        some = planned(minutes=600, sources=one)
        assert (some["sources"], some["chunks"], some["waits"]) == (1, 2, 0)
        assert some["lesson_tokens"] < every["lesson_tokens"]
    now = time.localtime()
    until = planned(until=f"{(now.tm_hour + 2) % 24:02}:{now.tm_min:02}")
    assert 118 <= until["minutes"] <= 121
    begun = StudyOrder("tiny", name="notes", sources=("house",), settings=StudySettings(epochs=12.0))
    events = study(open_store(), begun)
    next(events)
    events.close()
    going_on, anew = planned(minutes=600), planned(minutes=600, restart=True)
    assert (going_on["sources"], going_on["epochs"], going_on["unfinished"]) == (1, 12.0, True)
    assert (anew["sources"], anew["epochs"], anew["unfinished"]) == (2, MAX_EPOCHS, True)


def test_a_forecast_counts_the_teachers_reading_and_the_steps():
    speeds = Speeds(1000, 1.0, 50.0, 100.0, 10.0, measured=True)
    settings = StudySettings(minutes=10.0, epochs=2.0, steps=0, distil=0.0)
    plain = foresee(settings, speeds, chunks=10, new=0)
    assert (plain.tokens, plain.epochs, plain.seconds, plain.waits) == (10_000, 2.0, 210.0, 0)
    distilled = foresee(replace(settings, distil=1.0), speeds, chunks=10, new=0)
    assert distilled.seconds == plain.seconds + 600 * PREPARING_SHARE  # all 200 s would be too long
    many = foresee(replace(settings, steps=240), speeds, chunks=10, new=0)
    assert many.epochs == pytest.approx(600 * TRAINING_SHARE * 100 / 10_000)
    waiting = foresee(settings, speeds, chunks=1000, new=1000)
    assert waiting.waits == 1000 - 600 * WRITING_SHARE


def test_until_counts_to_the_next_time_of_day(own):
    remember(own, PEOPLE, "people")
    now = time.localtime()
    job = good(own.post("/study", json={"until": f"{(now.tm_hour + 2) % 24:02}:{now.tm_min:02}"}))
    spec = spec_of(job["id"])
    assert 118 * 60 <= spec["until"] - time.time() <= 121 * 60
    assert "minutes" not in spec["settings"]  # they are counted when its turn comes
    own.post(f"/jobs/{job['id']}/cancel")
    finished(own, job)
