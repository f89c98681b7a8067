"""Vector stores through the real openai client: files in, passages out, stores apart, nothing left behind."""

import asyncio
import io
import time

import httpx
import openai
import pytest
from test_vectors import write_embedding_model

from nightschool.hub import register
from nightschool.store import open_store

BOILER = b"# Boiler\n\n## Reset\n\nHold the brass knob for nine seconds.\n"
BEES = b"# Bees\n\nThe hives stand behind the shed. Elm honey is taken in June.\n"
CANOE = b"The red canoe was bought in 2018. Its paddle hangs in the brass rack.\n"


def upload(client, data, name):
    return client.files.create(file=(name, io.BytesIO(data)), purpose="assistants").id


def texts(found):
    return [part.text for result in found.data for part in result.content]


def test_a_file_is_found_in_the_store_that_it_was_put_into_and_in_no_other(client):
    house = client.vector_stores.create(name="house", metadata={"floor": "1"})
    garden = client.vector_stores.create(name="garden", file_ids=[upload(client, BEES, "bees.md")])
    file = client.vector_stores.files.upload_and_poll(vector_store_id=house.id, file=("boiler.md", BOILER))
    assert (file.status, file.last_error, file.vector_store_id) == ("completed", None, house.id)
    found = client.vector_stores.search(house.id, query="How do I reset the boiler?")
    assert found.object == "vector_store.search_results.page"
    (result,) = found.data
    assert (result.file_id, result.filename) == (file.id, "boiler.md")
    assert "Hold the brass knob for nine seconds." in result.content[0].text
    assert result.score == pytest.approx(1.0)
    assert client.vector_stores.search(garden.id, query="How do I reset the boiler?").data == []
    assert "hives" in texts(client.vector_stores.search(garden.id, query="hives"))[0]


def test_what_stands_in_a_store_is_not_remembered_and_what_is_remembered_can_be_searched(server, client):
    store = client.vector_stores.create(file_ids=[upload(client, BEES, "bees.md")])
    own = server.url + "/v1/nightschool"
    note = {"text": "The boathouse key is under the third pot.", "name": "keys"}
    httpx.post(own + "/sources", json=note, trust_env=False).raise_for_status()
    sources = httpx.get(own + "/sources", trust_env=False).json()["sources"]
    assert [source["label"] for source in sources] == ["keys"]
    asked = httpx.post(own + "/ask", json={"question": "Where do the hives stand?"}, trust_env=False)
    assert asked.json()["known"] is False
    memory = client.vector_stores.retrieve("vs_memory")
    assert memory.file_counts.completed == 1
    assert [each.id for each in client.vector_stores.list()] == [store.id, "vs_memory"]
    (result,) = client.vector_stores.search("vs_memory", query="boathouse key").data
    assert (result.filename, result.attributes["kind"]) == ("keys", "note")
    (file,) = client.vector_stores.files.list("vs_memory")
    content = client.vector_stores.files.content(file.id, vector_store_id="vs_memory")
    assert "third pot" in content.data[0].text
    for refused in (
        lambda: client.vector_stores.delete("vs_memory"),
        lambda: client.vector_stores.update("vs_memory", name="mine"),
        lambda: client.vector_stores.files.delete(file.id, vector_store_id="vs_memory"),
    ):
        with pytest.raises(openai.BadRequestError, match="remembered") as error:
            refused()
        assert error.value.code == "read_only"


def test_batches_go_in_together_and_say_which_files_could_not_be_read(client):
    store = client.vector_stores.create(name="all")
    batch = client.vector_stores.file_batches.upload_and_poll(
        store.id, files=[("boiler.md", BOILER), ("bees.md", BEES), ("broken.pdf", b"%PDF-1.7 nothing")]
    )
    counts = batch.file_counts
    assert (batch.status, counts.completed, counts.failed, counts.total) == ("completed", 2, 1, 3)
    files = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, filter="failed")
    (failed,) = files.data
    assert failed.last_error.code == "invalid_file"
    assert "no PDF" in failed.last_error.message
    again = client.vector_stores.file_batches.create_and_poll(
        store.id, file_ids=[upload(client, CANOE, "canoe.txt")], attributes={"year": 2018}
    )
    assert again.file_counts.completed == 1
    mixed = client.vector_stores.file_batches.create(
        store.id, files=[{"file_id": upload(client, b"Elm wood burns slowly.", "elm.txt")}]
    )
    assert client.vector_stores.file_batches.retrieve(mixed.id, vector_store_id=store.id) == mixed
    assert client.vector_stores.file_batches.cancel(mixed.id, vector_store_id=store.id) == mixed
    assert client.vector_stores.retrieve(store.id).file_counts.total == 5


