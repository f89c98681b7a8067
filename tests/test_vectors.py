"""Vectors from a real embedding model in the engine: kept per model, never mixed, made when there is time."""

import threading

import numpy as np
import pytest
from tiny import write_tiny

from nightschool import vectors
from nightschool.engine import Engine
from nightschool.errors import NotFound, UnsupportedModel
from nightschool.gguf import open_gguf, write_gguf
from nightschool.hub import Base, base_hash, register
from nightschool.index import Index
from nightschool.library import remember_text
from nightschool.store import open_store
from nightschool.vectors import (
    OFF,
    EngineEmbedder,
    catch_up,
    choose_embedder,
    count_missing,
    embed_missing,
    is_embedding_model,
    open_embedder,
)

MEAN = 1  # llama.cpp's number for mean pooling


def write_embedding_model(path, *, seed=0):
    """A tiny random model whose file says that it is for vectors."""
    plain = open_gguf(write_tiny(path.with_name(f"plain-{path.name}"), "llama", seed=seed))
    tensors = [(name, each.type, each.shape, plain.data(name)) for name, each in plain.tensors.items()]
    write_gguf(path, {**plain.metadata, "llama.pooling_type": MEAN}, tensors, types=plain.metadata_types)
    return path


@pytest.fixture
def models(tmp_path):
    for name, seed in (("nomic-embed-tiny", 0), ("plain-embedder", 1)):
        register(write_embedding_model(tmp_path / f"{name}.gguf", seed=seed))
    register(write_tiny(tmp_path / "talker.gguf", "llama"))
    return tmp_path


@pytest.fixture
def db():
    db = open_store()
    for number in range(5):
        remember_text(db, f"Note {number} is about the number {number * 7}.")
    return db


def kept(db):
    return {
        (row["model"], row["chunk_id"]): np.frombuffer(row["vector"], np.float16)
        for row in db.execute("select * from vectors")
    }


def test_only_models_made_for_vectors_make_them(models, db):
    assert is_embedding_model(Base("a", models / "plain-embedder.gguf", ""))
    assert not is_embedding_model(Base("a", models / "talker.gguf", ""))
    with pytest.raises(UnsupportedModel, match="pull an embedding model"):
        choose_embedder(db, "talker")
    with pytest.raises(NotFound):
        choose_embedder(db, "nobody")


def test_without_such_a_model_there_are_no_vectors(db):
    assert choose_embedder(db) == OFF
    with open_embedder(db) as embedder:
        assert embedder is None


def test_one_that_is_pulled_later_is_taken_by_itself_unless_vectors_are_off(db, tmp_path):
    assert choose_embedder(db) == OFF
    register(write_embedding_model(tmp_path / "embedder.gguf"))
    assert choose_embedder(db) == "embedder"
    assert choose_embedder(db, "off") == OFF
    assert choose_embedder(db) == OFF
    assert choose_embedder(db, "auto") == "embedder"


def test_every_chunk_gets_the_engines_vector_of_its_text_under_its_headings(models, db):
    choose_embedder(db, "plain-embedder")
    with open_embedder(db) as embedder:
        events = list(embed_missing(db, embedder))
        assert count_missing(db, embedder.id) == 0
        assert list(embed_missing(db, embedder)) == []
    assert (events[-1].done, events[-1].total) == (5, 5)
    texts = [f"{row['title']}\n{row['text']}" for row in db.execute("select * from chunks order by id")]
    with Engine(models / "plain-embedder.gguf", embedding=True) as engine:
        expected = np.array(engine.embed(texts))
    found = np.array([vector for _, vector in sorted(kept(db).items())])
    assert np.abs(found - expected).max() < 1e-3
    assert {model for model, _ in kept(db)} == {base_hash(models / "plain-embedder.gguf")}


def test_a_model_that_wants_prefixes_gets_them(models):
    with Engine(models / "nomic-embed-tiny.gguf", embedding=True) as engine:
        embedder = EngineEmbedder(Base("nomic-embed-tiny", models / "nomic-embed-tiny.gguf", ""), engine)
        question, passage = engine.embed(["search_query: bees", "search_document: bees"])
        assert np.allclose(embedder.embed_question("bees"), question, atol=1e-6)
        assert np.allclose(embedder.embed_passages(["bees"])[0], passage, atol=1e-6)


def test_a_change_of_model_can_be_interrupted_and_never_mixes(models, db, monkeypatch):
    monkeypatch.setattr(vectors, "BATCH", 2)
    choose_embedder(db, "plain-embedder")
    with open_embedder(db) as embedder:
        list(embed_missing(db, embedder))
        first = embedder.id
    choose_embedder(db, "nomic-embed-tiny")
    with open_embedder(db) as embedder:
        work = embed_missing(db, embedder)
        next(work)
        work.close()
        models_now = [model for model, _ in kept(db)]
        assert (models_now.count(first), models_now.count(embedder.id)) == (5, 2)
        assert len(Index(db, embedder).by_vectors(embedder.embed_question("number"))) == 2
        list(embed_missing(db, embedder))
        assert {model for model, _ in kept(db)} == {embedder.id}
        assert len(kept(db)) == 5


def test_a_new_version_of_a_note_gets_a_new_vector(models, db):
    choose_embedder(db, "plain-embedder")
    with open_embedder(db) as embedder:
        list(embed_missing(db, embedder))
        db.execute("delete from chunks where id = 1")
        assert count_missing(db, embedder.id) == 0
        remember_text(db, "Another note.")
        assert count_missing(db, embedder.id) == 1


def test_missing_vectors_are_made_in_the_background(models, db):
    choose_embedder(db, "plain-embedder")
    with open_embedder(db) as embedder:
        with catch_up(embedder):
            assert any(thread.name == "vectors" for thread in threading.enumerate())
            for _ in range(200):
                if count_missing(db, embedder.id) == 0:
                    break
                threading.Event().wait(0.05)
        assert count_missing(db, embedder.id) == 0
    assert not any(thread.name == "vectors" for thread in threading.enumerate())
    with catch_up(None):
        assert not any(thread.name == "vectors" for thread in threading.enumerate())


def test_search_goes_by_words_when_the_model_is_gone(models, db):
    choose_embedder(db, "plain-embedder")
    (models / "plain-embedder.gguf").unlink()
    with open_embedder(db) as embedder:
        assert embedder is None
        assert Index(db, embedder).search("number 21")
