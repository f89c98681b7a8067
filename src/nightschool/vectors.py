"""Vectors for chunks and questions, from an embedding model that the person has pulled.

The engine makes them; without such a model there are none, and search goes by words alone. Every vector is
kept with the id of its model, and vectors of two models are never compared: when the model changes, chunks
get new vectors batch by batch, and the old ones go when the last is there.

Static vectors made of a base's token embeddings were tried as well. They make the search worse
(bench/RESULTS.md), so there are none.
"""

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nightschool.engine import Engine
from nightschool.errors import NotFound, UnsupportedModel
from nightschool.events import Event, Progress
from nightschool.gguf import open_gguf
from nightschool.hub import Base, base_hash, find_base, list_bases
from nightschool.store import Database, get_note, open_store, set_note, transaction

NOTE = "embedder"  # in the store: the name of the base that makes vectors, or OFF
OFF, AUTO = "off", "auto"
BATCH = 32
CTX = 512
MAX_CHARACTERS = 1500  # of a text: what CTX holds even where words are long
# What some models want before a question and before a passage, by a part of their names (their model cards).
PREFIXES = {
    "nomic-embed": ("search_query: ", "search_document: "),
    "e5-": ("query: ", "passage: "),
    "bge-": ("Represent this sentence for searching relevant passages: ", ""),
    "mxbai-embed": ("Represent this sentence for searching relevant passages: ", ""),
    "arctic-embed": ("Represent this sentence for searching relevant passages: ", ""),
}

Vectors = npt.NDArray[np.float32]


class Embedder(Protocol):
    """Makes vectors of length one; `id` names the model they come from."""

    @property
    def id(self) -> str: ...

    def embed_passages(self, texts: Sequence[str]) -> Vectors: ...

    def embed_question(self, text: str) -> Vectors: ...


class EngineEmbedder:
    """An embedding model in an engine of its own."""

    def __init__(self, base: Base, engine: Engine) -> None:
        self.id = base_hash(base.path)
        self._engine = engine
        name = base.name.lower()
        known = [prefixes for part, prefixes in PREFIXES.items() if part in name and "m3" not in name]
        self._question, self._passage = known[0] if known else ("", "")

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), d)"""
        cut = [self._passage + text[:MAX_CHARACTERS] for text in texts]
        return np.array(self._engine.embed(cut), np.float32)

    def embed_question(self, text: str) -> Vectors:
        """(d,)"""
        vectors: Vectors = np.array(self._engine.embed([self._question + text[:MAX_CHARACTERS]]), np.float32)
        return vectors.reshape(-1)


def is_embedding_model(base: Base) -> bool:
    """Whether a base was made for vectors: its file says how they are pooled."""
    metadata = open_gguf(base.path).metadata
    return f"{metadata.get('general.architecture')}.pooling_type" in metadata


def choose_embedder(db: Database, wanted: str | None = None) -> str:
    """Settle which base makes vectors, keep that in the database, and return its name, or OFF.

    Args:
        wanted: a base's name, OFF, AUTO (an embedding model that is here, if any), or None for what was
            settled before.
    Raises:
        NotFound, UnsupportedModel: there is no such base, or it was not made for vectors.
    """
    settled = get_note(db, NOTE)
    if wanted is None and settled is not None and settled != AUTO:
        return settled
    if wanted not in (None, AUTO, OFF):
        assert wanted
        if not is_embedding_model(find_base(wanted)):
            raise UnsupportedModel(f"{wanted!r} answers questions; for vectors pull an embedding model.")
        chosen = wanted
    elif wanted == OFF:
        chosen = OFF
    else:
        chosen = next((base.name for base in list_bases() if is_embedding_model(base)), OFF)
    # What nobody asked for is looked for again when the next model is pulled.
    set_note(db, NOTE, AUTO if wanted in (None, AUTO) and chosen == OFF else chosen)
    return chosen


@contextmanager
def open_embedder(db: Database, *, threads: int = 0) -> Iterator[EngineEmbedder | None]:
    """The embedder that was settled on, its engine running for the block; None where there is none."""
    name = get_note(db, NOTE)
    try:
        base = find_base(name) if name not in (None, OFF, AUTO) and name else None
    except NotFound:  # removed since: search goes by words, as before it was there
        base = None
    if base is None:
        yield None
        return
    with Engine(base.path, embedding=True, ctx=CTX, threads=threads) as engine:
        yield EngineEmbedder(base, engine)


def count_missing(db: Database, model: str) -> int:
    """How many chunks have no vector of this model."""
    found = db.execute(
        "select (select count(*) from chunks) - (select count(*) from vectors where model = ?)", (model,)
    ).fetchone()
    return int(found[0])


def embed_missing(db: Database, embedder: Embedder) -> Generator[Event, None, int]:
    """Give every chunk its vector, a batch in a transaction; the value is how many were made.

    It may be stopped between any two events and goes on where it was.
    """
    done, total = 0, count_missing(db, embedder.id)
    while rows := db.execute(
        "select id, title, heading, text from chunks where id not in"
        f" (select chunk_id from vectors where model = ?) order by id limit {BATCH}",
        (embedder.id,),
    ).fetchall():
        texts = ["\n".join(filter(None, (row["title"], row["heading"], row["text"]))) for row in rows]
        vectors = embedder.embed_passages(texts).astype(np.float16)
        with transaction(db):
            db.executemany(  # a chunk may have been removed meanwhile
                "insert or ignore into vectors (model, chunk_id, vector)"
                " select ?, id, ? from chunks where id = ?",
                [
                    (embedder.id, vector.tobytes(), row["id"])
                    for row, vector in zip(rows, vectors, strict=True)
                ],
            )
        done += len(rows)
        yield Progress("making vectors", done, max(done, total))
    with transaction(db):
        db.execute("delete from vectors where model != ?", (embedder.id,))
    return done


@contextmanager
def catch_up(embedder: Embedder | None) -> Iterator[None]:
    """Give chunks their missing vectors in the background for as long as the block lasts."""
    if embedder is None:
        yield
        return
    ended = threading.Event()

    def work() -> None:
        with closing(open_store()) as db:
            for _ in embed_missing(db, embedder):
                if ended.is_set():
                    return

    thread = threading.Thread(target=work, name="vectors")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