def test_results_are_filtered_by_attributes_limited_and_best_first(client):
    store = client.vector_stores.create()
    for data, name, attributes in (
        (BOILER, "boiler.md", {"room": "cellar", "year": 2001, "old": True}),
        (BEES, "bees.md", {"room": "garden", "year": 2015}),
        (CANOE, "canoe.txt", {"room": "cellar", "year": 2018, "old": False}),
    ):
        file_id = upload(client, data, name)
        client.vector_stores.files.create_and_poll(file_id, vector_store_id=store.id, attributes=attributes)

    def names(query, **options):
        return [result.filename for result in client.vector_stores.search(store.id, query=query, **options)]

    both = names("brass knob")
    assert both == ["boiler.md", "canoe.txt"]
    assert names("brass knob", max_num_results=1) == ["boiler.md"]
    assert names("brass knob", ranking_options={"score_threshold": 0.9}) == ["boiler.md"]
    for filters, expected in (
        ({"type": "eq", "key": "old", "value": False}, ["canoe.txt"]),
        ({"type": "ne", "key": "old", "value": True}, ["canoe.txt"]),
        ({"type": "gt", "key": "year", "value": 2010}, ["canoe.txt"]),
        ({"type": "lte", "key": "year", "value": 2001}, ["boiler.md"]),
        ({"type": "in", "key": "room", "value": ["cellar", "attic"]}, both),
        ({"type": "nin", "key": "room", "value": ["cellar"]}, []),
        ({"type": "eq", "key": "absent", "value": "x"}, []),
        (
            {
                "type": "and",
                "filters": [
                    {"type": "eq", "key": "room", "value": "cellar"},
                    {"type": "or", "filters": [{"type": "lt", "key": "year", "value": 2005}]},
                ],
            },
            ["boiler.md"],
        ),
    ):
        assert names("brass knob", filters=filters) == expected, filters
    assert set(names(["brass knob", "elm honey"])) == {"boiler.md", "canoe.txt", "bees.md"}
    changed = client.vector_stores.files.update(file_id, vector_store_id=store.id, attributes={"old": True})
    assert changed.attributes == {"old": True}
    assert "canoe.txt" in names("brass", filters={"type": "eq", "key": "old", "value": True})


def test_stores_and_files_are_listed_in_pages_both_ways(client):
    made = [client.vector_stores.create(name=str(number)).id for number in range(5)]
    assert [each.id for each in client.vector_stores.list(limit=2)] == [*made[::-1], "vs_memory"]
    assert [each.id for each in client.vector_stores.list(limit=2, order="asc")] == ["vs_memory", *made]
    page = client.vector_stores.list(limit=2, before=made[1])
    assert [each.id for each in page.data] == [made[3], made[2]]
    ids = [upload(client, b"Words of file %d." % number, f"{number}.txt") for number in range(3)]
    batch = client.vector_stores.file_batches.create(made[0], file_ids=ids)
    assert batch.file_counts.completed == 3
    listed = client.vector_stores.files.list(made[0], limit=1, order="asc")
    assert [file.id for file in listed] == ids
    with pytest.raises(openai.BadRequestError, match="no 'nothing' in this list"):
        client.vector_stores.list(after="nothing")


