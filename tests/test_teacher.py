"""A teacher elsewhere: asked through the real protocol, of a llama.cpp server, and announced."""

import json

import httpx
import pytest
from tiny import write_tiny

from nightschool.engine import Engine
from nightschool.errors import EngineError
from nightschool.events import result_of
from nightschool.settings import StudySettings
from nightschool.teacher import Server, announcement, open_teacher
from nightschool.writer import ITEMS_SCHEMA, structured_items
from nightschool.writing import write_chunk

TEXT = "Ada Finch works as a pilot. She lives in Brill."


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    base = write_tiny(tmp_path_factory.mktemp("base") / "tiny.gguf", "llama", context=2048)
    with Engine(base, slots=2, threads=1) as engine:
        yield engine


@pytest.fixture
def url(engine):
    """The address of the engine's llama.cpp, with its key."""
    client = engine._process.client
    key = client.headers["Authorization"].removeprefix("Bearer ")
    return str(httpx.URL(str(client.base_url)).copy_with(username="", password=key, path="/v1"))


def test_a_server_answers_as_the_engine_does(engine, url):
    messages = [{"role": "user", "content": "Where does Ada live?"}]
    with open_teacher(url, slots=2, threads=1) as teacher:
        assert isinstance(teacher, Server)
        said = teacher.chat(messages, temperature=0.0, max_tokens=8, seed=1)
        assert said.strip() == engine.chat(messages, temperature=0.0, max_tokens=8, seed=1).strip()


def test_a_base_on_this_machine_can_be_the_teacher(engine):
    with open_teacher(str(engine.base), slots=1, threads=1) as teacher:
        assert teacher.chat([{"role": "user", "content": "Hello"}], max_tokens=2) is not None


def test_what_a_random_teacher_writes_does_not_pass_the_check(engine, url):
    settings = StudySettings(wordings=1, slots=2, threads=1)
    with Server(url) as teacher:
        assert structured_items(teacher, TEXT, seed=1) == []  # cut short, or not about the text
        verdicts = result_of(write_chunk(engine, TEXT, settings, teacher=teacher))
    assert {verdict.item.origin for verdict in verdicts if verdict.is_kept} == {"rules"}


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://key:word@127.0.0.1:9/v1"])
def test_a_teacher_that_is_not_there_ends_in_a_sentence_without_its_key(url):
    with pytest.raises(EngineError, match="does not answer") as error:
        Server(url)
    assert "word" not in str(error.value)


def test_the_person_is_told_where_the_notes_go():
    assert "LEAVES THIS MACHINE" in announcement("https://api.example.com/v1")
    assert "api.example.com" in announcement("https://:secret@api.example.com/v1")
    assert "secret" not in announcement("https://:secret@api.example.com/v1")
    assert "on this machine" in announcement("http://localhost:11434/v1")
    assert "LEAVES" not in announcement("ember")


def test_the_schema_asks_for_what_the_writer_reads():
    assert set(ITEMS_SCHEMA["properties"]["items"]["items"]["required"]) == {
        "question",
        "other_wordings",
        "answer",
        "key_words",
    }
    assert json.dumps(ITEMS_SCHEMA)