def test_what_is_deleted_leaves_no_trace(client, home):
    keep, drop = (client.vector_stores.create(name=name) for name in ("keep", "drop"))
    ids = [upload(client, text, "note.txt") for text in (b"Zeppelin Quagmire.", b"Obelisk Xylophone.")]
    for store in (keep, drop):
        client.vector_stores.file_batches.create(store.id, file_ids=ids)
    assert client.vector_stores.files.delete(ids[0], vector_store_id=keep.id).deleted
    assert client.vector_stores.delete(drop.id).deleted
    assert client.vector_stores.search(keep.id, query="Zeppelin").data == []
    assert texts(client.vector_stores.search(keep.id, query="xylophone")) == ["Obelisk Xylophone."]
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.search(drop.id, query="Zeppelin")
    assert client.files.content(ids[0]).read() == b"Zeppelin Quagmire."
    client.files.delete(ids[0])
    client.vector_stores.delete(keep.id)
    client.files.delete(ids[1])
    for word in (b"Zeppelin", b"zeppelin", b"Obelisk", b"xylophon"):
        assert [path for path in home.rglob("*") if path.is_file() and word in path.read_bytes()] == []
    assert open_store().execute("select count(*) from sources").fetchone()[0] == 0


def test_a_deleted_upload_leaves_every_store(client):
    store = client.vector_stores.create(file_ids=[upload(client, BEES, "bees.md")])
    (file,) = client.vector_stores.files.list(store.id)
    client.files.delete(file.id)
    assert client.vector_stores.files.list(store.id).data == []
    assert client.vector_stores.search(store.id, query="hives").data == []


def test_what_is_not_offered_is_refused_by_name(client):
    store = client.vector_stores.create()
    days = {"anchor": "last_active_at", "days": 3}
    static = {"type": "static", "static": {"max_chunk_size_tokens": 400, "chunk_overlap_tokens": 100}}
    file_id = upload(client, BEES, "bees.md")
    for param, refused in (
        ("expires_after", lambda: client.vector_stores.create(expires_after=days)),
        ("expires_after", lambda: client.vector_stores.update(store.id, expires_after=days)),
        (
            "chunking_strategy",
            lambda: client.vector_stores.files.create(store.id, file_id=file_id, chunking_strategy=static),
        ),
        ("rewrite_query", lambda: client.vector_stores.search(store.id, query="x", rewrite_query=True)),
        ("max_num_results", lambda: client.vector_stores.search(store.id, query="x", max_num_results=51)),
        ("extra", lambda: client.vector_stores.create(extra_body={"extra": 1})),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            refused()
        assert error.value.param == param
    for missing in (
        lambda: client.vector_stores.files.create(store.id, file_id="file-none"),
        lambda: client.vector_stores.retrieve("vs_none"),
        lambda: client.vector_stores.files.retrieve("file-none", vector_store_id=store.id),
        lambda: client.vector_stores.file_batches.retrieve("vsfb_none", vector_store_id=store.id),
    ):
        with pytest.raises(openai.NotFoundError):
            missing()
    assert client.vector_stores.files.list(store.id).data == []


def test_the_asynchronous_client_waits_for_batches_too(server):
    async def work():
        key = {"api_key": "none", "max_retries": 0}
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", **key) as client:
            store = await client.vector_stores.create(name="later")
            files = [("boiler.md", BOILER), ("bees.md", BEES)]
            batch = await client.vector_stores.file_batches.upload_and_poll(store.id, files=files)
            found = await client.vector_stores.search(store.id, query="honey")
            return batch.file_counts.completed, found.data[0].filename

    assert asyncio.run(work()) == (2, "bees.md")


def test_vectors_find_what_no_word_does_and_keep_stores_apart_too(server, client, tmp_path):
    register(write_embedding_model(tmp_path / "plain-embedder.gguf"))
    house = client.vector_stores.create(name="house")
    garden = client.vector_stores.create(name="garden")
    for store, data, name in ((house, BOILER, "boiler.md"), (garden, BEES, "bees.md")):
        client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=(name, data))
    note = {"text": "The boathouse key is under the third pot.", "name": "keys"}
    sources = server.url + "/v1/nightschool/sources"
    httpx.post(sources, json=note, trust_env=False).raise_for_status()
    db, end = open_store(), time.monotonic() + 60
    while db.execute("select count(*) from vectors").fetchone()[0] < 3:
        assert time.monotonic() < end, "no vectors are made"
        time.sleep(0.05)
    for store, name in ((house.id, "boiler.md"), (garden.id, "bees.md"), ("vs_memory", "keys")):
        (result,) = client.vector_stores.search(store, query="xylophone quartet").data
        assert result.filename == name
        assert 0 < result.score <= 1
    never = {"type": "eq", "key": "room", "value": "attic"}
    assert client.vector_stores.search(house.id, query="xylophone", filters=never).data == []
